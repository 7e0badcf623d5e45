"""What one rank holds and updates: its tensors under a placement, and one optimizer's bytes on them."""

from dataclasses import replace
from functools import cached_property

import numpy as np

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.loop import (
    MASTER_BYTES,
    SCALER_STATE_BYTES,
    UNSCALING_BYTES,
    Loop,
    clipping_bytes,
    master_copy_bytes,
)
from whatfits.estimator.memory.optimizers import (
    OptimizerProgram,
    Parameters,
    StepPhase,
    build_optimizer_program,
)
from whatfits.estimator.memory.parameters import (
    HeldParameter,
    build_parameters,
    freeze_all_but,
    parameter_bytes,
    shard_parameters,
)
from whatfits.estimator.memory.peak import FloatArray, Gradients
from whatfits.estimator.memory.placement import FsdpBuffers, Placement, ddp_bucket_sizes, fsdp_buffers
from whatfits.estimator.profile import ParameterTemplate, SizeExpression
from whatfits.estimator.specs import ModelSpec, OptimizerSpec
from whatfits.estimator.units import ALLOCATION_GRANULARITY, round_allocation

__all__ = ["OptimizerOnRank", "RankTensors"]

_REPEATED_PHASES = (StepPhase.steady, StepPhase.refresh)


class RankTensors:
    """Parameters of one rank: whole ones, and what of them is local under the placement."""

    def __init__(
        self,
        model: ModelSpec,
        templates: tuple[ParameterTemplate, ...],
        buffers: tuple[tuple[str, SizeExpression], ...],
        placement: Placement,
        shard_degree: int = 1,
        *,
        adapter_rank: int | None = None,
        stored_bytes: int | None = None,
        active_layer: int | None = None,
        target_seq_len: int | None = None,
    ) -> None:
        """Expand the templates.

        Args:
            model: the model.
            templates: its parameters as the module computes with them.
            buffers: its other tensors.
            placement: how the copies lie on the ranks.
            shard_degree: ranks a parameter is divided over.
            adapter_rank: rank of the adapter, where there is one.
            stored_bytes: bytes per element of the local parameters where they differ from what the module computes
                with, as with fp32 shards that are cast when gathered.
            active_layer: the only layer that trains, where the optimizer freezes the rest.
            target_seq_len: tokens of a decoder's targets, where they are not as many as its encoder's.
        """
        self.model, self.placement, self.shard_degree = model, placement, shard_degree
        given = {"r": adapter_rank, "t": target_seq_len}
        self.dims = {**model.dims, **{symbol: n for symbol, n in given.items() if n is not None}}
        """Values of the symbols that do not depend on the micro-batch."""
        self.stored_bytes = stored_bytes
        self.traced = build_parameters(templates, self.dims)
        """Every parameter as the profile has it: whether it trains included."""
        self.whole = self.traced if active_layer is None else freeze_all_but(self.traced, active_layer)
        """Every parameter as the module computes with it."""
        self.one_layer = build_parameters(templates, {**self.dims, "L": 1})
        """One parameter per template, in the order of the templates."""
        self.buffer_bytes = [int(e.evaluate(self.dims)) for _, e in buffers]
        """Non-trainable tensors of the module."""

    @cached_property
    def held(self) -> tuple[HeldParameter, ...]:
        """What this rank stores from step to step."""
        shards = self.whole if self.shard_degree == 1 else shard_parameters(self.whole, self.shard_degree)
        if self.stored_bytes is None:
            return shards
        return tuple(replace(p, element_bytes=self.stored_bytes) for p in shards)

    @cached_property
    def local(self) -> Parameters:
        """What this rank updates: the trainable ones of what it stores."""
        return Parameters(p for p in self.held if p.trainable)

    @cached_property
    def trained(self) -> tuple[HeldParameter, ...]:
        """The trainable parameters, whole."""
        return tuple(p for p in self.whole if p.trainable)

    @cached_property
    def trained_element_bytes(self) -> int:
        """Bytes per element of what this rank updates, and of its gradients.

        Raises:
            UnsupportedError: trainable parameters have different dtypes.
        """
        widths = {p.element_bytes for p in self.held if p.trainable}
        if len(widths) != 1:
            found = ", ".join(str(w) for w in sorted(widths)) or "no"
            reason = f"the trainable parameters have {found} bytes per element"
            raise UnsupportedError(
                "training.method", self.model.name, "trainable parameters of one dtype", reason=reason
            )
        return widths.pop()

    @cached_property
    def weight_bytes(self) -> int:
        """Local weights and the buffers."""
        return parameter_bytes(self.held) + sum(round_allocation(n) for n in self.buffer_bytes)

    @cached_property
    def gradient_bytes(self) -> int:
        """Local gradients, all of them."""
        return sum(round_allocation(p.numel * self.trained_element_bytes) for p in self.local)

    @cached_property
    def computed_element_bytes(self) -> int:
        """Bytes per element of the widest parameter as the module computes with it."""
        return max(p.element_bytes for p in self.whole)

    @cached_property
    def trained_share(self) -> float:
        """Part of all elements that trains."""
        return sum(p.numel for p in self.trained) / sum(p.numel for p in self.whole)

    @cached_property
    def kept_share(self) -> float:
        """Bytes of a kept local gradient over those of the whole one that the module computed."""
        computed = self.trained[0].element_bytes if self.trained else 1
        return self.trained_element_bytes / computed / self.shard_degree * self.active_share

    @cached_property
    def active_share(self) -> float:
        """Part of what the profile trains that really trains: 1, unless the optimizer freezes layers."""
        if self.whole is self.traced:
            return 1.0
        return sum(p.numel for p in self.trained) / sum(p.numel for p in self.traced if p.trainable)

    @cached_property
    def master_bytes(self) -> int:
        """fp32 copies of the local trainable parameters."""
        return sum(round_allocation(p.numel * MASTER_BYTES) for p in self.local)

    @cached_property
    def bucket_bytes(self) -> list[int]:
        """DDP's buckets, empty elsewhere."""
        if self.placement in (Placement.DDP, Placement.DDP_BUCKET_VIEW):
            return ddp_bucket_sizes(self.trained, self.trained_element_bytes)
        return []

    @cached_property
    def bucket_total(self) -> int:
        """Bytes of all buckets."""
        return sum(round_allocation(n) for n in self.bucket_bytes)

    @cached_property
    def fsdp(self) -> FsdpBuffers | None:
        """FSDP's gathered weights and reduce buffers, None elsewhere."""
        if self.placement is not Placement.FSDP:
            return None
        return fsdp_buffers(self.whole, reduce_bytes=self.trained_element_bytes)


