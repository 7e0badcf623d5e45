"""The constants of the step-time model before any measurement, each with its source.

The numbers live in ``priors.json`` beside this file, each marked as published, fitted or assumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from importlib.resources import files
from typing import Any

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import Dtype, GpuSpec


class Origin(StrEnum):
    """How a constant was come by."""

    PUBLISHED = "published"
    FITTED = "fitted"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """One constant, with its origin and its source."""

    value: float
    origin: Origin
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPriors:
    """The rates of one GPU as the model uses them, in FLOPs and bytes per second."""

    family: str
    peak_flops_per_second: float
    gemm_flops_per_second: float
    attention_flops_per_second: float
    memory_bytes_per_second: float
    optimizer_bytes_per_second: float
    host_link_bytes_per_second: float
    svd_work_per_second: float
    transfer_sigma: float


def _prior(row: Mapping[str, Any]) -> Prior:  # a JSON object
    return Prior(value=float(row["value"]), origin=Origin(row["origin"]), source=row["source"])


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:  # a JSON object
    text = files("whatfits.estimator.time").joinpath("priors.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document


@lru_cache(maxsize=1)
def load_priors() -> Mapping[str, Prior]:
    """Every constant by dotted name: ``common.x``, ``spread.x``, ``family.x``, ``power_capped.x``."""
    document = _document()
    table = {
        f"{part}.{name}": _prior(row) for part in ("common", "spread") for name, row in document[part].items()
    }
    for family in [*document["families"], {"name": "power_capped", **document["power_capped"]}]:
        rows = {name: row for name, row in family.items() if isinstance(row, dict)}
        table |= {f"{family['name']}.{name}": _prior(row) for name, row in rows.items()}
    return table


def common(name: str) -> float:
    """Value of the constant ``common.<name>``."""
    return load_priors()[f"common.{name}"].value


def spread(name: str) -> float:
    """Value of the constant ``spread.<name>``: a standard deviation of the logarithm of the time."""
    return load_priors()[f"spread.{name}"].value


def _family_of(gpu: GpuSpec) -> str:
    for family in _document()["families"]:
        capabilities = family["compute_capabilities"]
        if family["vendor"] in (None, gpu.vendor) and (
            capabilities is None or gpu.compute_capability in capabilities
        ):
            return str(family["name"])
    raise AssertionError("the last family accepts every GPU")


def gpu_priors(gpu: GpuSpec, dtype: Dtype = Dtype.BF16) -> GpuPriors:
    """Achievable rates of a GPU in a dtype: published maxima, else data-sheet peaks, times fractions of its family.

    Assumes: the same fractions of peak in every dtype; fp32 products without TF32, torch's default.

    Raises:
        UnsupportedError: the GPU has no arithmetic in the dtype, or its peak is not known.
    """
    peak, bandwidth = gpu.peak_flops_per_second.get(str(dtype)), gpu.memory_bandwidth_bytes_per_second
    if not peak or (dtype is Dtype.BF16 and not gpu.supports_bf16):
        raise UnsupportedError(
            "hardware.gpu",
            gpu.id,
            f"a GPU with {dtype} arithmetic whose peak the catalog states",
            reason=f"step times need a {dtype} peak and {gpu.id} has none in the catalog",
        )
    family, table = _family_of(gpu), load_priors()
    capped = gpu.id in _document()["power_capped"]["gpu_ids"]
    fraction = table[f"{'power_capped' if capped else family}.gemm_peak_fraction"].value
    gemm_peak = gpu.measured.get(f"{dtype}_gemm_flops_per_second", peak * fraction)
    return GpuPriors(
        family=family,
        peak_flops_per_second=peak,
        gemm_flops_per_second=gemm_peak * table[f"{family}.gemm_shape_fraction"].value,
        attention_flops_per_second=min(gemm_peak, peak * table[f"{family}.attention_fraction"].value),
        memory_bytes_per_second=bandwidth * common("memory_fraction"),
        optimizer_bytes_per_second=bandwidth * common("optimizer_memory_fraction"),
        host_link_bytes_per_second=gpu.pcie_bytes_per_second,
        svd_work_per_second=common("svd_work_per_second")
        * bandwidth
        / common("svd_reference_bytes_per_second"),
        transfer_sigma=table[f"{family}.transfer"].value,
    )
