"""Forward and backward in every precision against an H100, event for event."""

from itertools import product

import pytest

from tests.profiler.trace.recorded_steps import (
    KERNELS,
    TINY,
    assert_same_events,
    recorded_events,
    traced_events,
)
from whatfits.profiler.trace.options import StepOptions

VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"checkpointing": "non_reentrant"},
    {"attention": "eager"},
)
CASES = (
    *product(("fp32", "bf16", "bf16_mixed", "fp16_mixed"), VARIANTS),
    ("bf16_mixed", {"keep_outputs": True}),
    ("bf16_mixed", {"b": 4, "s": 500}),
    ("bf16_mixed", {"b": 1, "s": 256}),
)


@pytest.mark.parametrize(("precision", "variant"), CASES)
def test_every_event(precision: str, variant: dict[str, object]) -> None:
    options = StepOptions(
        precision=precision,
        attention=str(variant.get("attention", "sdpa")),
        kernels=KERNELS,
        checkpointing="full" if "checkpointing" in variant else "none",
        keep_outputs=bool(variant.get("keep_outputs", False)),
    )
    events_of_mask = 8 if options.attention == "eager" else 0
    sizes = {name: value for name, value in variant.items() if isinstance(value, int) and name in TINY}

    assert_same_events(
        traced_events({**TINY, **sizes}, options),
        recorded_events("steps", precision=precision, **variant),
        ordered_frees=not precision.endswith("_mixed"),
        before_first_layer=45 + events_of_mask,
    )
