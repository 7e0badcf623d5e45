"""The rows of the model catalog as its data file has them."""

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

__all__ = ["catalog_rows"]


@lru_cache(maxsize=1)
def catalog_rows() -> list[dict[str, Any]]:
    """Rows of models.json; those with `facts` are of architectures that only a trace knows."""
    text = files("whatfits.estimator.catalog").joinpath("models.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(text)["models"]
    return rows
