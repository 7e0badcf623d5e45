"""One step's memory on one rank, put together from the count table, the optimizer and the placement.

    peak = resting + max(first micro-batch, later micro-batches, optimizer step)

resting: weights, buffers, optimizer states, communication buffers, cuBLAS workspaces. The optimizer step holds all
gradients, what is left of the last micro-batch and the step's own temporaries; with a layer-wise update it is part
of backward instead.
"""

from dataclasses import dataclass, field, fields
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.device import cublas_workspace_bytes
from whatfits.estimator.memory.optimizers import OptimizerProgram, Parameters, StepPhase
from whatfits.estimator.memory.parameters import build_parameters, parameter_bytes, shard_parameters
from whatfits.estimator.memory.peak import (
    FloatArray,
    Gradients,
    MicroBatchPeak,
    live_during_step,
    micro_batch_peak,
)
from whatfits.estimator.memory.placement import FsdpBuffers, Placement, ddp_bucket_sizes, fsdp_buffers
from whatfits.estimator.profile import CountTable, ParameterTemplate, SizeExpression
from whatfits.estimator.specs import GpuSpec, ModelSpec
from whatfits.estimator.units import round_allocation

__all__ = [
    "CUBLAS_WORKSPACES",
    "PARAM_DTYPE_BYTES",
    "OptimizerOnRank",
    "RankTensors",
    "Resting",
    "StepMemory",
    "StepPeaks",
]

BoolArray = NDArray[np.bool_]

PARAM_DTYPE_BYTES = 2
"""Pure bf16: weights, gradients and states alike."""
CUBLAS_WORKSPACES = 2
"""One per thread that multiplies: the caller's and autograd's."""
_REPEATED_PHASES = (StepPhase.steady, StepPhase.refresh)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """Bytes that stay on the device from step to step."""

    weights: int
    optimizer_states: int
    communication_buffers: int
    workspace: int

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return sum(getattr(self, f.name) for f in fields(self))


class RankTensors:
    """Parameters of one rank: whole ones, and what of them is local under the placement."""

    def __init__(
        self,
        model: ModelSpec,
        templates: tuple[ParameterTemplate, ...],
        buffers: tuple[tuple[str, SizeExpression], ...],
        placement: Placement,
        shard_degree: int = 1,
    ) -> None:
        self.model, self.placement, self.shard_degree = model, placement, shard_degree
        self.whole = Parameters(build_parameters(templates, model.dims))
        self.one_layer = build_parameters(templates, {**model.dims, "L": 1})
        """One parameter per template, in the order of the templates."""
        self.buffer_bytes = [int(e.evaluate(model.dims)) for _, e in buffers]
        """Non-trainable tensors of the module."""

    @cached_property
    def local(self) -> Parameters:
        """What this rank holds and updates."""
        return (
            self.whole
            if self.shard_degree == 1
            else Parameters(shard_parameters(self.whole, self.shard_degree))
        )

    @cached_property
    def weight_bytes(self) -> int:
        """Local weights and the buffers."""
        buffers = sum(round_allocation(n) for n in self.buffer_bytes)
        return parameter_bytes(self.local, PARAM_DTYPE_BYTES) + buffers

    @cached_property
    def gradient_bytes(self) -> int:
        """Local gradients, all of them."""
        return parameter_bytes(self.local, PARAM_DTYPE_BYTES)

    @cached_property
    def bucket_bytes(self) -> list[int]:
        """DDP's buckets, empty elsewhere."""
        if self.placement in (Placement.DDP, Placement.DDP_BUCKET_VIEW):
            return ddp_bucket_sizes(self.whole, PARAM_DTYPE_BYTES)
        return []

    @cached_property
    def bucket_total(self) -> int:
        """Bytes of all buckets."""
        return sum(round_allocation(n) for n in self.bucket_bytes)

    @cached_property
    def fsdp(self) -> FsdpBuffers | None:
        """FSDP's gathered weights and reduce buffers, None elsewhere."""
        return fsdp_buffers(self.whole, PARAM_DTYPE_BYTES) if self.placement is Placement.FSDP else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPeaks:
    """Peaks of many configurations, and where each lies. `row` is the table's row, -1 in the optimizer step."""

    nbytes: FloatArray
    row: NDArray[np.int64]
    later_micro_batch: BoolArray


