"""The search for the largest micro-batch, as it is answered."""

from whatfits.estimator.specs.base import Spec
from whatfits.estimator.specs.measurement import Measurement

__all__ = ["MicroBatchSearch"]


class MicroBatchSearch(Spec):
    """The largest micro-batch that a device carries, found by trying."""

    max_micro_batch_size: int | None
    """The largest that ran; null when not even one sequence did."""
    smallest_too_large: int | None
    """The smallest that did not; null when all that were tried ran, up to the limit."""
    guess: int
    """The estimate's, where the search began."""
    limit_bytes: int | None
    """On a CPU: the bytes of live tensors that were allowed."""
    probes: tuple[Measurement, ...]
    """Every run, in order."""
