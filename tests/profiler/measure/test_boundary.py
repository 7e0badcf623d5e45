"""The boundary is found, in few runs when the guess is good."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.factories import make_config, make_measure_request
from tests.fakes import make_estimate
from whatfits.estimator import estimate_run
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import Estimate
from whatfits.estimator.specs.measurement import MeasureRequest
from whatfits.estimator.units import MIB
from whatfits.profiler.measure.boundary import find_boundary, guess_micro_batch
from whatfits.profiler.measure.local import expected


@given(st.integers(0, 1000), st.integers(-5, 2000), st.integers(1, 1000))
def test_any_boundary_is_found_from_any_guess_asking_nothing_twice(
    boundary: int, guess: int, largest: int
) -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= boundary

    low, high = find_boundary(fits, guess, largest)

    assert (low, high) == (min(boundary, largest), min(boundary, largest) + 1)
    assert len(asked) == len(set(asked)) <= 2 * largest.bit_length() + 1
    assert all(1 <= size <= largest for size in asked)


def test_a_right_guess_takes_two_runs() -> None:
    asked: list[int] = []

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= 37

    assert find_boundary(fits, 37) == (37, 38)
    assert asked == [37, 38]


def test_the_guess_is_where_the_estimate_meets_the_limit() -> None:
    request = make_measure_request(device="gpu", spec={"training": {"seq_len": 1024}})

    guess = guess_micro_batch(request, expected)

    def headroom(size: int) -> int:
        training = request.spec.training.model_copy(update={"micro_batch_size": size})
        return estimate_run(request.spec.model_copy(update={"training": training})).memory.headroom_bytes

    assert guess > 8
    assert headroom(guess - 2) > 0 > headroom(guess + 3)


def test_on_a_cpu_the_guess_leaves_out_what_only_a_gpu_holds() -> None:
    """8 is what real runs gave: 15.43 MiB of live tensors at 8, above 16 MiB at 9."""
    model = make_config(
        num_hidden_layers=4, intermediate_size=172, num_key_value_heads=4, tie_word_embeddings=False
    )
    training = {"precision": "fp32", "seq_len": 64}
    hardware = {"gpu": "h100", "memory_cap_bytes": 16 * MIB}
    request = make_measure_request(spec={"model": model, "training": training, "hardware": hardware})

    assert guess_micro_batch(request, expected) == 8


def test_without_an_estimate_the_search_begins_at_one() -> None:
    def ask(_: MeasureRequest) -> Estimate:
        raise UnsupportedError("training.loss", "fused", "standard")

    assert guess_micro_batch(make_measure_request(device="gpu"), ask) == 1


@pytest.mark.parametrize(("cap", "guess"), [(1, 1), (2**60, 2**16)])
def test_the_guess_stays_within_what_is_tried(cap: int, guess: int) -> None:
    def ask(request: MeasureRequest) -> Estimate:
        return make_estimate(request.spec, activations=request.spec.training.micro_batch_size)

    request = make_measure_request(spec={"hardware": {"memory_cap_bytes": cap}})

    assert guess_micro_batch(request, ask) == guess
