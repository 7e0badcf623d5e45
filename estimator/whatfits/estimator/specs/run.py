"""One answerable question: model, training, parallelism and hardware together."""

from whatfits.estimator.specs.base import ModelReference, Spec
from whatfits.estimator.specs.enums import AllocatorMode
from whatfits.estimator.specs.hardware import HardwareSpec
from whatfits.estimator.specs.parallelism import ParallelismSpec
from whatfits.estimator.specs.training import TrainingSpec

__all__ = ["RunSpec"]


class RunSpec(Spec):
    """What is asked."""

    model: ModelReference
    """A catalog name, or the content of a Hugging Face config.json."""
    training: TrainingSpec = TrainingSpec()
    """How it is trained."""
    parallelism: ParallelismSpec = ParallelismSpec()
    """How it is spread over the GPUs."""
    hardware: HardwareSpec
    """The GPUs."""
    allocator: AllocatorMode = AllocatorMode.CLASSIC
    """How the caching allocator grows."""
    stack: dict[str, str] | None = None
    """Library versions the run uses, such as {"torch": "2.13"}; the shipped profile's when left out."""
