"""Seconds of one optimizer step, with its parts and a 90 % interval, for arrays of configurations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from whatfits.estimator.specs import Dtype, GpuSpec, LinkSpec, ModelSpec
from whatfits.estimator.time.communication import (
    Link,
    ParameterBytes,
    Placement,
    build_link,
    exposed_communication_seconds,
)
from whatfits.estimator.time.compute import (
    FUSED,
    HF_EAGER,
    Seconds,
    attention_seconds,
    gemm_seconds,
    launch_bound_seconds,
    layer_matrices,
    memory_bound_seconds,
)
from whatfits.estimator.time.optimizer import OptimizerWork, optimizer_step_seconds
from whatfits.estimator.time.priors import GpuPriors, gpu_priors, spread

# Half the width of a 90 % interval of a normal variable, in standard deviations.
NINETY_PERCENT = 1.645


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Step times of many configurations; every array has the shape the inputs broadcast to."""

    low: Seconds
    """Lower end of the 90 % interval, seconds."""
    median: Seconds
    """Seconds of one optimizer step: the sum of the four parts."""
    high: Seconds
    """Upper end of the 90 % interval, seconds."""
    compute: Seconds
    exposed_communication: Seconds
    pipeline_bubble: Seconds
    optimizer_step: Seconds
    tokens_per_step: Seconds
    """Tokens of one step over all ranks."""
    num_gpus: int
    mfu: Seconds
    """Fraction of the data-sheet peak; see ``model_flops_utilization``."""

    @property
    def tokens_per_second(self) -> Seconds:
        """Tokens per second of the whole run, at the median."""
        return np.asarray(self.tokens_per_step / self.median)

    @property
    def tokens_per_second_per_gpu(self) -> Seconds:
        """Tokens per second and GPU, at the median."""
        return np.asarray(self.tokens_per_second / self.num_gpus)


def model_flops_utilization(
    model: ModelSpec,
    *,
    seq_len: ArrayLike,
    tokens_per_second_per_gpu: ArrayLike,
    peak_flops_per_second: float | None,
) -> Seconds:
    """Model FLOPs per second over the data-sheet peak (MFU).

    MFU = (6 N + 12 L a d s) x tokens/s / peak; NaN where the peak is not known.

    Source: PaLM, arXiv:2204.02311 appendix B.
    Assumes: all parameters count, attention counts in full (not the causal half), recomputation does not count.
    """
    dims = model.dims
    attention = 12.0 * dims["L"] * dims["a"] * dims["d"] * np.asarray(seq_len, dtype=np.float64)
    flops = (6.0 * model.num_parameters + attention) * np.asarray(tokens_per_second_per_gpu, dtype=np.float64)
    return np.asarray(flops / (peak_flops_per_second or np.nan))


