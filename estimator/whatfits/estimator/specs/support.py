"""What of the valid questions is modelled today. Each line here goes when the option behind it is built."""

from collections.abc import Callable

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs.enums import (
    ActivationCheckpointing,
    Attention,
    Framework,
    Loss,
    Method,
    Objective,
    Offload,
    Precision,
)
from whatfits.estimator.specs.hardware import GpuSpec
from whatfits.estimator.specs.low_rank import RANKED_OPTIMIZERS
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.plan import PlanRequest
from whatfits.estimator.specs.run import RunSpec

__all__ = ["require_supported", "require_supported_gpu", "require_supported_request"]

SUPPORTED_METHODS = frozenset({Method.FULL})
SUPPORTED_FRAMEWORKS = frozenset({Framework.PYTORCH, Framework.FSDP2})
SUPPORTED_PRECISIONS = frozenset({Precision.BF16})
SUPPORTED_OBJECTIVES = frozenset({Objective.THROUGHPUT, Objective.MEMORY})
_ATTENTIONS = frozenset({Attention.AUTO, Attention.SDPA, Attention.FLASH_ATTENTION_2})
_CHECKPOINTINGS = frozenset({ActivationCheckpointing.NONE, ActivationCheckpointing.FULL})
_LARGEST_FLASH_HEAD_DIM = 256

_SUPPORTED: tuple[tuple[str, Callable[[RunSpec], object], frozenset[object]], ...] = (
    ("training.method", lambda run: run.training.method, SUPPORTED_METHODS),
    ("training.framework", lambda run: run.training.framework, SUPPORTED_FRAMEWORKS),
    ("training.precision", lambda run: run.training.precision, SUPPORTED_PRECISIONS),
    ("training.attention", lambda run: run.training.attention, _ATTENTIONS),
    ("training.activation_checkpointing", lambda run: run.training.activation_checkpointing, _CHECKPOINTINGS),
    ("training.loss", lambda run: run.training.loss, frozenset({Loss.STANDARD})),
    ("training.compile", lambda run: run.training.compile, frozenset({False})),
    ("training.dropout", lambda run: run.training.dropout, frozenset({0.0})),
    ("training.packed_sequences", lambda run: run.training.packed_sequences, frozenset({False})),
    ("training.target_seq_len", lambda run: run.training.target_seq_len, frozenset({None})),
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
    """Raise an `UnsupportedError` for the first option of a valid run that is not modelled yet."""
    for field, read, supported in _SUPPORTED:
        _require(field, read(run), supported)
    require_supported_gpu(gpu)
    _require_flash(model)
    _require_placement(run)


def require_supported_request(request: PlanRequest) -> None:
    """Raise an `UnsupportedError` for the first value of a plan request that is not modelled yet."""
    for method in request.methods:
        _require("methods", method, SUPPORTED_METHODS)
    for precision in request.precisions:
        _require("precisions", precision, SUPPORTED_PRECISIONS)
    for framework in request.frameworks:
        _require("frameworks", framework, SUPPORTED_FRAMEWORKS)
    _require("objective", request.objective, SUPPORTED_OBJECTIVES)


def require_supported_gpu(gpu: GpuSpec, *, field: str = "hardware.gpu") -> None:
    """Raise an `UnsupportedError` for a GPU without a known memory total, or without the flash kernel."""
    if gpu.total_bytes is None:
        reason = f"no device report of the usable memory of {gpu.name} is known, and the marketed size is not a limit"
        raise UnsupportedError(field, gpu.id, "a GPU whose memory total is known", reason=reason)
    if not gpu.supports_flash:
        reason = f"{gpu.name} ({gpu.compute_capability}) has no bf16 flash attention kernel, the one that is modelled"
        raise UnsupportedError(field, gpu.id, "a GPU of compute capability 8.0 or above", reason=reason)


def _require(field: str, value: object, supported: frozenset[object]) -> None:
    if value not in supported:
        accepted = ", ".join(sorted(_word(option) for option in supported))
        raise UnsupportedError(field, value, accepted, reason=f"{_word(value)} is not modelled yet")


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else str(value)


def _require_flash(model: ModelSpec) -> None:
    """The flash kernel takes heads of up to 256; others than multiples of 8 are padded, which is not modelled."""
    if model.head_dim % 8 or model.head_dim > _LARGEST_FLASH_HEAD_DIM:
        reason = f"head_dim {model.head_dim} does not run on the flash kernel as it is"
        accepted = f"a multiple of 8 up to {_LARGEST_FLASH_HEAD_DIM}"
        raise UnsupportedError("model.head_dim", model.head_dim, accepted, reason=reason)


def _require_placement(run: RunSpec) -> None:
    training, axes = run.training, run.parallelism
    if training.seq_len < 2:
        reason = "a sequence of one token has nothing to predict, and its shapes are not modelled"
        raise UnsupportedError("training.seq_len", training.seq_len, "2 and more", reason=reason)
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
    if name in RANKED_OPTIMIZERS:
        reason = f"{name} projects whole matrices, and its published code does not run on sharded ones"
        raise UnsupportedError(
            "training.optimizer.name", str(name), "one GPU or DDP for this optimizer", reason=reason
        )
