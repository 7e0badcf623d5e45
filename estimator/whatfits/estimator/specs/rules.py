"""Every rule that spans several fields of a run, each with the numbers in its message.

`check_run` decides whether a run makes sense; `assumptions_of` says what a valid run quietly relies on. Whether a valid
run is modelled yet is another question: `whatfits.estimator.specs.support`.
"""

import re

from whatfits.estimator.errors import InputError, UnknownNameError, near_matches
from whatfits.estimator.specs.config_assumptions import assumptions_of_config
from whatfits.estimator.specs.enums import (
    ActivationCheckpointing,
    Inputs,
    Method,
    OptimizerImplementation,
    OptimizerName,
)
from whatfits.estimator.specs.hardware import GpuSpec
from whatfits.estimator.specs.layerwise import IN_BACKWARD_OPTIMIZERS, WHOLE_STEP_OPTIMIZERS
from whatfits.estimator.specs.low_rank import QUANTISED_OPTIMIZERS, RANKED_OPTIMIZERS, rank_is_clipped
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.own_code import OWN_CODE_OPTIMIZERS
from whatfits.estimator.specs.run import RunSpec
from whatfits.estimator.specs.training import AdapterSpec, OptimizerSpec

__all__ = [
    "ADAPTER_TARGETS",
    "ALL_LINEAR",
    "assumptions_of",
    "check_adapter",
    "check_model",
    "check_optimizer",
    "check_run",
]

ADAPTER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder layer that can carry an adapter."""
ALL_LINEAR = "all-linear"
"""peft's word for all of them."""

CHECKPOINTING_POLICY = re.compile(r"ops|every_([2-9]|[1-9]\d+)")
"""Rules of selective checkpointing: single operations, or every k-th layer."""

_FUSED_OPTIMIZERS = frozenset({OptimizerName.SGD, OptimizerName.SGDM, OptimizerName.ADAMW})
_BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
"""Block sizes of bitsandbytes' blockwise quantisation."""


def check_run(run: RunSpec, model: ModelSpec, gpu: GpuSpec) -> None:
    """Raise an `InputError` for the first rule a run breaks."""
    check_model(model)
    check_optimizer(run.training.optimizer, model)
    _check_training(run, model)
    _check_layerwise_update(run)
    _check_hardware(run, gpu)
    _check_degrees(run, model)
    _check_sharding(run)


def check_model(model: ModelSpec, *, field: str = "model") -> None:
    """Raise an `InputError` where a model's heads do not add up."""
    if model.config is not None:
        return  # transformers built it
    heads, kv_heads, head_dim = (model.dims[symbol] for symbol in "akd")
    if heads % kv_heads:
        reason = f"num_key_value_heads {kv_heads} does not divide {heads} attention heads"
        raise InputError(f"{field}.num_key_value_heads", kv_heads, f"a divisor of {heads}", reason=reason)
    if head_dim % 2:
        reason = f"head_dim {head_dim} is odd, but rotary embeddings turn pairs"
        raise InputError(f"{field}.head_dim", head_dim, "an even number", reason=reason)


def check_optimizer(optimizer: OptimizerSpec, model: ModelSpec, *, field: str = "training.optimizer") -> None:
    """Raise an `InputError` where an optimizer has a setting its method does not know, or one out of range."""
    name, rank = optimizer.name, optimizer.rank
    if name not in RANKED_OPTIMIZERS:
        ranked = ", ".join(sorted(RANKED_OPTIMIZERS))
        for key, value in (
            ("rank", rank),
            ("projection_update_interval", optimizer.projection_update_interval),
        ):
            if value is not None:
                reason = f"{key} {value} was given, but {name} has no low-rank projection"
                raise InputError(
                    f"{field}.{key}", value, f"nothing for {name}; a {key} for {ranked}", reason=reason
                )
    elif rank is not None and rank > model.hidden_size:
        reason = f"rank {rank} is above hidden_size {model.hidden_size}"
        raise InputError(f"{field}.rank", rank, f"1 to {model.hidden_size}", reason=reason)
    elif name is OptimizerName.APOLLO_MINI and rank not in (None, 1):
        reason = f"rank {rank} was given, but apollo_mini is the rank-1 form of apollo"
        raise InputError(f"{field}.rank", rank, "1 for apollo_mini; apollo takes other ranks", reason=reason)
    _check_block_size(optimizer, field)
    if optimizer.implementation is OptimizerImplementation.FUSED and name not in _FUSED_OPTIMIZERS:
        fused = ", ".join(sorted(_FUSED_OPTIMIZERS))
        reason = f"{name} has no fused implementation"
        accepted = f"foreach or for_loop for {name}; fused for {fused}"
        raise InputError(f"{field}.implementation", str(optimizer.implementation), accepted, reason=reason)
    if optimizer.implementation is OptimizerImplementation.WHATFITS and name not in OWN_CODE_OPTIMIZERS:
        own = ", ".join(sorted(OWN_CODE_OPTIMIZERS))
        reason = f"whatfits.optim_impls has no second form of {name}"
        accepted = f"foreach or for_loop for {name}; whatfits for {own}"
        raise InputError(f"{field}.implementation", str(optimizer.implementation), accepted, reason=reason)


