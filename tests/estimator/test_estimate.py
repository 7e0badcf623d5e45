"""`estimate_run`: one question in, one answer out, errors named."""

from typing import Any

import pytest

from tests.factories import make_config, make_run
from whatfits.estimator.errors import InputError, UnknownNameError, UnsupportedError
from whatfits.estimator.estimate import estimate_run
from whatfits.estimator.profile import DEFAULT_STACK
from whatfits.estimator.specs import Estimate, Verdict


def test_the_answer_is_whole() -> None:
    answer = estimate_run(make_run())
    memory, time = answer.memory, answer.time

    assert time is not None
    assert answer.fits is Verdict.YES
    assert answer.fit_probability > 0.95
    assert memory.breakdown.total == memory.peak_allocated_bytes
    assert memory.device_breakdown.total == memory.device_bytes.median
    assert 0 < time.step_time_seconds.low <= time.step_time_seconds.median <= time.step_time_seconds.high
    assert Estimate.model_validate_json(answer.model_dump_json()) == answer


def test_the_echoed_spec_is_filled_and_gives_the_same_answer() -> None:
    answer = estimate_run(make_run())

    assert answer.spec.stack == DEFAULT_STACK
    assert estimate_run(answer.spec).memory == answer.memory


def test_sharded_runs_come_from_the_table_alone() -> None:
    answer = estimate_run(
        make_run(parallelism={"dp_shard_degree": 4, "zero_stage": 3}, hardware={"num_gpus": 4})
    )

    assert answer.memory.peak_allocated_bytes is None
    assert answer.memory.breakdown.total == answer.memory.peak_requested_bytes


def test_a_config_of_ones_own_is_answered() -> None:
    answer = estimate_run(make_run(model=make_config(num_hidden_layers=6)))

    assert answer.fits is Verdict.YES


@pytest.mark.parametrize("changes", [{"training": {"micro_batch_size": 4}}, {"training": {"grad_accum_steps": 2}},
                                     {"training": {"seq_len": 512}}])  # fmt: skip
def test_asking_for_more_needs_no_less(changes: dict[str, Any]) -> None:
    assert estimate_run(make_run(**changes)).memory.peak_requested_bytes >= (
        estimate_run(make_run()).memory.peak_requested_bytes
    )


def test_a_memory_cap_decides() -> None:
    memory = estimate_run(make_run()).memory
    answer = estimate_run(make_run(hardware={"memory_cap_bytes": memory.device_bytes.low // 2}))

    assert answer.fits is Verdict.NO
    assert answer.memory.headroom_bytes < 0


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"hardware": {"gpu": "a100-81gb"}}, UnknownNameError, "hardware.gpu"),
        ({"model": "lama-7b"}, UnknownNameError, "model"),
        ({"hardware": {"gpu": "a100"}}, InputError, "hardware.gpu"),
        ({"training": {"precision": "fp8"}}, UnsupportedError, "training.precision"),
        ({"training": {"compile": True}}, UnsupportedError, "training.compile"),
        (
            {"training": {"optimizer": {"name": "apollo", "rank": 5000}}},
            InputError,
            "training.optimizer.rank",
        ),
        ({"model": make_config(num_hidden_layers=3)}, UnsupportedError, "model.num_layers"),
        ({"stack": {"torch": "1.0"}}, UnsupportedError, "stack"),
    ],
)
def test_bad_questions_name_the_field(changes: dict[str, Any], error: type[InputError], field: str) -> None:
    with pytest.raises(error) as found:
        estimate_run(make_run(**changes))

    assert found.value.field == field
    assert found.value.accepted
