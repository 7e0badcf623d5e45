"""What a training loop does besides forward, backward and the optimizer's step, and what of it costs memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers import OptimizerEvent, ParameterTensor
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.specs import Precision, TrainingSpec
from whatfits.estimator.units import ALLOCATION_GRANULARITY, round_allocation

__all__ = [
    "MASTER_BYTES",
    "SCALER",
    "SCALER_STATE_BYTES",
    "UNSCALING_BYTES",
    "Loop",
    "clipping_bytes",
    "clipping_events",
    "drop_found_inf_events",
    "loop_of",
    "master_copy_bytes",
    "scaler_state_events",
    "unscaling_events",
]

MASTER_BYTES = 4
"""Bytes per element of a master weight: fp32."""

SCALER = "scaler"
"""Owner of the loss scaler's tensors in optimizer events."""
SCALER_STATE_BYTES = 2 * ALLOCATION_GRANULARITY
"""``_scale`` and ``_growth_tracker``, one fp32 and one int32 number.
Source: torch/amp/grad_scaler.py, `_lazy_init_scale_growth_tracker`."""
UNSCALING_BYTES = 4 * ALLOCATION_GRANULARITY
"""Peak of `unscaling_events`."""

_NUMBER = 4
_CHUNK_ELEMENTS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Conventions of one training loop."""

    master_weights: bool = False
    """Keep fp32 copies of low-precision weights and update those."""
    scales_loss: bool = False
    """Scale the loss and unscale the gradients (`torch.amp.GradScaler`)."""
    clips: bool = False
    """Clip gradients by their global norm."""
    sets_grads_to_none: bool = True
    """Free gradients after the step."""
    empties_cache: bool = False
    """Call `torch.cuda.empty_cache()` before every step."""


def loop_of(training: TrainingSpec) -> Loop:
    """Conventions a training spec asks for."""
    return Loop(
        master_weights=training.precision is Precision.BF16_MASTER,
        scales_loss=training.precision is Precision.FP16_MIXED,
        clips=training.gradient_clipping,
        sets_grads_to_none=training.loop.set_grads_to_none,
        empties_cache=training.loop.empty_cache_each_step,
    )


def clipping_events(gradients: Sequence[ParameterTensor], element_bytes: int) -> list[OptimizerEvent]:
    """What `torch.nn.utils.clip_grad_norm_` allocates and frees: one norm per gradient, their norm, the coefficient.

    Source: torch/nn/utils/clip_grad.py; aten/src/ATen/native/cuda/ForeachReduceOp.cu `foreach_tensor_norm_cuda`, whose
    partial sums are fp32, one per gradient and chunk of 65,536 elements of the largest gradient. Recorded on an H100 in
    bf16, fp32 and fp16_mixed (benchmarks/gpu_recordings).
    Assumes: the default multi-tensor form on CUDA, the 2-norm, gradients of one dtype, the returned norm dropped.
    """
    frame = Frame()
    chunks = max((-(-p.numel // _CHUNK_ELEMENTS) for p in gradients), default=0)
    partial = frame.temporary(_NUMBER * len(gradients) * chunks, "_foreach_norm")
    norms = [frame.temporary(element_bytes, "norm") for _ in gradients]
    frame.free(partial)
    stacked = frame.temporary(len(gradients) * element_bytes, "stack")
    total = frame.temporary(element_bytes, "total_norm")
    frame.free(stacked, *reversed(norms))
    shifted, inverse, coefficient = (frame.temporary(element_bytes, "clip_coef") for _ in range(3))
    frame.free(inverse, shifted)
    clamped = frame.temporary(element_bytes, "clip_coef_clamped")
    frame.free(coefficient, clamped, total)
    return frame.events


def clipping_bytes(gradients: Sequence[ParameterTensor], element_bytes: int) -> int:
    """Peak of `clipping_events`.

    peak = max(512 n + max(round512(4 n c), round512(n s) + 512), 4 x 512), with n gradients of s bytes per element, of
    which the largest has c chunks of 65,536 elements.

    Source: the events.
    """
    chunks = max((-(-p.numel // _CHUNK_ELEMENTS) for p in gradients), default=0)
    norms = ALLOCATION_GRANULARITY * len(gradients)
    partial = round_allocation(_NUMBER * len(gradients) * chunks)
    stacked = round_allocation(element_bytes * len(gradients))
    return max(norms + max(partial, stacked + ALLOCATION_GRANULARITY), 4 * ALLOCATION_GRANULARITY)


def scaler_state_events() -> list[OptimizerEvent]:
    """The scaler's own numbers, made when it first scales a loss."""
    frame = Frame()
    frame.state(SCALER, "_scale", _NUMBER)
    frame.state(SCALER, "_growth_tracker", _NUMBER)
    return frame.events


def unscaling_events() -> list[OptimizerEvent]:
    """What `GradScaler.unscale_` allocates and frees; the last number lives until `GradScaler.update`.

    Source: torch/amp/grad_scaler.py `unscale_`, `_unscale_grads_`: the scale's inverse through fp64, ``found_inf``, and
    both copied per device. Recorded on an H100 (benchmarks/gpu_recordings).
    Assumes: one device; gradients are unscaled in place.
    """
    frame = Frame()
    double, reciprocal = (frame.temporary(2 * _NUMBER, "inv_scale") for _ in range(2))
    frame.free(double)
    inverse = frame.temporary(_NUMBER, "inv_scale")
    frame.free(reciprocal)
    found = frame.temporary(_NUMBER, "found_inf")
    frame.state(SCALER, "found_inf", _NUMBER)
    inverse_on_device = frame.temporary(_NUMBER, "inv_scale")
    frame.free(inverse_on_device, inverse, found)
    return frame.events


def drop_found_inf_events() -> list[OptimizerEvent]:
    """`GradScaler.update` forgets what it found."""
    frame = Frame()
    frame.drop_state(SCALER, "found_inf", _NUMBER)
    return frame.events


def master_copy_bytes(parameters: Sequence[ParameterTensor], gradient_bytes: int) -> int:
    """Gradient bytes at the peak of copying gradients to fp32 one by one, each low-precision one freed once copied.

    peak = max over i of (sum over j <= i of round512(4 e_j)) + (sum over j >= i of round512(s e_j)), with e elements per
    parameter and s bytes per element of the gradients (0 where they live elsewhere, as in DDP's buckets).

    Source: Recorded on an H100 (benchmarks/gpu_recordings, precision bf16_master).
    Assumes: parameters in module order.
    """
    remaining = sum(round_allocation(p.numel * gradient_bytes) for p in parameters)
    copied = peak = 0
    for parameter in parameters:
        copied += round_allocation(parameter.numel * MASTER_BYTES)
        peak = max(peak, copied + remaining)
        remaining -= round_allocation(parameter.numel * gradient_bytes)
    return peak