def _check_block_size(optimizer: OptimizerSpec, field: str) -> None:
    size = optimizer.block_size
    if size is None:
        return
    if optimizer.name not in QUANTISED_OPTIMIZERS:
        reason = f"block_size {size} was given, but {optimizer.name} keeps no 8-bit states"
        accepted = f"nothing for {optimizer.name}; a block_size for {', '.join(sorted(QUANTISED_OPTIMIZERS))}"
        raise InputError(f"{field}.block_size", size, accepted, reason=reason)
    if size not in _BLOCK_SIZES:
        raise InputError(f"{field}.block_size", size, ", ".join(map(str, _BLOCK_SIZES)))


def _check_training(run: RunSpec, model: ModelSpec) -> None:
    training = run.training
    targets = training.target_seq_len
    if targets is not None and model.inputs is not Inputs.TOKENS_AND_TARGETS:
        reason = f"{model.name} has no decoder with targets of their own"
        raise InputError(
            "training.target_seq_len", targets, "nothing; a length for encoder-decoders", reason=reason
        )
    if training.seq_len != 1 and not model.takes_tokens:
        reason = f"{model.name} is trained on images, which have no sequence length"
        raise InputError("training.seq_len", training.seq_len, "nothing", reason=reason)
    if training.adapter is not None and training.method is Method.FULL:
        accepted = "nothing for method full; an adapter for lora, qlora or dora"
        reason = "an adapter was given, but method full trains all weights"
        raise InputError(
            "training.adapter", training.adapter.model_dump(mode="json"), accepted, reason=reason
        )
    if training.adapter is not None:
        check_adapter(training.adapter, model)
    policy = training.checkpointing_policy
    if policy is not None and training.activation_checkpointing is not ActivationCheckpointing.SELECTIVE:
        reason = f"a policy was given, but activation_checkpointing is {training.activation_checkpointing}"
        raise InputError(
            "training.checkpointing_policy", policy, "a policy only with selective", reason=reason
        )
    if policy is not None and not CHECKPOINTING_POLICY.fullmatch(policy):
        accepted = "ops, or every_2, every_3 and so on"
        raise UnknownNameError("training.checkpointing_policy", policy, accepted)


def check_adapter(adapter: AdapterSpec, model: ModelSpec, *, field: str = "training.adapter") -> None:
    """Raise an `InputError` where an adapter names a layer there is none of, or a rank out of range."""
    for number, name in enumerate(adapter.targets or ()):
        if name not in ADAPTER_TARGETS:
            accepted = f"{', '.join(ADAPTER_TARGETS)}, or {ALL_LINEAR} alone"
            raise UnknownNameError(
                f"{field}.targets[{number}]",
                name,
                accepted,
                suggestions=near_matches(name, (*ADAPTER_TARGETS, ALL_LINEAR)),
            )
    if len(set(adapter.targets or ())) < len(adapter.targets or ()):
        reason = "a layer is named twice"
        raise InputError(f"{field}.targets", list(adapter.targets or ()), "each layer once", reason=reason)
    if adapter.rank > model.hidden_size:
        reason = f"rank {adapter.rank} is above hidden_size {model.hidden_size}"
        raise InputError(f"{field}.rank", adapter.rank, f"1 to {model.hidden_size}", reason=reason)


def _check_layerwise_update(run: RunSpec) -> None:
    training, parallelism = run.training, run.parallelism
    name = training.optimizer.name
    if not training.layerwise_update:
        if name in IN_BACKWARD_OPTIMIZERS:
            reason = f"{name} updates each parameter inside the backward pass"
            raise InputError("training.layerwise_update", False, f"true for {name}", reason=reason)
        return
    if name in WHOLE_STEP_OPTIMIZERS:
        reason = f"{name} has no layer-wise form"
        raise InputError("training.layerwise_update", True, f"false for {name}", reason=reason)
    why = None
    if training.grad_accum_steps > 1:
        why = f"grad_accum_steps is {training.grad_accum_steps}, and a freed gradient cannot accumulate"
    elif training.gradient_clipping:
        why = "gradient_clipping needs the norm of all gradients, and layerwise_update frees each at once"
    elif not training.loop.set_grads_to_none:
        why = "loop.set_grads_to_none is false, which keeps the gradients that layerwise_update frees"
    elif parallelism.dp_replicate_degree > 1:
        degree = parallelism.dp_replicate_degree
        why = f"dp_replicate_degree is {degree}, and DDP reduces gradients after the update would have used them"
    if why is not None:
        accepted = "false, or true with grad_accum_steps 1, no clipping, gradients set to None and dp_replicate_degree 1"
        raise InputError("training.layerwise_update", True, accepted, reason=why)


