"""One step's memory on one rank, put together from the count table, the optimizer and the placement.

    peak = resting + max(first micro-batch, later micro-batches, optimizer step)

resting: weights and their masters, buffers, optimizer states, communication buffers, cuBLAS workspaces. The optimizer
step holds all gradients, what is left of the last micro-batch and the temporaries of unscaling, clipping, copying to
master precision and of the step itself; with a layer-wise update it is part of backward instead.
"""

from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.device import cublas_workspace_bytes, gpu_symbols
from whatfits.estimator.memory.peak import (
    FloatArray,
    Gradients,
    MicroBatchPeak,
    live_during_step,
    micro_batch_peak,
)
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank, RankTensors
from whatfits.estimator.profile import CountTable
from whatfits.estimator.specs import GpuSpec

__all__ = [
    "CUBLAS_WORKSPACES",
    "Resting",
    "StepMemory",
    "StepPeaks",
]

BoolArray = NDArray[np.bool_]
T = TypeVar("T")

CUBLAS_WORKSPACES = 2
"""One per thread that multiplies: the caller's and autograd's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resting:
    """Bytes that stay on the device from step to step."""

    weights: int
    master_weights: int
    optimizer_states: int
    communication_buffers: int
    workspace: int

    @property
    def total(self) -> int:
        """Sum of all terms."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPeaks:
    """Peaks of many configurations, and where each lies. `row` is the table's row, -1 in the optimizer step."""

    nbytes: FloatArray
    row: NDArray[np.int64]
    later_micro_batch: BoolArray


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

    def symbols(self, micro_batch_size: T, seq_len: int) -> dict[str, int | T]:
        """Values of all symbols that sizes are written in."""
        return {
            "t": seq_len,
            **self.tensors.dims,
            **gpu_symbols(self.gpu),
            "b": micro_batch_size,
            "s": seq_len,
        }

    def resting(self) -> Resting:
        """Bytes held from step to step."""
        return Resting(
            weights=self.tensors.weight_bytes,
            master_weights=self.tensors.master_bytes if self.optimizer.loop.master_weights else 0,
            optimizer_states=self.optimizer.state_bytes,
            communication_buffers=self.tensors.bucket_total,
            workspace=CUBLAS_WORKSPACES * cublas_workspace_bytes(self.gpu),
        )

    @property
    def gradients(self) -> Gradients:
        """What becomes of a complete gradient in the first micro-batch."""
        if self.optimizer.layerwise or self.tensors.placement is Placement.DDP_BUCKET_VIEW:
            return Gradients.RELEASED
        if self.tensors.active_share < 1:
            return Gradients.SHARDED
        if not self.optimizer.loop.sets_grads_to_none:
            return Gradients.ACCUMULATED
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
        rank = (
            *(tensors.placement, tensors.shard_degree, tensors.stored_bytes, tensors.dims.get("r")),
            tensors.active_share,
        )
        name = (key, self.table.key, rank, gradients)
        shares = key is not None and update is None
        if shares and name in self.shared:
            return self.shared[name]
        found = micro_batch_peak(
            self.table,
            tensors.model.num_layers,
            sizes,
            gradients,
            all_gradients=float(tensors.gradient_bytes),
            kept_share=tensors.kept_share,
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
        return left + self.optimizer.peak_from_backward_on(self.gradients)

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
