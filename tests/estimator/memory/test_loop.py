"""What loops do around the optimizer's step, against the events an H100's allocator recorded, and in the step's peak."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.estimator.memory.recorded_loops import between, recorded
from tests.estimator.memory.steps import SMALL, make_step, peaks_of, sizes_of, timeline_of
from tests.factories import make_gpu, make_model, make_training
from whatfits.estimator.memory.breakdown import breakdown_at
from whatfits.estimator.memory.classes import profile_key, program_of, rank_tensors
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.loop import (
    SCALER_STATE_BYTES,
    UNSCALING_BYTES,
    Loop,
    clipping_bytes,
    clipping_events,
    drop_found_inf_events,
    loop_of,
    master_copy_bytes,
    scaler_state_events,
    unscaling_events,
)
from whatfits.estimator.memory.optimizers import OptimizerEvent, StepPhase, build_optimizer_program
from whatfits.estimator.memory.parameters import HeldParameter
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.memory.replay_events import ALLOC
from whatfits.estimator.memory.timeline import Timeline, build_timeline
from whatfits.estimator.profile import EventProgram, load_program, load_table
from whatfits.estimator.specs import ModelSpec, OptimizerSpec, PeakPhase
from whatfits.estimator.units import round_allocation

TINY = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000}  # fmt: skip
"""The `tiny` model of the recordings."""


def tiny(num_layers: int = 3) -> ModelSpec:
    return make_model(**TINY, num_hidden_layers=num_layers)


def plain(events: list[OptimizerEvent]) -> list[tuple[str, int]]:
    return [(event.kind, event.nbytes) for event in events]


def peak_of(events: list[OptimizerEvent]) -> int:
    live = np.cumsum(
        [round_allocation(e.nbytes) * (1 if e.kind == "alloc" else -1) for e in events], dtype=np.int64
    )
    return int(live.max())


def parameters(element_bytes: int) -> list[HeldParameter]:
    training = make_training()
    program = load_program(profile_key(tiny(4), training))
    tensors = rank_tensors(tiny(), program, training, Placement.SINGLE, 1)
    return [replace(p, element_bytes=element_bytes) for p in tensors.whole]


@pytest.mark.parametrize("clip", ["default", "foreach"])
@pytest.mark.parametrize(("precision", "element_bytes"), [("bf16", 2), ("fp32", 4)])
def test_clipping_allocates_what_was_recorded(clip: str, precision: str, element_bytes: int) -> None:
    case = recorded(precision=precision, clip=clip)

    events = clipping_events(parameters(element_bytes), element_bytes)

    for step in (0, 1, 2):
        assert plain(events) == between(case, step, "optimizer")
    assert clipping_bytes(parameters(element_bytes), element_bytes) == peak_of(events)


@pytest.mark.parametrize("numel", [1, 65_536, 65_537, 10**7])
@pytest.mark.parametrize("count", [1, 128, 300])
@pytest.mark.parametrize("element_bytes", [2, 4])
def test_the_peak_of_clipping_is_its_events(numel: int, count: int, element_bytes: int) -> None:
    example = parameters(element_bytes)[0]
    tensors = [type(example)(name=str(j), shape=(numel,), role=example.role, element_bytes=element_bytes) for j in range(count)]  # fmt: skip

    assert clipping_bytes(tensors, element_bytes) == peak_of(clipping_events(tensors, element_bytes))


@pytest.mark.parametrize("clip", [{}, {"clip": "default"}])
@pytest.mark.parametrize(("step", "phase"), [(0, StepPhase.first), (1, StepPhase.steady)])
def test_scaled_steps_allocate_what_was_recorded(clip: dict[str, str], step: int, phase: StepPhase) -> None:
    case = recorded(precision="fp16_mixed", **clip)
    trained = parameters(4)
    adamw = build_optimizer_program(OptimizerSpec(), param_dtype_bytes=4, hidden_size=512)

    events = [
        *unscaling_events(),
        *(clipping_events(trained, 4) if clip else []),
        *adamw.events(trained, phase),
        *drop_found_inf_events(),
    ]

    assert plain(events) == between(case, step, "optimizer", "update")[: len(events)]
    assert peak_of(unscaling_events()) == UNSCALING_BYTES


def test_the_scaler_keeps_two_numbers() -> None:
    assert peak_of(scaler_state_events()) == SCALER_STATE_BYTES


def recorded_twin(training: dict[str, Any]) -> Timeline:
    """Timeline of a recorded run of the tiny model; 3 layers are fewer than the tables cover, not than the program."""
    spec = make_training(micro_batch_size=2, seq_len=256, **training)
    key = profile_key(tiny(4), spec)
    program = load_program(key)
    tensors = rank_tensors(tiny(), program, spec, Placement.SINGLE, 1)
    optimizer = OptimizerOnRank.build(tensors, spec.optimizer, loop=loop_of(spec))
    memory = StepMemory(table=load_table(key), optimizer=optimizer, gpu=make_gpu(compute_capability="9.0"))
    return build_timeline(memory, program, micro_batch_size=2, seq_len=256, grad_accum_steps=1)


def update_of(timeline: Timeline, step: int) -> list[tuple[str, int]]:
    """Kind and size of a step's events from the end of backward on."""
    events, update = timeline.events, list(PeakPhase).index(PeakPhase.OPTIMIZER_STEP)
    sizes = {int(b): int(n) for b, n, k in zip(events.blocks, events.sizes, events.kinds, strict=True) if k == ALLOC}  # fmt: skip
    bounds = [*timeline.step_starts, len(events.kinds)]
    return [
        ("alloc" if events.kinds[j] == ALLOC else "free", sizes[int(events.blocks[j])])
        for j in range(bounds[step], bounds[step + 1])
        if timeline.phase[j] == update
    ]


