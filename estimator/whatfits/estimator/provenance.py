"""What an answer rests on, in words."""

from collections.abc import Iterator

from whatfits.estimator.memory.classes import casts_when_gathered
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.device import CONTEXT_RECORDED_ON, TOTAL_ESTIMATE_ERROR, context_bytes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import (
    Attention,
    Basis,
    GpuSpec,
    KeepOutputs,
    Loss,
    Method,
    Precision,
    Provenance,
    RunSpec,
    TrainingSpec,
)
from whatfits.estimator.units import format_bytes

__all__ = ["loop_assumption", "provenance_of"]

_STEP_TIME = (
    "Step time is a model with published and fitted rates, not a measurement; its 90% interval is wide."
)
_DIRECT = "Memory is from a direct trace of this micro-batch and sequence length alone: {reason}."
_FSDP = (
    "FSDP memory counts two gathered layers, the root's weights and one layer's gradients in two copies; the "
    "allocator's pools per stream are covered by a wider interval, not replayed."
)
_ESTIMATED_TOTAL = (
    "The memory total of {gpu} is not from a device's own report; the verdict allows {error:.0%} for that."
)
_KEPT = {
    KeepOutputs.NO: "only the loss kept",
    KeepOutputs.BACKWARD: "outputs kept until backward is over",
    KeepOutputs.STEP: "outputs kept until the step is over",
}


def loop_assumption(training: TrainingSpec) -> str:
    """The training loop in one sentence."""
    loop = training.loop
    parts = [
        "labels passed",
        "positions that restart in each document" if training.packed_sequences else "no attention mask",
        _KEPT[loop.keep_outputs],
        "gradients set to None after the step"
        if loop.set_grads_to_none
        else "gradients kept and filled with zeros",
        *(["the cache emptied before each step"] if loop.empty_cache_each_step else []),
        *(["gradients clipped by torch.nn.utils.clip_grad_norm_"] if training.gradient_clipping else []),
    ]
    return f"Training loop: {', '.join(parts)}."


def provenance_of(run: RunSpec, memory: StepMemory, assumptions: tuple[str, ...]) -> Provenance:
    """Provenance of an answer that no measurement has entered."""
    found = [*assumptions, loop_assumption(run.training), *_training(run.training, memory)]
    found += [_device(memory.gpu), _STEP_TIME]
    if memory.table.fallback:
        found.append(_DIRECT.format(reason=memory.table.fallback))
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


def _device(gpu: GpuSpec) -> str:
    """Where what a process takes beside its tensors comes from."""
    context = context_bytes(gpu)
    source = "recorded on an H100" if gpu.compute_capability == CONTEXT_RECORDED_ON else "published figures"
    return (
        f"CUDA context: about {format_bytes(context.median)}, {format_bytes(context.low)} to {format_bytes(context.high)} "
        f"({source}); NCCL buffers are a range of published figures."
    )


def _training(training: TrainingSpec, memory: StepMemory) -> Iterator[str]:
    """What precision, method and attention are taken to mean."""
    if training.precision is Precision.BF16_MASTER:
        yield (
            "bf16_master: fp32 copies of all trainable weights; gradients accumulate in bf16, are copied to fp32 one by "
            "one and freed, and the optimizer updates the fp32 copies."
        )
    if training.precision is Precision.FP16_MIXED:
        yield "fp16_mixed: the loss is scaled and gradients are unscaled by torch.amp.GradScaler."
    if casts_when_gathered(training):
        yield (
            f"{training.precision} under fsdp2: fp32 shards, cast when gathered, gradients reduced in fp32 "
            "(MixedPrecisionPolicy); no cast copies are held."
        )
    if training.method is not Method.FULL:
        yield _adapter(training, memory)
    if training.attention is Attention.FLASH_ATTENTION_2:
        yield "flash_attention_2 is answered with torch's own flash kernel, which allocates alike."
    if training.attention is Attention.EAGER or training.loss is not Loss.STANDARD:
        yield "Step time does not know eager attention's or another loss's kernels; such steps are slower."


def _adapter(training: TrainingSpec, memory: StepMemory) -> str:
    tensors, adapter = memory.tensors, training.adapter
    assert adapter is not None
    assert adapter.targets is not None, "filled in when the run was resolved"
    trained = sum(p.numel for p in tensors.trained)
    return (
        f"{training.method} of rank {adapter.rank} on {', '.join(adapter.targets)}: {trained:,} trainable parameters "
        f"in {8 * tensors.trained_element_bytes} bits; all others are frozen."
    )
