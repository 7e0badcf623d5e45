"""The buffers of split reductions equal those an H100's allocator gave out, over the recorded shapes."""

import pytest

from tests.estimator.memory.optimizers.recorded_traces import recorded_cases, recorded_phases
from whatfits.estimator.memory.optimizers.device_scratch import column_scratch_bytes, full_scratch_bytes

TO_ONE = ("sum_all", "norm_all")
OVER_ROWS = ("sum_rows", "norm_rows", "amax_rows")
OVER_COLUMNS = ("mean_columns", "sum_columns")


def recorded_scratch(ops: tuple[str, ...]) -> dict[tuple[str, str, int, int], tuple[int, ...]]:
    """Sizes a reduction allocated after its output, by operation, dtype and shape."""
    found = {}
    for case in recorded_cases("ops"):
        spec = case["spec"]
        if spec["op"] in ops:
            (events,) = [events for phase, _, events in recorded_phases(case) if phase == "call"]
            allocated = tuple(event.nbytes for event in events if event.kind == "alloc")
            found[spec["op"], spec["dtype"], spec["n"], spec["o"]] = allocated[1:]
    return found


@pytest.mark.parametrize(("ops", "count"), [(TO_ONE, 256), (OVER_ROWS, 512), (OVER_COLUMNS, 256)])
def test_recorded_reductions(ops: tuple[str, ...], count: int) -> None:
    """1 to 32,768 rows of 64 to 32,000 columns, fp32 and bf16."""
    recorded = recorded_scratch(ops)
    rules = {
        TO_ONE: lambda rows, columns: full_scratch_bytes(rows * columns),
        OVER_ROWS: column_scratch_bytes,
        OVER_COLUMNS: lambda *_: (),
    }

    computed = {key: rules[ops](*key[2:]) for key in recorded}

    assert computed == recorded
    assert len(recorded) == count