@pytest.mark.parametrize(
    ("spec", "training"),
    [
        ({"precision": "bf16"}, {}),
        ({"precision": "bf16", "clip": "default"}, {"gradient_clipping": True}),
        ({"precision": "bf16_master"}, {"precision": "bf16_master"}),
        ({"precision": "bf16", "zero_to_zero": True}, {"loop": {"set_grads_to_none": False}}),
    ],
)
def test_updates_are_those_recorded(spec: dict[str, Any], training: dict[str, Any]) -> None:
    case, timeline = recorded(**spec), recorded_twin(training)

    for step in (0, 1):
        assert update_of(timeline, step) == between(case, step, "optimizer", "update")


def test_masters_are_made_once_in_module_order() -> None:
    timeline = recorded_twin({"precision": "bf16_master"})
    num_tensors = len(parameters(2))

    recorded_sizes = [n for kind, n in between(recorded(precision="bf16_master"), -1, "setup") if kind == "alloc"]  # fmt: skip

    setup = timeline.events.sizes[: timeline.step_starts[0]].tolist()
    assert setup[-num_tensors:] == recorded_sizes[-num_tensors:] == [p.numel * 4 for p in parameters(2)]


LOOPS: list[dict[str, Any]] = [
    {"gradient_clipping": True},
    {"precision": "bf16_master"},
    {"precision": "bf16_master", "gradient_clipping": True},
    {"loop": {"set_grads_to_none": False}},
    {"loop": {"keep_outputs": "step"}},
    {"loop": {"keep_outputs": "backward"}},
    {"loop": {"set_grads_to_none": False, "keep_outputs": "step"}, "gradient_clipping": True},
]


