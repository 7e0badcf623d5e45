"""The time part of an answer, for arrays of configurations and for one."""

import math

from numpy.typing import ArrayLike

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.optimizers import optimizer_facts
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank
from whatfits.estimator.specs import (
    GpuSpec,
    HardwareSpec,
    Inputs,
    Method,
    ModelSpec,
    OptimizerImplementation,
    OptimizerSpec,
    Seconds3,
    StepTimeParts,
    TimeEstimate,
    TrainingSpec,
    expand_precision,
)
from whatfits.estimator.time import Arithmetic, OptimizerWork, StepTimes, estimate_step_time
from whatfits.estimator.time.communication import Placement as TimePlacement

__all__ = ["arithmetic_of", "optimizer_work", "require_timed", "step_times", "time_at", "timed_model"]

_KERNELS_PER_PARAMETER = 12
"""Launches of one parameter's update. Assumed: the middle of the 10 to 15 that eager AdamW's operators make; it
matters only where launches, not bytes, bound the step."""
_KERNELS_PER_LIST = 30
"""Tensors one multi-tensor kernel takes, the least of its limits (lists of depth 5).
Source: aten/src/ATen/native/cuda/MultiTensorApply.cuh, `depth_to_max_tensors`; larger from CUDA 13 on."""

_TIME_PLACEMENT = {
    Placement.SINGLE: TimePlacement.SINGLE,
    Placement.DDP: TimePlacement.DDP,
    Placement.DDP_BUCKET_VIEW: TimePlacement.DDP,
    Placement.FSDP: TimePlacement.FSDP,
}


def optimizer_work(optimizer: OptimizerOnRank, spec: OptimizerSpec) -> OptimizerWork:
    """Work of one optimizer step on this rank's tensors."""
    local = optimizer.tensors.local
    work = optimizer.program.flops_and_bytes(local)
    facts = optimizer_facts(spec.name)
    in_lists = facts.in_lists or OptimizerImplementation.FUSED in facts.implementations
    if spec.implementation in {OptimizerImplementation.FOR_LOOP, OptimizerImplementation.WHATFITS}:
        in_lists = False
    if in_lists and not optimizer.layerwise:
        kernels = _KERNELS_PER_PARAMETER * math.ceil(len(local) / _KERNELS_PER_LIST)
    else:
        kernels = _KERNELS_PER_PARAMETER * len(local)
    return OptimizerWork(
        bytes_moved=work.bytes_moved,
        gemm_flops=work.flops,
        svd_work=work.svd_work,
        refresh_interval=work.refresh_interval or 1,
        kernels=kernels,
        managed_bytes=sum(
            kind.occurrences * state.nbytes
            for kind in local.kinds
            for state in optimizer.program.states(kind.example)
            if state.is_managed
        ),
    )


def arithmetic_of(training: TrainingSpec, optimizer: OptimizerOnRank) -> Arithmetic:
    """What of a training decides its time.

    Under FSDP two gathers travel in the dtype the module computes in for every reduction in the gradients' own.
    """
    dtypes = expand_precision(training.precision, training.framework)
    tensors = optimizer.tensors
    trained = tensors.trained_element_bytes
    gathers = 2 * tensors.computed_element_bytes if tensors.placement is Placement.FSDP else 0
    travelling = (gathers + trained) / (3 if gathers else 1)
    frozen = training.method is not Method.FULL
    return Arithmetic(
        dtype=dtypes.compute_dtype,
        travelling_bytes=travelling * (tensors.trained_share if frozen else 1.0),
        frozen=frozen,
    )


def timed_model(model: ModelSpec) -> ModelSpec | None:
    """The LLaMA whose step time stands for a model's: of the same width, heads and depth, and as many parameters.

    Its feed-forward width i makes the count: 3 h i L = N - V h (2 - tied) - 2 L h d (a + k), N the parameters a token
    passes through. None for what is not trained on tokens alone or has no heads.

    Assumes: work is in proportion to these parameters; all experts' gradients travel like theirs.
    """
    if model.config is None:
        return model
    dims = model.dims
    if model.inputs is not Inputs.TOKENS or not set("hakdVL") <= set(dims):
        return None
    count = model.num_active_parameters or model.num_parameters
    embeddings = dims["V"] * dims["h"] * (1 if model.tie_embeddings else 2)
    attention = 2 * dims["L"] * dims["h"] * dims["d"] * (dims["a"] + dims["k"])
    width = max(round((count - embeddings - attention) / (3 * dims["h"] * dims["L"])), 1)
    return model.model_copy(update={"intermediate_size": width, "num_parameters": count, "config": None})


def require_timed(model: ModelSpec) -> ModelSpec:
    """As `timed_model`, of a model whose plan is asked for.

    Raises:
        UnsupportedError: no step time is known of the model.
    """
    timed = timed_model(model)
    if timed is None:
        reason = f"the step time of {model.architecture} is not modelled yet, and plans are ranked by it"
        raise UnsupportedError(
            "model", str(model.inputs), "a model of tokens with attention heads", reason=reason
        )
    return timed


def step_times(
    optimizer: OptimizerOnRank,
    training: TrainingSpec,
    gpu: GpuSpec,
    hardware: HardwareSpec,
    *,
    micro_batch_size: ArrayLike,
    seq_len: int,
    grad_accum_steps: ArrayLike,
    checkpointing: ArrayLike,
) -> StepTimes:
    """Step times of one optimizer and placement over arrays of batch choices; the rest is as in `training`.

    Raises:
        UnsupportedError: no step time is known of the model.
    """
    return estimate_step_time(
        require_timed(optimizer.tensors.model),
        gpu,
        micro_batch_size=micro_batch_size,
        seq_len=seq_len,
        grad_accum_steps=grad_accum_steps,
        checkpointing=checkpointing,
        placement=_TIME_PLACEMENT[optimizer.tensors.placement],
        num_gpus=hardware.num_gpus,
        gpus_per_node=hardware.gpus_per_node,
        optimizer=optimizer_work(optimizer, training.optimizer),
        links=hardware.links,
        arithmetic=arithmetic_of(training, optimizer),
    )


def time_at(times: StepTimes, index: int) -> TimeEstimate:
    """One entry of some step times as an answer."""
    mfu = float(times.mfu.flat[index])
    return TimeEstimate(
        step_time_seconds=Seconds3(
            low=float(times.low.flat[index]),
            median=float(times.median.flat[index]),
            high=float(times.high.flat[index]),
        ),
        tokens_per_second=float(times.tokens_per_second.flat[index]),
        tokens_per_second_per_gpu=float(times.tokens_per_second_per_gpu.flat[index]),
        mfu=None if math.isnan(mfu) else mfu,
        parts=StepTimeParts(
            compute=float(times.compute.flat[index]),
            exposed_communication=float(times.exposed_communication.flat[index]),
            pipeline_bubble=float(times.pipeline_bubble.flat[index]),
            optimizer_step=float(times.optimizer_step.flat[index]),
        ),
    )
