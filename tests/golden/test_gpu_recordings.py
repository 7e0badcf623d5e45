"""A sample of the histories recorded on an H100 is replayed exactly; `make verify` takes all of them."""

import pytest

from tests.golden.gpu_recordings import WITH_HISTORY, compare_recording


@pytest.mark.parametrize("part", WITH_HISTORY)
def test_recorded_histories_are_replayed_exactly(part: str) -> None:
    total = compare_recording(part, every=20 if part == "ops" else 12)

    assert total["placements"] > 1000
    for what in ("placements", "segments", "releases"):
        assert total[f"{what}_exact"] == total[what]
