"""Evaluate every choice at every batch point from the count tables, as arrays."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.catalog import ResolvedPlanRequest
from whatfits.estimator.memory.classes import profile_key, rank_tensors
from whatfits.estimator.memory.compose import StepMemory, StepPeaks
from whatfits.estimator.memory.device import gpu_symbols
from whatfits.estimator.memory.estimate import Device, table_device_bytes
from whatfits.estimator.memory.loop import loop_of
from whatfits.estimator.memory.peak import FloatArray, MicroBatchPeak, rounded_sizes
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import OptimizerOnRank, RankTensors
from whatfits.estimator.memory.verdict import FAILS_AT, fit_probability
from whatfits.estimator.profile import CountTable, load_table
from whatfits.estimator.recommend.choices import BatchPoint, Choice
from whatfits.estimator.specs import ActivationCheckpointing, Framework, Method, Precision, require_kernel
from whatfits.estimator.specs.layerwise import ONE_LAYER_OPTIMIZERS
from whatfits.estimator.time import StepTimes
from whatfits.estimator.timing import step_times

__all__ = ["Found", "Grid", "Search", "search"]

_Way = tuple[Method, Precision, Framework]
"""How a choice trains, as far as its profile depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The batch points of one structure class: positions in the list of points, and their sizes."""

    table: CountTable
    points: NDArray[np.int64]
    sizes: FloatArray
    largest_blocks: FloatArray
    accumulated: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One choice at all batch points. Arrays have one entry per point, `memories` and `peaks` one per grid."""

    choice: Choice
    optimizer: OptimizerOnRank
    grids: tuple[Grid, ...]
    memories: tuple[StepMemory, ...]
    peaks: tuple[StepPeaks, ...]
    nbytes: FloatArray
    low: FloatArray
    median: FloatArray
    high: FloatArray
    probability: FloatArray
    times: StepTimes

    @property
    def may_fit(self) -> NDArray[np.bool_]:
        """Points whose verdict is not `no`."""
        result: NDArray[np.bool_] = self.probability > FAILS_AT
        return result

    def locate(self, point: int) -> tuple[int, int]:
        """Grid that holds a point, and the point's index in it."""
        for number, grid in enumerate(self.grids):
            where = np.flatnonzero(grid.points == point)
            if len(where):
                return number, int(where[0])
        raise IndexError(point)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """All choices at all batch points."""

    points: tuple[BatchPoint, ...]
    found: tuple[Found, ...]
    device: Device

    @property
    def size(self) -> int:
        """Configurations evaluated."""
        return len(self.points) * len(self.found)


