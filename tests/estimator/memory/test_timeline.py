"""The timeline's events, walked one by one, against the peaks composed from the table."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from tests.estimator.memory.steps import ALL_OPTIMIZERS, SMALL, make_step, peaks_of, timeline_of
from tests.factories import make_model
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.device import cublas_workspace_bytes
from whatfits.estimator.memory.optimizers import StepPhase
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.replay import Replays, replay
from whatfits.estimator.memory.replay_events import ALLOC, FREE, ReplayEvents
from whatfits.estimator.memory.timeline import CATEGORIES, Timeline, _MicroBatch, _Run
from whatfits.estimator.profile import load_program
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec, PeakPhase
from whatfits.estimator.specs.layerwise import (
    IN_BACKWARD_OPTIMIZERS,
    ONE_LAYER_OPTIMIZERS,
    WHOLE_STEP_OPTIMIZERS,
)

WHOLE = (Placement.SINGLE, Placement.DDP, Placement.DDP_BUCKET_VIEW)
STEPPED = tuple(o for o in ALL_OPTIMIZERS if o.name not in IN_BACKWARD_OPTIMIZERS)
LAYERWISE = tuple(
    o
    for o in ALL_OPTIMIZERS
    if o.implementation is not OptimizerImplementation.FUSED and o.name not in WHOLE_STEP_OPTIMIZERS
)
ON_EVERY_PLACEMENT = [
    (optimizer, placement)
    for optimizer in STEPPED
    for placement in (WHOLE[:1] if optimizer.name in ONE_LAYER_OPTIMIZERS else WHOLE)
]


def identity(value: OptimizerSpec | Placement) -> str:
    return f"{value.name}-{value.implementation}" if isinstance(value, OptimizerSpec) else str(value)


def live_curve(timeline: Timeline) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Bytes live after each event, each block rounded up to 512."""
    events = timeline.events
    sizes = np.zeros(int(events.blocks.max()) + 1, dtype=np.int64)
    is_alloc = events.kinds == ALLOC
    sizes[events.blocks[is_alloc]] = -(-events.sizes[is_alloc] // 512) * 512
    delta = np.where(is_alloc, 1, -1) * sizes[events.blocks]
    result: np.ndarray[tuple[int], np.dtype[np.int64]] = delta.cumsum()
    return result


def step_peaks(timeline: Timeline) -> Iterator[int]:
    """Highest live bytes of each step."""
    curve = live_curve(timeline)
    bounds = [*timeline.step_starts, len(curve)]
    for start, stop in pairwise(bounds):
        yield int(curve[start:stop].max())


def assert_steady_peaks_equal(
    step: StepMemory, *, micro_batch_size: int = 2, grad_accum_steps: int = 1
) -> None:
    timeline = timeline_of(step, micro_batch_size=micro_batch_size, grad_accum_steps=grad_accum_steps)
    composed = int(
        peaks_of(step, micro_batch_size=micro_batch_size, grad_accum_steps=grad_accum_steps).nbytes[0]
    )
    _, steady, refresh = step_peaks(timeline)

    assert max(steady, refresh) == composed
    if (
        step.optimizer.program.transient_bytes(step.tensors.local, StepPhase.steady)
        == step.optimizer.step_bytes
    ):
        assert steady == refresh == composed


@pytest.mark.parametrize(("optimizer", "placement"), ON_EVERY_PLACEMENT, ids=identity)
def test_steady_steps_peak_where_the_table_says(optimizer: OptimizerSpec, placement: Placement) -> None:
    step = make_step(optimizer=optimizer, placement=placement)

    for grad_accum_steps in (1, 2, 3):
        assert_steady_peaks_equal(step, grad_accum_steps=grad_accum_steps)


@pytest.mark.parametrize("optimizer", LAYERWISE, ids=identity)
@pytest.mark.parametrize(("micro_batch_size", "checkpointing"), [(1, "none"), (2, "full"), (48, "none")])
def test_layerwise_updates_peak_where_the_table_says(
    optimizer: OptimizerSpec, micro_batch_size: int, checkpointing: str
) -> None:
    model = make_model(**SMALL, num_key_value_heads=4, tie_word_embeddings=micro_batch_size == 2)
    step = make_step(
        model,
        optimizer=optimizer,
        micro_batch_size=micro_batch_size,
        checkpointing=checkpointing,
        layerwise=True,
    )

    assert_steady_peaks_equal(step, micro_batch_size=micro_batch_size)


@pytest.mark.parametrize("placement", WHOLE)
@pytest.mark.parametrize(("micro_batch_size", "checkpointing"), [(1, "full"), (64, "none"), (64, "full")])
def test_steady_steps_peak_where_the_table_says_in_every_part_of_the_step(
    placement: Placement, micro_batch_size: int, checkpointing: str
) -> None:
    step = make_step(
        optimizer=OptimizerSpec(name=OptimizerName.SGD),
        placement=placement,
        micro_batch_size=micro_batch_size,
        checkpointing=checkpointing,
    )

    for grad_accum_steps in (1, 2):
        assert_steady_peaks_equal(step, micro_batch_size=micro_batch_size, grad_accum_steps=grad_accum_steps)


@pytest.mark.parametrize(("optimizer", "placement"), ON_EVERY_PLACEMENT, ids=identity)
def test_blocks_are_allocated_and_freed_once_and_only_resting_state_stays(
    optimizer: OptimizerSpec, placement: Placement
) -> None:
    step = make_step(optimizer=optimizer, placement=placement)
    timeline = timeline_of(step, grad_accum_steps=2)
    events = timeline.events

    allocated, freed = (events.blocks[events.kinds == kind].tolist() for kind in (ALLOC, FREE))
    assert len(set(allocated)) == len(allocated)
    assert len(set(freed)) == len(freed)
    assert set(freed) < set(allocated)
    curve = live_curve(timeline)
    assert curve.min() > 0
    resting = step.resting().total
    ends = [int(curve[stop - 1]) for stop in (*timeline.step_starts[1:], len(curve))]
    assert ends == [resting] * 3


def test_what_stays_is_what_the_resting_terms_name() -> None:
    step = make_step(placement=Placement.DDP)
    timeline = timeline_of(step)
    events = timeline.events

    left = set(events.blocks[events.kinds == ALLOC].tolist()) - set(
        events.blocks[events.kinds == FREE].tolist()
    )
    stays = np.isin(events.blocks, list(left)) & (events.kinds == ALLOC)
    rounded = -(-events.sizes // 512) * 512
    by_category = {
        name: int(rounded[stays & (timeline.category == j)].sum()) for j, name in enumerate(CATEGORIES)
    }
    resting = step.resting()
    assert {name: nbytes for name, nbytes in by_category.items() if nbytes} == {
        "weights": resting.weights,
        "optimizer_states": resting.optimizer_states,
        "communication_buffers": resting.communication_buffers,
        "workspace": resting.workspace,
    }


def test_each_thread_gets_one_workspace_in_the_first_step() -> None:
    step = make_step()
    timeline = timeline_of(step)

    workspaces = np.flatnonzero(timeline.category == CATEGORIES.index("workspace"))
    assert timeline.events.sizes[workspaces].tolist() == [cublas_workspace_bytes(step.gpu)] * 2
    assert workspaces.max() < timeline.step_starts[1]
    phases = list(PeakPhase)
    assert [phases[j] for j in timeline.phase[workspaces]] == [PeakPhase.FORWARD, PeakPhase.BACKWARD]


def test_phases_follow_each_other() -> None:
    timeline = timeline_of(make_step())
    phases = timeline.phase[timeline.step_starts[1] : timeline.step_starts[2]]

    order = [list(PeakPhase)[j] for j in phases[np.flatnonzero(np.diff(phases, prepend=-1))]]
    assert order == list(PeakPhase)


def test_sharded_steps_have_no_timeline() -> None:
    with pytest.raises(UnsupportedError, match="dp_shard_degree"):
        timeline_of(make_step(placement=Placement.FSDP, shard_degree=8))


@pytest.mark.parametrize("placement", WHOLE)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_micro_batches_beyond_the_third_change_nothing(placement: Placement, checkpointing: str) -> None:
    step = make_step(placement=placement, checkpointing=checkpointing)
    short = timeline_of(step, micro_batch_size=2, grad_accum_steps=7).events

    run = _Run(step, _MicroBatch(load_program(step.table.key), step.symbols(2, 130)))
    run.setup()
    for phase in StepPhase:
        run.step(phase, 7)
    every = ReplayEvents(
        kinds=np.array(run.out.kinds, dtype=np.int8),
        blocks=np.array(run.out.blocks, dtype=np.int64),
        sizes=np.array(run.out.sizes, dtype=np.int64),
    )

    assert len(short.kinds) < len(every.kinds)
    peaks = [(r.peak_allocated_bytes, r.peak_reserved_bytes) for r in (replay(short), replay(every))]
    assert peaks[0] == peaks[1]
    assert Replays(short).required_reserved_bytes() == Replays(every).required_reserved_bytes()
