"""What is published about optimizers beside their memory: results next to AdamW's, and their names in the Trainer.

A result counts only where its own table has AdamW too: protocols differ from paper to paper, and ratios across tables
mean nothing.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict

from whatfits.estimator.specs.enums import OptimizerName

__all__ = ["QualityRow", "load_quality", "load_trainer_names"]


class QualityRow(BaseModel):
    """One published result beside AdamW's in the same table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    model: str
    """As the table names it."""
    rank: int | None
    metric: str
    lower_is_better: bool
    value: float
    adamw_value: float
    """AdamW's, or full fine-tuning's, in the same table."""
    source: str
    table: str

    @property
    def ratio_to_adamw(self) -> float:
        """The value over AdamW's."""
        return self.value / self.adamw_value


@lru_cache(maxsize=1)
def load_quality() -> Mapping[OptimizerName, tuple[QualityRow, ...]]:
    """Published results by optimizer, in the order of the data file."""
    found: dict[OptimizerName, tuple[QualityRow, ...]] = {}
    for row in _data()["quality"]:
        name = OptimizerName(row["optimizer"])
        facts = QualityRow.model_validate({key: value for key, value in row.items() if key != "optimizer"})
        found[name] = (*found.get(name, ()), facts)
    return MappingProxyType(found)


@lru_cache(maxsize=1)
def load_trainer_names() -> Mapping[OptimizerName, str]:
    """``optim=`` of Hugging Face's Trainer for the optimizers it has, transformers 4.57 and 5."""
    return MappingProxyType({OptimizerName(key): value for key, value in _data()["trainer_names"].items()})


def _data() -> dict[str, Any]:  # arbitrary JSON
    text = files("whatfits.estimator.catalog.published").joinpath("optimizers.json").read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data
