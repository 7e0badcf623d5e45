"""Published measurements: what others measured on real GPUs, as data."""

from whatfits.estimator.catalog.published.rows import (
    MEMORY_QUANTITIES,
    Loop,
    PublishedModel,
    PublishedRow,
    Quantity,
    Reading,
    Tool,
    load_loops,
    load_published,
)

__all__ = [
    "MEMORY_QUANTITIES",
    "Loop",
    "PublishedModel",
    "PublishedRow",
    "Quantity",
    "Reading",
    "Tool",
    "load_loops",
    "load_published",
]