def parameter_bytes(model: ModelSpec, *, bytes_per_parameter: float = 2.0) -> ParameterBytes:
    """Bytes of one layer's weights, of everything outside the layers, and of the embedding.

    layer = e (2 h a d + 2 h k d + 3 h i + 2 h); outside = e N - L layer; embedding = e V h.

    Source: transformers LlamaForCausalLM.
    Assumes: no biases.
    """
    dims = model.dims
    elements = sum(number * rows * columns for number, rows, columns in layer_matrices(dims)) + 2 * dims["h"]
    layer = bytes_per_parameter * elements
    return ParameterBytes(
        num_layers=dims["L"],
        layer=layer,
        outside=bytes_per_parameter * model.num_parameters - dims["L"] * layer,
        largest_outside=bytes_per_parameter * dims["V"] * dims["h"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """What of a training's precision and method decides its time."""

    dtype: Dtype = Dtype.BF16
    """Dtype of matrix products and attention."""
    travelling_bytes: float = 2.0
    """Bytes per parameter of gradients and gathered weights between GPUs, on average."""
    frozen: bool = False
    """Whether the model's own weights have no gradients, as under an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    tokens: Seconds
    seq_len: Seconds
    accum: Seconds
    recompute: Seconds
    placement: Placement

    @classmethod
    def broadcast(
        cls, size: ArrayLike, seq_len: ArrayLike, accum: ArrayLike, recompute: ArrayLike, placement: Placement
    ) -> Self:
        arrays = [np.asarray(value, dtype=np.float64) for value in (size, seq_len, accum, recompute)]
        count, length, steps, fraction = np.broadcast_arrays(*arrays)
        return cls(
            tokens=count * length, seq_len=length, accum=steps, recompute=fraction, placement=placement
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    device: Seconds
    launch: Seconds
    communication: Seconds
    optimizer: Seconds

    @property
    def compute(self) -> Seconds:
        return np.asarray(np.maximum(self.device, self.launch))

    @property
    def total(self) -> Seconds:
        return np.asarray(self.compute + self.communication + self.optimizer)


def _step_sigma(parts: _Parts, gpu: GpuPriors, link: Link, gpus_per_node: int) -> Seconds:
    """Standard deviation of the logarithm of the step time.

    sigma^2 = fit^2 + shape^2 + stack^2 + transfer^2 + nodes^2 + sum over parts of (share x sigma_part)^2,
    for launches beyond the device's time, exposed communication and the optimizer step.

    Source: priors.json, spread.
    Assumes: independent errors; no measurement went in, so this is deliberately wide.
    """
    variance = spread("fit") ** 2 + spread("shape") ** 2 + spread("stack") ** 2 + gpu.transfer_sigma**2
    if link.num_gpus > gpus_per_node:
        variance += spread("multi_node") ** 2
    if link.num_gpus >= 64:
        variance += spread("many_nodes") ** 2
    launch = parts.compute - parts.device
    shares = ((launch, "launch"), (parts.communication, "communication"), (parts.optimizer, "optimizer"))
    total = parts.total
    own = sum(((part / total * spread(name)) ** 2 for part, name in shares), start=np.zeros(total.shape))
    return np.asarray(np.sqrt(variance + own))


def _parts(
    model: ModelSpec,
    rates: GpuPriors,
    link: Link,
    batch: _Batch,
    work: OptimizerWork,
    arithmetic: Arithmetic,
    *,
    compiled: bool,
) -> _Parts:
    dims, tokens, recompute = model.dims, batch.tokens, batch.recompute
    width = arithmetic.dtype.nbytes
    elementwise = memory_bound_seconds(
        dims, rates, tokens=tokens, recompute=recompute, traffic=FUSED if compiled else HF_EAGER
    )
    device = (
        gemm_seconds(
            dims, rates, tokens=tokens, recompute=recompute, element_bytes=width, frozen=arithmetic.frozen
        )
        + attention_seconds(dims, rates, tokens=tokens, seq_len=batch.seq_len, recompute=recompute)
        + elementwise * (width / Dtype.BF16.nbytes)
    )
    launch = launch_bound_seconds(dims, recompute=recompute, compiled=compiled)
    communication = exposed_communication_seconds(
        batch.placement,
        link,
        parameter_bytes(model, bytes_per_parameter=arithmetic.travelling_bytes),
        micro_batch_seconds=np.maximum(device, launch),
        grad_accum_steps=batch.accum,
    )
    return _Parts(
        device=batch.accum * device,
        launch=batch.accum * launch,
        communication=communication,
        optimizer=np.full(tokens.shape, optimizer_step_seconds(work, rates)),
    )


def estimate_step_time(
    model: ModelSpec,
    gpu: GpuSpec,
    *,
    micro_batch_size: ArrayLike,
    seq_len: ArrayLike,
    grad_accum_steps: ArrayLike,
    checkpointing: ArrayLike,
    placement: Placement | Literal["single", "ddp", "fsdp"],
    num_gpus: int,
    gpus_per_node: int,
    optimizer: OptimizerWork,
    compiled: bool = False,
    links: LinkSpec | None = None,
    arithmetic: Arithmetic | None = None,
) -> StepTimes:
    """Step time of training, one entry for each configuration the arrays broadcast to.

    t = G max(t_gemm + t_attention + t_memory, t_launch) + exposed communication + t_optimizer.

    Args:
        model: A LLaMA-family model.
        gpu: The GPU every rank runs on.
        micro_batch_size: Sequences per forward and rank.
        seq_len: Tokens of a sequence.
        grad_accum_steps: Micro-batches per optimizer step.
        checkpointing: True or 1 for full activation checkpointing; between 0 and 1 the part of a layer's forward
            that is recomputed.
        placement: How the model is spread; ``single`` uses one GPU whatever ``num_gpus`` says.
        num_gpus: Data-parallel ranks.
        gpus_per_node: GPUs of one machine.
        optimizer: Work on the tensors this rank updates; under fsdp that is its shard.
        compiled: Fused elementwise operations and fewer launches, as with torch.compile.
        links: Link rates where they are known better than the catalog's.
        arithmetic: Precision and method; full training in bf16 when left out.

    Source: the terms' own docstrings.
    Assumes: flash attention, data parallelism only; data loading is hidden; casts of mixed precision cost nothing.

    Raises:
        UnsupportedError: the GPU has no peak in the dtype in the catalog.
    """
    arithmetic = arithmetic or Arithmetic()
    rates = gpu_priors(gpu, arithmetic.dtype)
    batch = _Batch.broadcast(micro_batch_size, seq_len, grad_accum_steps, checkpointing, Placement(placement))
    world = 1 if batch.placement is Placement.SINGLE else num_gpus
    link = build_link(gpu, num_gpus=world, gpus_per_node=gpus_per_node, links=links)
    parts = _parts(model, rates, link, batch, optimizer, arithmetic, compiled=compiled)
    median = parts.total
    width = np.exp(NINETY_PERCENT * _step_sigma(parts, rates, link, gpus_per_node))
    tokens_per_rank = batch.accum * batch.tokens
    return StepTimes(
        low=median / width,
        median=median,
        high=median * width,
        compute=parts.compute,
        exposed_communication=parts.communication,
        pipeline_bubble=np.zeros(median.shape),
        optimizer_step=parts.optimizer,
        tokens_per_step=tokens_per_rank * world,
        num_gpus=world,
        mfu=model_flops_utilization(
            model,
            seq_len=batch.seq_len,
            tokens_per_second_per_gpu=tokens_per_rank / median,
            peak_flops_per_second=None if arithmetic.frozen else rates.peak_flops_per_second,
        ),
    )