@dataclass(slots=True)
class _Workshop:
    """What choices have in common, built once per search."""

    request: ResolvedPlanRequest
    stack: dict[str, str]
    points: Sequence[BatchPoint]
    device: Device
    grids: dict[_Way, tuple[Grid, ...]] = field(default_factory=dict)
    tensors: dict[tuple[_Way, Placement, bool], RankTensors] = field(default_factory=dict)
    shared: dict[tuple[object, ...], MicroBatchPeak] = field(default_factory=dict)

    def grids_of(self, choice: Choice) -> tuple[Grid, ...]:
        way = _way(choice)
        if way not in self.grids:
            self.grids[way] = tuple(_grids(self.request, self.stack, choice, self.points))
        return self.grids[way]

    def tensors_of(self, choice: Choice) -> RankTensors:
        key = (_way(choice), choice.placement, choice.optimizer.name in ONE_LAYER_OPTIMIZERS)
        if key not in self.tensors:
            degree = self.request.hardware.num_gpus if choice.placement is Placement.FSDP else 1
            training = choice.training(self.request.seq_len, self.points[0])
            table = self.grids_of(choice)[0].table
            self.tensors[key] = rank_tensors(self.request.model, table, training, choice.placement, degree)
        return self.tensors[key]

    def evaluate(self, choice: Choice) -> Found:
        grids, tensors = self.grids_of(choice), self.tensors_of(choice)
        loop = loop_of(choice.training(self.request.seq_len, self.points[0]))
        optimizer = OptimizerOnRank.build(tensors, choice.optimizer, layerwise=choice.layerwise, loop=loop)
        memories = tuple(
            StepMemory(table=g.table, optimizer=optimizer, gpu=self.request.gpu, shared=self.shared)
            for g in grids
        )
        peaks = tuple(
            m.peaks(g.sizes, accumulated=g.accumulated, key=j)
            for j, (m, g) in enumerate(zip(memories, grids, strict=True))
        )
        nbytes, largest = np.empty(len(self.points)), np.empty(len(self.points))
        for grid, peak in zip(grids, peaks, strict=True):
            nbytes[grid.points] = peak.nbytes
            largest[grid.points] = grid.largest_blocks
        low, median, high = table_device_bytes(nbytes, largest, choice.placement, self.device)
        usable = self.device.usable
        bounds = zip(low.tolist(), median.tolist(), high.tolist(), strict=True)
        probability = np.array([fit_probability(x, y, z, usable) for x, y, z in bounds])
        if choice.layerwise:  # a freed gradient cannot accumulate
            probability[[p.grad_accum_steps > 1 for p in self.points]] = 0.0
        return Found(
            choice=choice,
            optimizer=optimizer,
            grids=grids,
            memories=memories,
            peaks=peaks,
            nbytes=nbytes,
            low=low,
            median=median,
            high=high,
            probability=probability,
            times=self._times(choice, optimizer),
        )

    def _times(self, choice: Choice, optimizer: OptimizerOnRank) -> StepTimes:
        checkpointed = [p.checkpointing is ActivationCheckpointing.FULL for p in self.points]
        return step_times(
            optimizer,
            choice.training(self.request.seq_len, self.points[0]),
            self.request.gpu,
            self.request.hardware,
            micro_batch_size=np.array([p.micro_batch_size for p in self.points]),
            seq_len=self.request.seq_len,
            grad_accum_steps=np.array([p.grad_accum_steps for p in self.points]),
            checkpointing=np.array(checkpointed),
        )


def search(
    request: ResolvedPlanRequest,
    stack: dict[str, str],
    choices: Sequence[Choice],
    points: Sequence[BatchPoint],
    device: Device,
) -> Search:
    """Memory, fit probability and step time of every choice at every point."""
    workshop = _Workshop(request, stack, points, device)
    found = tuple(workshop.evaluate(choice) for choice in choices)
    return Search(points=tuple(points), found=found, device=device)


def _way(choice: Choice) -> _Way:
    return choice.method, choice.precision, choice.framework


def _grids(
    request: ResolvedPlanRequest, stack: dict[str, str], choice: Choice, points: Sequence[BatchPoint]
) -> list[Grid]:
    """Points grouped by structure class, with each class's sizes evaluated."""
    groups: dict[tuple[ActivationCheckpointing, bool], list[int]] = {}
    for j, point in enumerate(points):
        groups.setdefault((point.checkpointing, point.micro_batch_size == 1), []).append(j)
    grids = []
    for members in groups.values():
        training = choice.training(request.seq_len, points[members[0]])
        table = load_table(profile_key(request.model, training, request.gpu), stack)
        require_kernel(table.kernel, request.model, request.gpu)
        batch = np.array([points[j].micro_batch_size for j in members], dtype=np.int64)
        rank = {"r": training.adapter.rank} if training.adapter else {}
        lengths = {"s": request.seq_len, "t": request.seq_len}
        symbols = {**request.model.dims, **rank, **gpu_symbols(request.gpu), "b": batch, **lengths}
        sizes = rounded_sizes(table, symbols)
        grids.append(
            Grid(
                table=table,
                points=np.array(members, dtype=np.int64),
                sizes=sizes,
                largest_blocks=sizes.max(axis=1),
                accumulated=np.array([points[j].grad_accum_steps > 1 for j in members]),
            )
        )
    return grids
