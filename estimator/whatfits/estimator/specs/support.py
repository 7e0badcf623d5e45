"""What of the valid questions is modelled today. Each line here goes when the option behind it is built."""

from collections.abc import Callable

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs.enums import (
    Framework,
    KeepOutputs,
    Loss,
    Method,
    Objective,
    Offload,
    Precision,
)
from whatfits.estimator.specs.hardware import GpuSpec
from whatfits.estimator.specs.layerwise import FORWARD_ONLY_OPTIMIZERS, ONE_LAYER_OPTIMIZERS
from whatfits.estimator.specs.low_rank import (
    FACTORED_OPTIMIZERS,
    RANKED_OPTIMIZERS,
    WHOLE_MATRIX_OPTIMIZERS,
)
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.plan import PlanRequest
from whatfits.estimator.specs.run import RunSpec

__all__ = ["require_kernel", "require_supported", "require_supported_gpu", "require_supported_request"]

SUPPORTED_FRAMEWORKS = frozenset({Framework.PYTORCH, Framework.FSDP2})
SUPPORTED_PRECISIONS = frozenset(Precision) - {Precision.FP8}
SUPPORTED_OBJECTIVES = frozenset({Objective.THROUGHPUT, Objective.MEMORY})
_LARGEST_FLASH_HEAD_DIM = 256
_BF16_PRECISIONS = frozenset({Precision.BF16, Precision.BF16_MIXED, Precision.BF16_MASTER})
_MIXED_PRECISIONS = frozenset({Precision.BF16_MIXED, Precision.FP16_MIXED})

_SUPPORTED: tuple[tuple[str, Callable[[RunSpec], object], frozenset[object]], ...] = (
    ("training.framework", lambda run: run.training.framework, SUPPORTED_FRAMEWORKS),
    ("training.precision", lambda run: run.training.precision, SUPPORTED_PRECISIONS),
    ("training.compile", lambda run: run.training.compile, frozenset({False})),
    ("training.image_size", lambda run: run.training.image_size, frozenset({None})),
    ("parallelism.zero_stage", lambda run: run.parallelism.zero_stage, frozenset({0, 3})),
    ("parallelism.tp_degree", lambda run: run.parallelism.tp_degree, frozenset({1})),
    ("parallelism.pp_degree", lambda run: run.parallelism.pp_degree, frozenset({1})),
    ("parallelism.cp_degree", lambda run: run.parallelism.cp_degree, frozenset({1})),
    ("parallelism.ep_degree", lambda run: run.parallelism.ep_degree, frozenset({1})),
    (
        "parallelism.reshard_after_forward",
        lambda run: run.parallelism.reshard_after_forward,
        frozenset({True}),
    ),
    ("parallelism.offload", lambda run: run.parallelism.offload, frozenset({Offload.NONE})),
)
"""Field, how to read it, and the values that are modelled."""


def require_supported(run: RunSpec, model: ModelSpec, gpu: GpuSpec) -> None:
    """Raise an `UnsupportedError` for the first option of a valid run that is not modelled yet.

    Whether there is a profile for the run, and what its attention kernel demands (`require_kernel`), shows later.
    """
    for field, read, supported in _SUPPORTED:
        _require(field, read(run), supported)
    require_supported_gpu(gpu, run.training.precision)
    if run.training.seq_len < 2 and model.takes_tokens:
        reason = "a sequence of one token has nothing to predict, and its shapes are not modelled"
        raise UnsupportedError("training.seq_len", run.training.seq_len, "2 and more", reason=reason)
    _require_loop(run)
    _require_method(run, model)
    _require_placement(run)
    _require_of_config(run, model)
    _require_whole_training(run)


def require_supported_request(request: PlanRequest) -> None:
    """Raise an `UnsupportedError` for the first value of a plan request that is not modelled yet."""
    for precision in request.precisions:
        _require("precisions", precision, SUPPORTED_PRECISIONS)
    for framework in request.frameworks:
        _require("frameworks", framework, SUPPORTED_FRAMEWORKS)
    _require("objective", request.objective, SUPPORTED_OBJECTIVES)


