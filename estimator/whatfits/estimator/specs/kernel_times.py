"""Single operations of a device, timed."""

from whatfits.estimator.specs.base import MeasuredBytes, NonNegative, Spec
from whatfits.estimator.specs.measurement import MeasuredEnvironment

__all__ = ["KernelTimes", "MicroBenchmark"]


class KernelTimes(Spec):
    """One operation alone on a device, again and again."""

    kernel: str
    """Name of the operation, such as `mm`."""
    shape: dict[str, int]
    """Sizes by name."""
    dtype: str
    """Of its tensors."""
    samples_seconds: tuple[NonNegative, ...]
    """Every call's time, in order, after warm-up."""
    flops: NonNegative | None
    """Of one call; null where it depends on the data, as of an SVD."""
    bytes: MeasuredBytes | None
    """Read and written by one call, each tensor once; of a collective the message; null where it depends on the data."""


class MicroBenchmark(Spec):
    """Kernels of one device."""

    environment: MeasuredEnvironment
    """Where and with what."""
    kernels: tuple[KernelTimes, ...]
    """In the order they ran."""
    complete: bool
    """Whether all ran in the time there was."""