def _check_hardware(run: RunSpec, gpu: GpuSpec) -> None:
    hardware = run.hardware
    num_gpus, per_node = hardware.num_gpus, hardware.gpus_per_node
    if num_gpus > per_node and num_gpus % per_node:
        reason = f"gpus_per_node {per_node} does not divide {num_gpus} GPUs"
        accepted = f"a divisor of {num_gpus}, or {num_gpus} and more"
        raise InputError("hardware.gpus_per_node", per_node, accepted, reason=reason)
    cap = hardware.memory_cap_bytes
    if cap is not None and gpu.total_bytes is not None and cap > gpu.total_bytes:
        reason = f"memory_cap_bytes {cap} is above the {gpu.total_bytes} bytes of {gpu.id}"
        raise InputError("hardware.memory_cap_bytes", cap, f"up to {gpu.total_bytes}", reason=reason)


def _check_degrees(run: RunSpec, model: ModelSpec) -> None:
    axes, num_gpus = run.parallelism, run.hardware.num_gpus
    if axes.world_size != num_gpus:
        names = ("dp_replicate_degree", "dp_shard_degree", "tp_degree", "pp_degree", "cp_degree")
        product = " x ".join(f"{name} {getattr(axes, name)}" for name in names)
        reason = f"{product} = {axes.world_size}, but num_gpus is {num_gpus}"
        raise InputError(
            "parallelism", axes.world_size, f"degrees whose product is {num_gpus}", reason=reason
        )
    for size, what in (
        (model.num_attention_heads, "attention heads"),
        (model.num_key_value_heads, "key-value heads"),
        (model.intermediate_size, "columns of intermediate_size"),
    ):
        if size is not None and size % axes.tp_degree:
            reason = f"tp_degree {axes.tp_degree} does not divide {size} {what}"
            raise InputError("parallelism.tp_degree", axes.tp_degree, f"a divisor of {size}", reason=reason)
    if axes.sequence_parallel and axes.tp_degree == 1:
        reason = "sequence_parallel splits over the tensor-parallel group, but tp_degree is 1"
        raise InputError(
            "parallelism.sequence_parallel", True, "true only with tp_degree above 1", reason=reason
        )
    if axes.pp_degree > model.num_layers:
        reason = f"pp_degree {axes.pp_degree} is above {model.num_layers} layers"
        raise InputError("parallelism.pp_degree", axes.pp_degree, f"1 to {model.num_layers}", reason=reason)
    parts = axes.cp_degree * (axes.tp_degree if axes.sequence_parallel else 1)
    if run.training.seq_len % parts:
        reason = f"{parts} sequence parts do not divide seq_len {run.training.seq_len}"
        raise InputError("training.seq_len", run.training.seq_len, f"a multiple of {parts}", reason=reason)
    if axes.ep_degree > 1:
        reason = f"ep_degree {axes.ep_degree} spreads experts, and {model.name} has none"
        raise InputError(
            "parallelism.ep_degree", axes.ep_degree, "1 for a model without experts", reason=reason
        )


def _check_sharding(run: RunSpec) -> None:
    axes = run.parallelism
    if axes.zero_stage == 0 and axes.dp_shard_degree > 1:
        reason = f"dp_shard_degree is {axes.dp_shard_degree}, but zero_stage 0 shards nothing"
        raise InputError("parallelism.zero_stage", 0, "1, 2 or 3 with dp_shard_degree above 1", reason=reason)
    if axes.zero_stage > 0 and axes.dp_shard_degree == 1 and run.hardware.num_gpus > 1:
        reason = f"zero_stage {axes.zero_stage} shards over dp_shard_degree ranks, but that is 1"
        raise InputError("parallelism.zero_stage", axes.zero_stage, "0 with dp_shard_degree 1", reason=reason)


def assumptions_of(run: RunSpec, model: ModelSpec, gpu: GpuSpec) -> tuple[str, ...]:
    """What a valid run relies on without saying so, one sentence each."""
    found = []
    seq_len, longest = run.training.seq_len, model.max_position_embeddings
    if longest is not None and seq_len > longest:
        found.append(
            f"seq_len {seq_len} is beyond the {longest} positions in the config of {model.name}; rotary embeddings "
            "allow it, and memory does not depend on it."
        )
    found += assumptions_of_config(model, run.training.target_seq_len)
    optimizer = run.training.optimizer
    dims = model.dims
    sides = [dims["h"], *([dims["i"]] if "i" in dims else [])]
    sides += [dims["d"] * dims[heads] for heads in "ak" if heads in dims and "d" in dims]
    smallest = min(sides)
    # FRUGAL's rank is a density, at most 1.
    if (
        optimizer.rank is not None
        and optimizer.rank > smallest
        and optimizer.name is not OptimizerName.FRUGAL
    ):
        rule = (
            f"{optimizer.name} clips the rank to a matrix's smallest side"
            if rank_is_clipped(optimizer.name)
            else f"{optimizer.name} does not clip it, so such states are larger than full rank needs"
        )
        found.append(f"rank {optimizer.rank} is above {smallest}, the smallest side of a matrix; {rule}.")
    if gpu.total_bytes_is_estimate:
        found.append(f"The memory total of {gpu.name} is an estimate: {gpu.total_bytes_source}.")
    if gpu.vendor != "nvidia":
        found.append(f"Kernels and the allocator are modelled as under CUDA; {gpu.name} may differ.")
    return tuple(found)