def require_supported_gpu(gpu: GpuSpec, precision: Precision, *, field: str = "hardware.gpu") -> None:
    """Raise an `UnsupportedError` for a GPU without a known memory total, or without the precision in hardware."""
    if gpu.total_bytes is None:
        reason = f"no device report of the usable memory of {gpu.name} is known, and the marketed size is not a limit"
        raise UnsupportedError(field, gpu.id, "a GPU whose memory total is known", reason=reason)
    if precision in _BF16_PRECISIONS and not gpu.supports_bf16:
        reason = (
            f"{gpu.name} ({gpu.compute_capability}) has no bf16 arithmetic, and its emulation is not modelled"
        )
        accepted = "precision fp32 or fp16_mixed, or a GPU of compute capability 8.0 or above"
        raise UnsupportedError(field, gpu.id, accepted, reason=reason)


def require_kernel(kernel: str, model: ModelSpec, gpu: GpuSpec) -> None:
    """Raise an `UnsupportedError` where the profile's attention kernel is not the one that would run.

    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash takes heads of up to 256, padded to a multiple
    of 8; the efficient kernel wants multiples of 8 in half precision.
    """
    if kernel == "flash" and not gpu.supports_flash:
        reason = (
            f"{gpu.name} ({gpu.compute_capability}) has no flash attention kernel, the one that was traced"
        )
        accepted = "attention eager, or a GPU of compute capability 8.0 or above"
        raise UnsupportedError("hardware.gpu", gpu.id, accepted, reason=reason)
    if model.config is not None:
        return  # its own heads were traced
    head_dim = model.dims["d"]
    largest = _LARGEST_FLASH_HEAD_DIM if kernel in ("flash", "cudnn") else head_dim
    if kernel in ("flash", "efficient", "cudnn") and (head_dim % 8 or head_dim > largest):
        reason = f"head_dim {head_dim} does not run on the {kernel} kernel as it is"
        accepted = f"a multiple of 8 up to {_LARGEST_FLASH_HEAD_DIM}, or attention eager"
        raise UnsupportedError("model.head_dim", head_dim, accepted, reason=reason)


def _require(field: str, value: object, supported: frozenset[object]) -> None:
    if value not in supported:
        accepted = ", ".join(sorted(_word(option) for option in supported))
        raise UnsupportedError(field, value, accepted, reason=f"{_word(value)} is not modelled yet")


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else str(value)


def _require_loop(run: RunSpec) -> None:
    """Conventions of the loop that are not modelled together."""
    training, loop = run.training, run.training.loop
    precision = training.precision
    if training.layerwise_update and precision in (Precision.BF16_MASTER, Precision.FP16_MIXED):
        what = "copies" if precision is Precision.BF16_MASTER else "unscales"
        reason = (
            f"{precision} {what} all gradients before the update, and layerwise_update frees each at once"
        )
        accepted = "false with bf16_master and fp16_mixed"
        raise UnsupportedError("training.layerwise_update", True, accepted, reason=reason)
    if not loop.set_grads_to_none and precision is Precision.BF16_MASTER:
        reason = "bf16_master frees each gradient once it is copied to fp32"
        raise UnsupportedError(
            "training.loop.set_grads_to_none", False, "true with bf16_master", reason=reason
        )
    if loop.keep_outputs is not KeepOutputs.NO and training.grad_accum_steps > 1:
        reason = f"outputs kept over {training.grad_accum_steps} micro-batches are not modelled yet"
        raise UnsupportedError(
            "training.loop.keep_outputs",
            str(loop.keep_outputs),
            "no with grad_accum_steps above 1",
            reason=reason,
        )
    if loop.keep_outputs is not KeepOutputs.NO and training.loss is not Loss.STANDARD:
        reason = f"the outputs of a {training.loss} loss are not modelled yet"
        raise UnsupportedError(
            "training.loop.keep_outputs",
            str(loop.keep_outputs),
            f"no with loss {training.loss}",
            reason=reason,
        )


