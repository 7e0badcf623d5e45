"""Constants beside the allocator."""

import pytest

from tests.factories import make_gpu
from tests.golden.gpu_recordings import RECORDINGS
from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.memory.device import (
    ALLOCATOR_OVERHEAD,
    FSDP_OVERHEAD,
    REPLAY_ERROR,
    communicator_bytes,
    context_bytes,
    cublas_workspace_bytes,
    gpu_symbols,
)
from whatfits.profiler.measure.recordings import read_recording


def test_intervals_are_in_order() -> None:
    contexts = (context_bytes(find_gpu(name)) for name in ("a100-80gb-sxm", "h100-80gb-sxm"))
    for interval in (ALLOCATOR_OVERHEAD, FSDP_OVERHEAD, REPLAY_ERROR, *contexts, communicator_bytes(8)):
        assert interval.low <= interval.median <= interval.high


def test_the_context_of_a_recorded_device_holds_every_recorded_run() -> None:
    """Device memory beside reserved, of 99 runs one after the other in one process on an H100."""
    used = [
        case.device_used - phase["reserved"]
        for case in read_recording(RECORDINGS / "speed.jsonl.gz")
        for phase in case.phases
        if phase["phase"] == "teardown"
    ]
    context = context_bytes(find_gpu("h100-80gb-sxm"))

    assert len(used) > 90
    assert context.low <= min(used) <= context.median <= max(used) <= context.high
    assert context.median == pytest.approx(used[0], rel=0.02)


def test_one_gpu_needs_no_communicator() -> None:
    assert communicator_bytes(1).high == 0
    assert communicator_bytes(2).low > 0


@pytest.mark.parametrize(
    ("capability", "nbytes"),
    [("7.0", 8_519_680), ("8.0", 8_519_680), ("8.9", 8_519_680), ("9.0", 33_554_432), ("10.0", 33_554_432), ("gfx942", 33_554_432)],
)  # fmt: skip
def test_workspaces_as_seen_in_device_histories(capability: str, nbytes: int) -> None:
    assert cublas_workspace_bytes(make_gpu(compute_capability=capability)) == nbytes


@pytest.mark.parametrize(
    ("gpu", "symbols"),
    [
        ("a100-80gb-sxm", {"sms": 108, "threads_per_sm": 2048}),
        ("h100-80gb-sxm", {"sms": 132, "threads_per_sm": 2048}),
        ("rtx-4090", {"sms": 128, "threads_per_sm": 1536}),
        ("t4", {"sms": 40, "threads_per_sm": 1024}),
    ],
)
def test_scratch_depends_on_the_gpus_own_multiprocessors(gpu: str, symbols: dict[str, int]) -> None:
    """Figures of NVIDIA's data sheets and of the CUDA programming guide."""
    assert gpu_symbols(find_gpu(gpu)) == symbols
