"""Forward and backward of a step, kernel by kernel and mask by mask, equal those recorded on an H100, event for event."""

from typing import Any

import pytest

from tests.profiler.trace.recorded_steps import (
    KERNELS,
    TINY,
    assert_same_events,
    recorded_events,
    traced_events,
)
from whatfits.profiler.trace.options import StepOptions

GROUPED = {**TINY, "k": 2, "b": 1, "s": 500}
BEFORE_FIRST_LAYER = 90
"""Events that make a mask come before those of the rotary embedding."""


@pytest.mark.parametrize(
    ("spec", "dims", "options"),
    [
        *(({"kernel": k}, TINY, {"kernels": (k,)}) for k in ("flash", "efficient", "math", "cudnn")),
        *(
            ({"kernel": k, "model": "tiny-gqa", "b": 1, "s": 500}, GROUPED, {"kernels": (k,)})
            for k in ("flash", "math", "cudnn")
        ),
        ({"kernel": "math", "precision": "fp32"}, TINY, {"kernels": ("math",), "precision": "fp32"}),
        (
            {"kernel": "efficient", "precision": "fp32"},
            TINY,
            {"kernels": ("efficient",), "precision": "fp32"},
        ),
        ({"attention": "eager"}, TINY, {"attention": "eager"}),
        ({"attention_dropout": 0.1}, TINY, {"dropout": 0.1}),
        ({"attention_dropout": 0.1, "attention": "eager"}, TINY, {"dropout": 0.1, "attention": "eager"}),
        ({"attention_dropout": 0.1, "precision": "fp32"}, TINY, {"dropout": 0.1, "precision": "fp32"}),
        ({"b": 2, "s": 2048}, {**TINY, "s": 2048}, {}),
        ({"b": 3, "s": 1000}, {**TINY, "b": 3, "s": 1000}, {}),
    ],
    ids=str,
)
def test_kernels_dropout_and_lengths(
    spec: dict[str, Any], dims: dict[str, int], options: dict[str, Any]
) -> None:
    traced = traced_events(dims, StepOptions(**{"kernels": KERNELS, **options}))

    assert_same_events(traced, recorded_events("steps", **spec), before_first_layer=BEFORE_FIRST_LAYER)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("mask", ["ones", "padded", "packed"])
@pytest.mark.parametrize(("b", "s"), [(2, 256), (1, 500)])
def test_masks(mask: str, attention: str, b: int, s: int) -> None:
    options = StepOptions(mask=mask, attention=attention, kernels=KERNELS)
    traced = traced_events({**TINY, "b": b, "s": s}, options)

    recorded = recorded_events("steps", mask=mask, attention=attention, b=b, s=s)
    if mask == "packed":  # transformers compares the documents in another way now
        length = len(recorded) - BEFORE_FIRST_LAYER
        assert traced[-length:] == recorded[-length:]
    else:
        assert_same_events(traced, recorded, before_first_layer=BEFORE_FIRST_LAYER)
