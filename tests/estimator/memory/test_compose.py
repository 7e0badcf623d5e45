"""How a step's peak moves with what is asked, and what it is made of."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.estimator.memory.steps import ALL_OPTIMIZERS, SMALL, make_step, peaks_of, sizes_of
from tests.factories import make_model
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import OptimizerName, OptimizerSpec

PLACEMENTS = st.sampled_from(
    [(Placement.SINGLE, 1), (Placement.DDP, 1), (Placement.DDP_BUCKET_VIEW, 1), (Placement.FSDP, 4)]
)
SMOOTH = [o for o in ALL_OPTIMIZERS if o.name is not OptimizerName.GALORE_ADAMW_8BIT]


@given(
    placement=PLACEMENTS,
    checkpointing=st.sampled_from(["none", "full"]),
    optimizer=st.sampled_from(ALL_OPTIMIZERS),
    batch=st.integers(2, 60),
    seq_len=st.integers(2, 900),
    more=st.integers(1, 400),
    accum=st.integers(1, 2),
)
def test_peak_grows_with_micro_batch_and_sequence(
    placement: tuple[Placement, int],
    checkpointing: str,
    optimizer: OptimizerSpec,
    batch: int,
    seq_len: int,
    more: int,
    accum: int,
) -> None:
    kind, degree = placement
    step = make_step(optimizer=optimizer, checkpointing=checkpointing, placement=kind, shard_degree=degree)

    def peak(b: int, s: int) -> float:
        return float(peaks_of(step, micro_batch_size=b, seq_len=s, grad_accum_steps=accum).nbytes[0])

    assert peak(batch, seq_len) <= peak(batch + 1 + more % 7, seq_len)
    assert peak(batch, seq_len) <= peak(batch, seq_len + more)


@given(
    placement=PLACEMENTS,
    optimizer=st.sampled_from(SMOOTH),
    batch=st.integers(1, 30),
    layers=st.integers(4, 40),
    checkpointing=st.sampled_from(["none", "full"]),
)
def test_peak_grows_with_depth(
    placement: tuple[Placement, int], optimizer: OptimizerSpec, batch: int, layers: int, checkpointing: str
) -> None:
    kind, degree = placement
    shallow, deep = (
        make_step(
            make_model(**{**SMALL, "num_hidden_layers": depth}),
            optimizer=optimizer,
            micro_batch_size=batch,
            checkpointing=checkpointing,
            placement=kind,
            shard_degree=degree,
        )
        for depth in (layers, layers + 3)
    )

    assert (
        peaks_of(shallow, micro_batch_size=batch).nbytes[0] < peaks_of(deep, micro_batch_size=batch).nbytes[0]
    )


@given(batch=st.integers(16, 200), seq_len=st.integers(64, 1000), layers=st.integers(5, 20))
def test_full_checkpointing_needs_less_for_large_batches(batch: int, seq_len: int, layers: int) -> None:
    model = make_model(**{**SMALL, "num_hidden_layers": layers})
    none, full = (
        peaks_of(
            make_step(model, micro_batch_size=batch, checkpointing=checkpointing),
            micro_batch_size=batch,
            seq_len=seq_len,
        ).nbytes[0]
        for checkpointing in ("none", "full")
    )

    assert full < none


@given(
    seq_len=st.integers(2, 500),
    accum=st.booleans(),
    batches=st.lists(st.integers(2, 99), min_size=1, max_size=9),
)
def test_many_configurations_at_once_equal_each_alone(seq_len: int, accum: bool, batches: list[int]) -> None:
    step = make_step()
    sizes = sizes_of(step, np.array(batches), seq_len)
    together = step.peaks(sizes, accumulated=np.full(len(batches), accum))

    for j, batch in enumerate(batches):
        alone = peaks_of(step, micro_batch_size=batch, seq_len=seq_len, grad_accum_steps=1 + accum)
        assert together.nbytes[j] == alone.nbytes[0]
        assert together.row[j] == alone.row[0]
        assert together.later_micro_batch[j] == alone.later_micro_batch[0]


def test_accumulation_never_needs_less() -> None:
    for optimizer in ALL_OPTIMIZERS:
        step = make_step(optimizer=optimizer)
        assert peaks_of(step, grad_accum_steps=2).nbytes[0] >= peaks_of(step).nbytes[0]


def test_bucket_views_save_the_gradients_beside_the_buckets() -> None:
    copy, view = (make_step(placement=p) for p in (Placement.DDP, Placement.DDP_BUCKET_VIEW))
    sizes = sizes_of(copy)

    assert copy.resting() == view.resting()
    saved = copy.optimizer_step(sizes) - view.optimizer_step(sizes)
    assert saved.tolist() == [copy.tensors.gradient_bytes]
    assert peaks_of(view).nbytes[0] <= peaks_of(copy).nbytes[0]


def test_layerwise_sgd_holds_no_gradients_at_rest() -> None:
    sgd = OptimizerSpec(name=OptimizerName.SGD)
    whole, layerwise = (make_step(optimizer=sgd, layerwise=flag) for flag in (False, True))
    sizes = sizes_of(whole)

    saved = whole.optimizer_step(sizes) - layerwise.optimizer_step(sizes)
    assert saved.tolist() == [whole.tensors.gradient_bytes]


def test_layerwise_states_are_those_of_one_optimizer_per_parameter() -> None:
    for optimizer in ALL_OPTIMIZERS:
        step = make_step(optimizer=optimizer, layerwise=True)
        program = step.optimizer.program
        assert step.optimizer.state_bytes == sum(program.state_bytes((p,)) for p in step.tensors.local)


def test_what_steps_share_does_not_change_the_answer() -> None:
    first = make_step(optimizer=OptimizerSpec(name=OptimizerName.SGD))
    sizes = sizes_of(first)
    accumulated = np.array([True])
    first.peaks(sizes, accumulated=accumulated, key="same")
    for optimizer in ALL_OPTIMIZERS:
        alone = make_step(optimizer=optimizer)
        sharing = type(alone)(
            table=alone.table, optimizer=alone.optimizer, gpu=alone.gpu, shared=first.shared
        )
        expected = alone.peaks(sizes, accumulated=accumulated).nbytes
        assert sharing.peaks(sizes, accumulated=accumulated, key="same").nbytes.tolist() == expected.tolist()


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_shards_sum_to_the_whole(degree: int) -> None:
    """All dims divide by the degree, so that only rounding to 512 bytes is between the two."""
    model = make_model(
        num_hidden_layers=6, hidden_size=512, intermediate_size=1024, vocab_size=8000, num_key_value_heads=4
    )
    whole = make_step(model)
    shard = make_step(model, placement=Placement.FSDP, shard_degree=degree)

    num_tensors = len(whole.tensors.whole)
    for term in ("weight_bytes", "gradient_bytes"):
        excess = getattr(shard.tensors, term) * degree - getattr(whole.tensors, term)
        assert 0 <= excess <= degree * 512 * (num_tensors + 2)
    states = shard.optimizer.state_bytes * degree - whole.optimizer.state_bytes
    assert 0 <= states <= degree * 512 * 2 * num_tensors
