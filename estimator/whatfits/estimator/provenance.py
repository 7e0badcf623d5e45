"""What an answer rests on, in words."""

from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.device import TOTAL_ESTIMATE_ERROR, context_bytes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import Basis, Provenance, RunSpec
from whatfits.estimator.units import format_bytes

__all__ = ["LOOP_ASSUMPTIONS", "provenance_of"]

LOOP_ASSUMPTIONS = (
    "Training loop: labels passed, no attention mask, only the loss kept, gradients set to None after the step.",
    f"CUDA context (about {format_bytes(context_bytes().median)}) and NCCL buffers are ranges of published figures until this machine is measured.",
    "Step time is a model with published and fitted rates, not a measurement; its 90% interval is wide.",
)
_FSDP = (
    "FSDP memory counts two gathered layers, the root's weights and one layer's gradients in two copies; the "
    "allocator's pools per stream are covered by a wider interval, not replayed."
)
_ESTIMATED_TOTAL = (
    "The memory total of {gpu} is not from a device's own report; the verdict allows {error:.0%} for that."
)


def provenance_of(run: RunSpec, memory: StepMemory, assumptions: tuple[str, ...]) -> Provenance:
    """Provenance of an answer that no measurement has entered."""
    found = [*assumptions, *LOOP_ASSUMPTIONS]
    if memory.tensors.placement is Placement.FSDP:
        found.append(_FSDP)
    if memory.gpu.total_bytes_is_estimate and run.hardware.memory_cap_bytes is None:
        found.append(_ESTIMATED_TOTAL.format(gpu=memory.gpu.id, error=TOTAL_ESTIMATE_ERROR))
    return Provenance(
        basis=Basis.ANALYTICAL,
        profile=memory.table.key.slug,
        stack=dict(memory.table.stack),
        kernel=memory.table.kernel,
        assumptions=tuple(found),
    )
