"""Constants beside the allocator."""

import pytest

from tests.factories import make_gpu
from whatfits.estimator.memory.device import (
    ALLOCATOR_OVERHEAD,
    FSDP_OVERHEAD,
    REPLAY_ERROR,
    communicator_bytes,
    context_bytes,
    cublas_workspace_bytes,
)


def test_intervals_are_in_order() -> None:
    for interval in (ALLOCATOR_OVERHEAD, FSDP_OVERHEAD, REPLAY_ERROR, context_bytes(), communicator_bytes(8)):
        assert interval.low <= interval.median <= interval.high


def test_one_gpu_needs_no_communicator() -> None:
    assert communicator_bytes(1).high == 0
    assert communicator_bytes(2).low > 0


@pytest.mark.parametrize(
    ("capability", "nbytes"),
    [("7.0", 8_519_680), ("8.0", 8_519_680), ("8.9", 8_519_680), ("9.0", 33_554_432), ("10.0", 33_554_432), ("gfx942", 33_554_432)],
)  # fmt: skip
def test_workspaces_as_seen_in_device_histories(capability: str, nbytes: int) -> None:
    assert cublas_workspace_bytes(make_gpu(compute_capability=capability)) == nbytes
