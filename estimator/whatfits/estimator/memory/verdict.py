"""From device bytes with an interval to a verdict: the probability that usable memory suffices."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.device import TOTAL_ESTIMATE_ERROR, Interval
from whatfits.estimator.specs import GpuSpec, HardwareSpec, Verdict

__all__ = ["FAILS_AT", "FITS_AT", "Usable", "combine", "fit_probability", "usable_memory", "verdict_of"]

FITS_AT, FAILS_AT = 0.95, 0.05
_NINETY = 1.6448536269514722
"""Standard deviations from the median to the 95% quantile of a normal distribution."""


@dataclass(frozen=True, slots=True)
class Usable:
    """Bytes a run may use on one device, and the half width of their 90% interval."""

    nbytes: int
    error: float


def usable_memory(gpu: GpuSpec, hardware: HardwareSpec) -> Usable:
    """The device's own total, or the cap the user set on it; never the marketed size."""
    total = gpu.total_bytes
    assert total is not None, "support is checked before"
    if hardware.memory_cap_bytes is not None:
        return Usable(min(total, hardware.memory_cap_bytes), 0.0)
    return Usable(total, TOTAL_ESTIMATE_ERROR * total if gpu.total_bytes_is_estimate else 0.0)


def combine(
    fixed: NDArray[np.float64], slack: Sequence[NDArray[np.float64]], *constants: Interval
) -> tuple[NDArray[np.float64], ...]:
    """Low, median and high of fixed + slack + the sum of the constants; `slack` is low, median and high in bytes.

    Deviations from the medians are taken as independent: they add in squares, on each side by itself.
    """
    least, middle, most = slack
    median = fixed + middle + sum(c.median for c in constants)
    down = np.sqrt((middle - least) ** 2 + sum((c.median - c.low) ** 2 for c in constants))
    up = np.sqrt((most - middle) ** 2 + sum((c.high - c.median) ** 2 for c in constants))
    return median - down, median, median + up


def fit_probability(low: float, median: float, high: float, usable: Usable) -> float:
    """Probability that device bytes stay within usable memory.

    p = Phi((usable - median) / sigma), sigma from the interval's side that usable lies on, together with the error
    of usable itself. p is 0.95 where usable equals high, 0.05 where it equals low.

    Assumes: each side normal.
    """
    side = median - low if usable.nbytes < median else high - median
    sigma = sqrt(side**2 + usable.error**2) / _NINETY
    if sigma == 0:
        return 1.0 if usable.nbytes >= median else 0.0
    return 0.5 * (1 + erf((usable.nbytes - median) / sigma / sqrt(2)))


def verdict_of(probability: float) -> Verdict:
    """`yes` at 0.95 and above, `no` at 0.05 and below."""
    if probability >= FITS_AT:
        return Verdict.YES
    return Verdict.NO if probability <= FAILS_AT else Verdict.UNCERTAIN