class OptimizerOnRank:
    """One optimizer's bytes on one rank's tensors, each computed once."""

    def __init__(self, tensors: RankTensors, program: OptimizerProgram, *, layerwise: bool) -> None:
        self.tensors, self.program, self.layerwise = tensors, program, layerwise

    @cached_property
    def state_bytes(self) -> int:
        """Optimizer states. A layer-wise update has one optimizer per parameter, each with shared states of its own."""
        local = self.tensors.local
        if not self.layerwise:
            return self.program.state_bytes(local)
        return sum(kind.occurrences * self.program.state_bytes((kind.example,)) for kind in local.kinds)

    @cached_property
    def step_bytes(self) -> int:
        """What `step()` allocates at most, in a steady or a refresh step."""
        return max(self.program.transient_bytes(self.tensors.local, phase) for phase in _REPEATED_PHASES)

    @cached_property
    def update_bytes(self) -> FloatArray | None:
        """Per parameter template, the peak of its layer-wise update; None when the optimizer steps at the end."""
        if not self.layerwise:
            return None
        peaks = [
            max(self.program.update_transient_bytes(p, phase) for phase in _REPEATED_PHASES)
            for p in self.tensors.one_layer
        ]
        return np.array(peaks, dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """Evaluates the step of one optimizer on one rank for many micro-batches of one structure class."""

    table: CountTable
    optimizer: OptimizerOnRank
    gpu: GpuSpec
    shared: dict[tuple[object, ...], MicroBatchPeak] = field(default_factory=dict)
    """Micro-batch peaks that do not depend on the optimizer, to be shared between optimizers."""

    @property
    def tensors(self) -> RankTensors:
        """The rank's tensors."""
        return self.optimizer.tensors

    def resting(self) -> Resting:
        """Bytes held from step to step."""
        return Resting(
            weights=self.tensors.weight_bytes,
            optimizer_states=self.optimizer.state_bytes,
            communication_buffers=self.tensors.bucket_total,
            workspace=CUBLAS_WORKSPACES * cublas_workspace_bytes(self.gpu),
        )

    @property
    def gradients(self) -> Gradients:
        """What becomes of a complete gradient in the first micro-batch."""
        if self.optimizer.layerwise or self.tensors.placement is Placement.DDP_BUCKET_VIEW:
            return Gradients.RELEASED
        return Gradients.SHARDED if self.tensors.placement is Placement.FSDP else Gradients.KEPT

    @property
    def later_gradients(self) -> Gradients:
        """The same in the micro-batches after the first."""
        return Gradients.RELEASED if self.gradients is Gradients.RELEASED else Gradients.ACCUMULATED

    def micro_batch(self, sizes: FloatArray, gradients: Gradients, key: object) -> MicroBatchPeak:
        """Peak of one micro-batch above the resting bytes.

        `key` names `sizes` for sharing between optimizers; without one nothing is shared.
        """
        tensors, update = self.tensors, self.optimizer.update_bytes
        name = (key, self.table.key, tensors.placement, tensors.shard_degree, gradients)
        shares = key is not None and update is None
        if shares and name in self.shared:
            return self.shared[name]
        found = micro_batch_peak(
            self.table,
            tensors.model.num_layers,
            sizes,
            gradients,
            all_gradients=float(tensors.gradient_bytes),
            shard_degree=tensors.shard_degree,
            update_bytes=update,
            gathered=tensors.fsdp,
        )
        if shares:
            self.shared[name] = found
        return found

    def optimizer_step(self, sizes: FloatArray) -> FloatArray:
        """Bytes above the resting ones at the peak of `step()`, in a steady or a refresh step."""
        left = live_during_step(self.table, self.tensors.model.num_layers, sizes)
        if self.optimizer.layerwise:
            return left
        held = 0 if self.gradients is Gradients.RELEASED else self.tensors.gradient_bytes
        return left + held + self.optimizer.step_bytes

    def peaks(self, sizes: FloatArray, *, accumulated: BoolArray, key: object = None) -> StepPeaks:
        """Peak of the whole step for every configuration of `sizes`; `accumulated` where it has several micro-batches."""
        first = self.micro_batch(sizes, self.gradients, key)
        best, row, later = first.nbytes, first.row, np.zeros(len(sizes), dtype=bool)
        if accumulated.any():
            second = self.micro_batch(sizes, self.later_gradients, key)
            later = accumulated & (second.nbytes > best)
            best, row = np.where(later, second.nbytes, best), np.where(later, second.row, row)
        step = self.optimizer_step(sizes)
        in_step = step > best
        return StepPeaks(
            nbytes=self.resting().total + np.where(in_step, step, best),
            row=np.where(in_step, -1, row),
            later_micro_batch=later & ~in_step,
        )