def highest(timeline: Timeline) -> list[int]:
    """Largest sum of live blocks, each rounded up to 512, of every step."""
    events = timeline.events
    sizes = np.zeros(int(events.blocks.max()) + 1, dtype=np.int64)
    is_alloc = events.kinds == ALLOC
    sizes[events.blocks[is_alloc]] = -(-events.sizes[is_alloc] // 512) * 512
    curve = np.cumsum(np.where(is_alloc, 1, -1) * sizes[events.blocks])
    bounds = [*timeline.step_starts, len(curve)]
    return [int(curve[start:stop].max()) for start, stop in pairwise(bounds)]


@pytest.mark.parametrize("training", LOOPS, ids=str)
@pytest.mark.parametrize("placement", [Placement.SINGLE, Placement.DDP, Placement.DDP_BUCKET_VIEW])
@pytest.mark.parametrize(("optimizer", "batch"), [("sgd", 2), ("sgd", 48), ("adamw", 2)])
def test_the_table_peaks_where_the_timeline_does(
    training: dict[str, Any], placement: Placement, optimizer: str, batch: int
) -> None:
    spec = OptimizerSpec.model_validate({"name": optimizer})
    step = make_step(optimizer=spec, micro_batch_size=batch, placement=placement, **training)
    keeps = "keep_outputs" in training.get("loop", {})

    for accum in (1,) if keeps else (1, 2):
        peaks = peaks_of(step, micro_batch_size=batch, grad_accum_steps=accum)
        timeline = timeline_of(
            step, micro_batch_size=batch, grad_accum_steps=accum, program=step_program(training, batch)
        )
        composed, (_, steady, refresh) = int(peaks.nbytes[0]), highest(timeline)
        assert steady == refresh == composed
        terms = breakdown_at(
            step, sizes_of(step, batch)[0], int(peaks.row[0]), composed, later_micro_batch=bool(peaks.later_micro_batch[0])
        )  # fmt: skip
        assert terms.total == composed
        assert min(terms.model_dump().values()) >= 0


def step_program(training: dict[str, Any], batch: int) -> EventProgram:
    spec = make_training(micro_batch_size=batch, **training)
    return program_of(profile_key(make_model(**SMALL), spec), None, spec)


@pytest.mark.parametrize("clips", [False, True])
def test_a_loss_scaler_costs_a_few_numbers(clips: bool) -> None:
    step = make_step()
    scaled = OptimizerOnRank(
        step.tensors, step.optimizer.program, layerwise=False, loop=Loop(scales_loss=True, clips=clips)
    )
    with_scaler = StepMemory(table=step.table, optimizer=scaled, gpu=step.gpu)

    assert with_scaler.resting().total - step.resting().total == SCALER_STATE_BYTES
    assert highest(timeline_of(with_scaler))[1] == int(peaks_of(with_scaler).nbytes[0])


def test_master_weights_are_named() -> None:
    step = make_step(precision="bf16_master")
    peaks = peaks_of(step, seq_len=2)

    terms = breakdown_at(
        step, sizes_of(step, seq_len=2)[0], int(peaks.row[0]), int(peaks.nbytes[0]), later_micro_batch=False
    )

    assert terms.master_weights == sum(round_allocation(4 * p.numel) for p in step.tensors.local)
    assert terms.gradients == terms.master_weights
    assert terms.optimizer_states == 2 * terms.master_weights


def test_copying_to_masters_peaks_at_the_last_large_parameter() -> None:
    example = parameters(2)[0]

    def sized(*numels: int) -> list[HeldParameter]:
        return [type(example)(name=str(j), shape=(n,), role=example.role, element_bytes=2) for j, n in enumerate(numels)]  # fmt: skip

    assert master_copy_bytes(sized(512, 512), 2) == 4 * 1024 + 1024
    assert master_copy_bytes(sized(5120, 256), 2) == 4 * 5120 + 2 * 5120 + 512
    assert master_copy_bytes(sized(512, 512), 0) == 4 * 1024


def test_an_emptied_cache_is_noted_before_every_step() -> None:
    timeline = timeline_of(make_step(loop={"empty_cache_each_step": True}))

    assert timeline.events.releases == timeline.step_starts
    assert timeline_of(make_step()).events.releases == ()
