"""The memory part of an answer, from the table and from a replay."""

from typing import Any

import numpy as np
import pytest

from tests.estimator.memory.steps import SMALL, make_step, peaks_of, sizes_of, timeline_of
from tests.factories import make_gpu, make_model
from whatfits.estimator.memory.device import (
    ALLOCATOR_OVERHEAD,
    FSDP_OVERHEAD,
    LARGEST_BLOCK_OVERHEAD,
    communicator_bytes,
    context_bytes,
)
from whatfits.estimator.memory.estimate import (
    Device,
    memory_from_replay,
    memory_from_table,
    table_device_bytes,
)
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.verdict import Usable
from whatfits.estimator.specs import AllocatorMode, MemoryEstimate
from whatfits.estimator.units import GIB

STEP = make_step()
ROOMY = Device(gpu=make_gpu(), usable=Usable(80 * GIB, 0.0), num_gpus=1)


def replayed(device: Device = ROOMY, mode: AllocatorMode = AllocatorMode.CLASSIC) -> MemoryEstimate:
    return memory_from_replay(timeline_of(STEP), int(peaks_of(STEP).nbytes[0]), mode, device)


@pytest.mark.parametrize("mode", list(AllocatorMode))
def test_replayed_answer_is_in_order_and_sums(mode: AllocatorMode) -> None:
    memory = replayed(mode=mode)

    assert memory.peak_allocated_bytes is not None
    assert memory.required_reserved_bytes is not None
    assert memory.peak_reserved_bytes is not None
    assert memory.peak_requested_bytes <= memory.peak_allocated_bytes
    assert memory.peak_allocated_bytes <= memory.required_reserved_bytes <= memory.peak_reserved_bytes
    assert memory.breakdown.total == memory.peak_allocated_bytes
    assert memory.device_breakdown.total == memory.device_bytes.median
    assert memory.device_bytes.low < memory.device_bytes.median < memory.device_bytes.high
    assert memory.headroom_bytes == memory.usable_bytes - memory.device_bytes.median


def test_a_roomy_device_needs_no_retries_and_a_hopeless_one_fits_nothing() -> None:
    assert replayed().alloc_retries_expected is False
    assert ROOMY.probability(replayed()) > 0.999

    tiny = Device(gpu=make_gpu(), usable=Usable(GIB // 64, 0.0), num_gpus=1)
    assert tiny.probability(replayed(tiny)) < 0.001


def test_a_cap_between_what_is_required_and_what_would_be_reserved_makes_the_allocator_retry() -> None:
    step = make_step(micro_batch_size=16)
    timeline = timeline_of(step, micro_batch_size=16, seq_len=512)
    peak = int(peaks_of(step, micro_batch_size=16, seq_len=512).nbytes[0])
    roomy = memory_from_replay(timeline, peak, AllocatorMode.CLASSIC, ROOMY)
    required, reserved = roomy.required_reserved_bytes, roomy.peak_reserved_bytes
    assert required is not None
    assert reserved is not None
    assert required < reserved

    cap = (required + reserved) // 2 + round(context_bytes(make_gpu()).median)
    device = Device(gpu=make_gpu(), usable=Usable(cap, 0.0), num_gpus=1)
    tight = memory_from_replay(timeline, peak, AllocatorMode.CLASSIC, device)

    assert tight.alloc_retries_expected is True
    assert (tight.required_reserved_bytes, tight.peak_reserved_bytes) == (required, reserved)


def test_answer_from_the_table_has_no_replay_fields_and_sums() -> None:
    sizes = sizes_of(STEP)
    peaks = STEP.peaks(sizes, accumulated=np.array([False]))
    memory = memory_from_table(STEP, sizes, peaks, 0, ROOMY)

    assert memory.peak_requested_bytes == int(peaks.nbytes[0])
    assert (memory.peak_allocated_bytes, memory.peak_reserved_bytes, memory.required_reserved_bytes) == (
        None,
    ) * 3
    assert memory.breakdown.total == memory.peak_requested_bytes
    assert memory.device_breakdown.total == memory.device_bytes.median


@pytest.mark.parametrize("micro_batch_size", [1, 4, 16])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_interval_without_a_replay_holds_what_a_replay_needs(
    micro_batch_size: int, checkpointing: str
) -> None:
    """Small models with logits of up to a third of their memory, which fragment most."""
    shape: dict[str, Any] = {"micro_batch_size": micro_batch_size, "seq_len": 512}
    step = make_step(
        make_model(**{**SMALL, "vocab_size": 32000}),
        micro_batch_size=micro_batch_size,
        checkpointing=checkpointing,
    )
    peaks = peaks_of(step, **shape)
    sizes = sizes_of(step, micro_batch_size, 512)

    table = memory_from_table(step, sizes, peaks, 0, ROOMY)
    exact = memory_from_replay(timeline_of(step, **shape), int(peaks.nbytes[0]), AllocatorMode.CLASSIC, ROOMY)

    assert table.device_bytes.low <= exact.device_bytes.median <= table.device_bytes.high


def test_sharded_answers_are_wider() -> None:
    peaks, largest = np.array([10e9]), np.array([1e9])
    ranges = {
        placement: table_device_bytes(peaks, largest, placement, ROOMY)
        for placement in (Placement.SINGLE, Placement.FSDP)
    }
    widths = {placement: float((high - low)[0]) for placement, (low, _, high) in ranges.items()}

    assert widths[Placement.FSDP] > widths[Placement.SINGLE]
    block = 1e9 * LARGEST_BLOCK_OVERHEAD.median
    expected = 10e9 * (1 + ALLOCATOR_OVERHEAD.median) + block + context_bytes(make_gpu()).median
    assert float(ranges[Placement.SINGLE][1][0]) == pytest.approx(expected)
    sharded = 10e9 * (1 + FSDP_OVERHEAD.median) + block + context_bytes(make_gpu()).median
    assert float(ranges[Placement.FSDP][1][0]) == pytest.approx(sharded)


def test_more_gpus_bring_communicators() -> None:
    alone, together = (Device(gpu=make_gpu(), usable=Usable(80 * GIB, 0.0), num_gpus=n) for n in (1, 8))
    memory = [replayed(device) for device in (alone, together)]

    difference = memory[1].device_bytes.median - memory[0].device_bytes.median
    assert difference == round(communicator_bytes(8).median)


def test_replayed_breakdown_names_what_the_table_names() -> None:
    memory = replayed()
    table = memory_from_table(STEP, sizes_of(STEP), peaks_of(STEP), 0, ROOMY)

    for name in ("optimizer_states", "workspace", "communication_buffers"):
        assert getattr(memory.breakdown, name) == pytest.approx(getattr(table.breakdown, name), rel=0.02)


def test_activations_show_where_they_are() -> None:
    model = make_model(**SMALL)
    step = make_step(model, micro_batch_size=64)
    peaks = peaks_of(step, micro_batch_size=64, seq_len=512)
    memory = memory_from_table(step, sizes_of(step, 64, 512), peaks, 0, ROOMY)

    assert memory.breakdown.activations + memory.breakdown.logits_and_loss > memory.peak_requested_bytes / 2