def _require_method(run: RunSpec, model: ModelSpec) -> None:
    training, axes = run.training, run.parallelism
    if training.method is Method.FULL:
        return
    if axes.dp_shard_degree > 1:
        reason = f"{training.method} adapters of sharded parameters are not modelled yet"
        raise UnsupportedError(
            "training.method", str(training.method), "full with dp_shard_degree above 1", reason=reason
        )
    name = training.optimizer.name
    if name in RANKED_OPTIMIZERS:
        reason = f"{name} projects whole weight matrices, and of {model.name} only adapters train"
        raise UnsupportedError(
            "training.optimizer.name", str(name), f"an optimizer without a rank for {training.method}",
            reason=reason,
        )  # fmt: skip


def _require_whole_training(run: RunSpec) -> None:
    """One without a backward pass is no such run; one that freezes layers in turn has code for one GPU, and fp32 copies."""
    name, training = run.training.optimizer.name, run.training
    if name in FORWARD_ONLY_OPTIMIZERS:
        reason = f"{name} has no backward pass, and every profile of a run has one"
        accepted = "an optimizer that steps on gradients"
        raise UnsupportedError("training.optimizer.name", str(name), accepted, reason=reason)
    if name not in ONE_LAYER_OPTIMIZERS:
        return
    if run.hardware.num_gpus > 1:
        reason = f"{name} freezes other layers every few steps, which DDP and FSDP do not follow"
        raise UnsupportedError("hardware.num_gpus", run.hardware.num_gpus, f"1 for {name}", reason=reason)
    if training.method is not Method.FULL:
        reason = f"{name} around an adapter is not modelled"
        raise UnsupportedError("training.method", str(training.method), f"full for {name}", reason=reason)
    if training.precision in (Precision.BF16_MASTER, Precision.FP16_MIXED):
        reason = f"{name} keeps fp32 copies of its own, and its gradients are never scaled"
        accepted = f"bf16, bf16_mixed or fp32 for {name}"
        raise UnsupportedError("training.precision", str(training.precision), accepted, reason=reason)


def _require_of_config(run: RunSpec, model: ModelSpec) -> None:
    """What profiles of one config do not know."""
    if model.config is None:
        return
    training = run.training
    for field, value, accepted in (
        ("training.method", training.method, frozenset({Method.FULL})),
        ("training.loss", training.loss, frozenset({Loss.STANDARD})),
        ("training.packed_sequences", training.packed_sequences, frozenset({False})),
        ("training.dropout", training.dropout, frozenset({0.0})),
    ):
        if value not in accepted:
            only = ", ".join(_word(option) for option in accepted)
            reason = f"{_word(value)} is not modelled yet for {model.architecture}"
            raise UnsupportedError(field, value, only, reason=reason)
    name = training.optimizer.name
    if name in ONE_LAYER_OPTIMIZERS or (name in FACTORED_OPTIMIZERS and not model.matrices_only):
        reason = f"{name} of {model.architecture} is not modelled yet"
        raise UnsupportedError("training.optimizer.name", str(name), "another optimizer", reason=reason)


def _require_placement(run: RunSpec) -> None:
    training, axes = run.training, run.parallelism
    mixed = training.precision in _MIXED_PRECISIONS
    if training.framework is Framework.FSDP2 and mixed and axes.dp_shard_degree == 1:
        reason = (
            f"{training.precision} is a cast when shards are gathered under fsdp2, and nothing is sharded"
        )
        accepted = f"pytorch for {training.precision} with dp_shard_degree 1"
        raise UnsupportedError("training.framework", str(training.framework), accepted, reason=reason)
    if axes.dp_shard_degree == 1:
        return
    if axes.dp_replicate_degree > 1:
        reason = f"{axes.dp_replicate_degree} replicas of {axes.dp_shard_degree} shards are not modelled yet"
        accepted = "dp_replicate_degree 1 with dp_shard_degree above 1"
        raise UnsupportedError(
            "parallelism.dp_replicate_degree", axes.dp_replicate_degree, accepted, reason=reason
        )
    if training.layerwise_update:
        reason = "layerwise_update of sharded parameters is not modelled yet"
        raise UnsupportedError(
            "training.layerwise_update", True, "false with dp_shard_degree above 1", reason=reason
        )
    name = training.optimizer.name
    if name in WHOLE_MATRIX_OPTIMIZERS:
        reason = f"{name} takes whole matrices, and its published code does not run on sharded ones"
        raise UnsupportedError(
            "training.optimizer.name", str(name), "one GPU or DDP for this optimizer", reason=reason
        )