class OptimizerOnRank:
    """One optimizer's bytes on one rank's tensors, each computed once."""

    def __init__(
        self, tensors: RankTensors, program: OptimizerProgram, *, layerwise: bool, loop: Loop | None = None
    ) -> None:
        """Set up.

        Args:
            tensors: the rank's.
            program: the optimizer's, for elements of the width it updates; `build` chooses it.
            layerwise: whether each parameter is updated as soon as its gradient is there.
            loop: conventions of the training loop; the plain one when left out.
        """
        self.tensors, self.program, self.layerwise = tensors, program, layerwise
        self.loop = loop or Loop()

    @classmethod
    def build(
        cls, tensors: RankTensors, spec: OptimizerSpec, *, layerwise: bool = False, loop: Loop | None = None
    ) -> "OptimizerOnRank":
        """The optimizer of a spec, for the dtype of what it updates: the masters where there are any."""
        masters = loop is not None and loop.master_weights
        program = build_optimizer_program(
            spec,
            param_dtype_bytes=MASTER_BYTES if masters else tensors.trained_element_bytes,
            hidden_size=tensors.model.hidden_size,
        )
        return cls(tensors, program, layerwise=layerwise, loop=loop)

    @cached_property
    def state_bytes(self) -> int:
        """Optimizer states. A layer-wise update has one optimizer per parameter, each with shared states of its own."""
        local = self.tensors.local
        scaler = SCALER_STATE_BYTES if self.loop.scales_loss else 0
        if not self.layerwise:
            return scaler + self.program.state_bytes(local)
        return scaler + sum(
            kind.occurrences * self.program.state_bytes((kind.example,)) for kind in local.kinds
        )

    @cached_property
    def step_bytes(self) -> int:
        """What `step()` allocates at most, in a steady or a refresh step."""
        return max(self.program.transient_bytes(self.tensors.local, phase) for phase in _REPEATED_PHASES)

    @cached_property
    def clipping_bytes(self) -> int:
        """What clipping allocates at most."""
        if not self.loop.clips:
            return 0
        return clipping_bytes(self.tensors.local, self.tensors.trained_element_bytes)

    def peak_from_backward_on(self, gradients: Gradients) -> int:
        """Gradients and temporaries at their highest between the end of backward and the end of the update."""
        tensors, loop = self.tensors, self.loop
        held = 0 if gradients is Gradients.RELEASED else tensors.gradient_bytes
        found_inf = ALLOCATION_GRANULARITY if loop.scales_loss else 0
        unscaling = UNSCALING_BYTES if loop.scales_loss else 0
        before = held + max(unscaling, found_inf + self.clipping_bytes)
        if not loop.master_weights:
            return max(before, held + found_inf + self.step_bytes)
        copying = master_copy_bytes(tensors.local, tensors.trained_element_bytes if held else 0)
        return max(before, copying, tensors.master_bytes + self.step_bytes)

    @cached_property
    def update_bytes(self) -> FloatArray | None:
        """Per parameter template, the peak of its layer-wise update; None when the optimizer steps at the end."""
        if not self.layerwise:
            return None
        peaks = [
            max(self.program.update_transient_bytes(p, phase) for phase in _REPEATED_PHASES)
            if p.trainable
            else 0
            for p in self.tensors.one_layer
        ]
        return np.array(peaks, dtype=np.float64)
