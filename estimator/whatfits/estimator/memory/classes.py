"""Which structure class, and so which profile, a question falls into."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.keep_outputs import keep_outputs, table_with_outputs
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import RankTensors
from whatfits.estimator.profile import (
    CountTable,
    EventProgram,
    MissingProfileError,
    ProfileKey,
    config_id,
    kind_of_lengths,
    load_program,
    load_table,
)
from whatfits.estimator.profile.program import ProfileHead
from whatfits.estimator.profile.store import find_stack
from whatfits.estimator.specs import (
    AdapterSpec,
    Attention,
    Dtype,
    Framework,
    GpuSpec,
    KeepOutputs,
    Method,
    ModelSpec,
    Precision,
    TrainingSpec,
)
from whatfits.estimator.specs.layerwise import ONE_LAYER_OPTIMIZERS

__all__ = [
    "MIN_LAYERS",
    "casts_when_gathered",
    "choose_stack",
    "first_kernel",
    "profile_key",
    "program_of",
    "rank_tensors",
    "table_of",
]

Profile = TypeVar("Profile", CountTable, EventProgram)

MIN_LAYERS = 4
"""The shipped tables start one layer above the shallowest trace they were compiled from."""
_CUDNN_FIRST = ("9.0", "10.0", "10.3")
"""Compute capabilities on which SDPA asks cuDNN first."""


def casts_when_gathered(training: TrainingSpec) -> bool:
    """Whether fp32 shards are cast to the compute dtype when gathered, so that the module never sees fp32.

    Source: torch.distributed.fsdp.MixedPrecisionPolicy(param_dtype, reduce_dtype=float32), as torchtitan sets it.
    Assumes: the module then allocates what the pure bf16 one does, also in fp16.
    """
    mixed = training.precision in (Precision.BF16_MIXED, Precision.FP16_MIXED)
    return training.framework is Framework.FSDP2 and mixed


def profile_key(model: ModelSpec, training: TrainingSpec, gpu: GpuSpec | None = None) -> ProfileKey:
    """Structure class of a model, how it is trained, and on which GPU; without one, on most.

    Raises:
        UnsupportedError: the model has fewer layers than the shipped tables cover.
    """
    key = ProfileKey(
        architecture=model.architecture,
        precision=_module_precision(training),
        attention="eager" if training.attention is Attention.EAGER else "sdpa",
        checkpointing=training.checkpointing_policy or str(training.activation_checkpointing),
        loss=str(training.loss),
        micro_batch="one" if training.micro_batch_size == 1 else "many",
        kv_heads="any",
        tied=model.tie_embeddings,
        mask="packed" if training.packed_sequences else "none",
        dropout=training.dropout > 0,
        adapter=_adapter(training.method, training.adapter),
        first_kernel=first_kernel(training, gpu),
    )
    if model.config is not None:
        return replace(key, sequence=_lengths_of_config(model, training), config=config_id(model.config))
    if model.num_layers < MIN_LAYERS:
        reason = f"{model.num_layers} layers are fewer than the shipped profiles cover"
        raise UnsupportedError("model.num_layers", model.num_layers, f"{MIN_LAYERS} and more", reason=reason)
    heads, kv_heads = model.dims["a"], model.dims["k"]
    kv = "full" if kv_heads == heads else "one" if kv_heads == 1 else "grouped"
    return replace(key, kv_heads=kv, sequence="other" if training.seq_len % 8 else "eights")


def _lengths_of_config(model: ModelSpec, training: TrainingSpec) -> str:
    """Class of the lengths, the targets' too: what they are multiples of, and which windows they lie above."""
    lengths = (training.seq_len, training.target_seq_len or training.seq_len)
    kind = kind_of_lengths(lengths, model.chunks) if model.takes_tokens else "eights"
    above = max((w for w in model.windows if w < training.seq_len), default=0)
    return kind + (f"_above_{above}" if above else "")


def first_kernel(training: TrainingSpec, gpu: GpuSpec | None) -> str:
    """The kernel of 16-bit formats that SDPA tries first: cuDNN's on Hopper and data-center Blackwell, else flash.

    Source: aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, check_prefer_cudnn_attention. Recorded on an H100 with
    torch 2.11 (benchmarks/gpu_recordings): what is chosen there is cuDNN, allocation for allocation. Assumes: cuDNN after
    9.15.0, as wheels of torch for CUDA 13 have.
    """
    chooses = (
        training.attention in (Attention.AUTO, Attention.SDPA)
        and _module_precision(training) != Precision.FP32
    )
    prefers = gpu is not None and gpu.compute_capability in _CUDNN_FIRST
    return "cudnn" if chooses and prefers else "flash"


def _module_precision(training: TrainingSpec) -> str:
    """Dtypes of module and compute: master weights, and shards cast when gathered, lie outside the module."""
    if training.precision is Precision.BF16_MASTER or casts_when_gathered(training):
        return str(Precision.BF16)
    return str(training.precision)


def _adapter(method: Method, adapter: AdapterSpec | None) -> str:
    if method is Method.FULL:
        return "none"
    targets = adapter.targets if adapter is not None else None
    assert targets is not None, "filled in when the run was resolved"
    return f"{method}:{','.join(sorted(targets))}"


def table_of(key: ProfileKey, stack: dict[str, str] | None, training: TrainingSpec) -> CountTable:
    """Count table of a class under the loop's conventions.

    Raises:
        UnsupportedError: there is no profile of that class for the stack.
    """
    until = training.loop.keep_outputs
    if until is KeepOutputs.NO:
        return _load(load_table, key, stack, training)
    return table_with_outputs(_load(load_program, key, stack, training), until)


def program_of(key: ProfileKey, stack: dict[str, str] | None, training: TrainingSpec) -> EventProgram:
    """Event program of a class under the loop's conventions.

    Raises:
        UnsupportedError: there is no profile of that class for the stack.
    """
    return keep_outputs(_load(load_program, key, stack, training), training.loop.keep_outputs)


def _load(
    load: Callable[[ProfileKey, dict[str, str] | None], Profile],
    key: ProfileKey,
    stack: dict[str, str] | None,
    training: TrainingSpec,
) -> Profile:
    """The profile of a class; of a config whose class was not compiled, a direct trace of the very question."""
    try:
        return load(key, stack)
    except MissingProfileError as error:
        if not key.config or key.only:
            raise
        try:
            return load(key.at(training.micro_batch_size, training.seq_len, training.target_seq_len), stack)
        except MissingProfileError:
            raise error from None


_built_tensors = lru_cache(maxsize=32)(RankTensors)
"""Of the last models asked about: expanding the parameters is half of an estimate from the table."""


def rank_tensors(
    model: ModelSpec, profile: ProfileHead, training: TrainingSpec, placement: Placement, shard_degree: int
) -> RankTensors:
    """The tensors one rank holds of a model that is trained in a certain way."""
    adapted = training.method is not Method.FULL and training.adapter is not None
    return _built_tensors(
        model,
        profile.parameters,
        profile.buffers,
        placement,
        shard_degree,
        adapter_rank=training.adapter.rank if adapted and training.adapter else None,
        stored_bytes=Dtype.FP32.nbytes if casts_when_gathered(training) else None,
        target_seq_len=training.target_seq_len,
        active_layer=model.num_layers - 1 if training.optimizer.name in ONE_LAYER_OPTIMIZERS else None,
    )


def choose_stack(wanted: dict[str, str] | None) -> dict[str, str]:
    """Stack with profiles that agrees with every version asked for; the default one when nothing is asked.

    Raises:
        UnsupportedError: none agrees.
    """
    return find_stack(wanted)
