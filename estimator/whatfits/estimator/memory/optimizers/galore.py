"""GaLore with AdamW and with 8-bit AdamW (arXiv:2403.03507), as galore-torch 1.0 steps them.

Source: jiaweizzhao/GaLore, commit 2cc66f8, adamw.py and adamw8bit.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whatfits.estimator.memory.optimizers.blockwise_8bit import (
    DEFAULT_BLOCK_SIZE,
    blockwise_states,
    is_quantised,
    quantisation_maps,
    record_blockwise_states,
    update_traffic,
)
from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.galore_projection import PROJECTION, GaLoreProgram
from whatfits.estimator.memory.optimizers.low_rank import (
    LOW_RANK_ADAM_ACCESSES,
    PARAMETER_UPDATE_ACCESSES,
    Projection,
)
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import (
    ParameterTensor,
    StateTensor,
    StepPhase,
    StepWork,
)
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["PARAMETER_NORM", "UNORM_VECTOR", "GaLoreAdamW", "GaLoreAdamW8bit"]

UNORM_VECTOR = "unorm_vec"
UNORM_BYTES = 4
PARAMETER_NORM = "parameter norm"
"""Label of the parameter's norm and of the fp32 copy it is computed from."""
FP32_BYTES = 4

SCALED_BACK_PROJECTION_ACCESSES = 3
"""Full-size writes and reads of ``(P @ update) * scale``: product 1, scaling 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreAdamW(GaLoreProgram):
    """`galore_torch.GaLoreAdamW`."""

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of ``step()`` that hold temporaries."""
        return ("grad", "denom", "norm_grad")

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """P and two moments of the projected gradient: (r M + 2 r N) s; elsewhere Adam's 2 e s.

        Source: arXiv:2403.03507 section 4.2 and Table 1; galore_torch/adamw.py.
        Assumes: the step counter is a Python number.
        """
        projection = self.projection(parameter)
        if projection is None:
            return adamw_states(parameter, self.param_dtype_bytes)
        moment = projection.low_rank * self.param_dtype_bytes
        return (
            StateTensor(name=PROJECTION, nbytes=self.projection_bytes(projection)),
            StateTensor(name="exp_avg", nbytes=moment),
            StateTensor(name="exp_avg_sq", nbytes=moment),
        )

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Project, update the moments, project back, add."""
        frame.clear("grad")  # ``grad = p.grad``
        projection = self.projection(parameter)
        nbytes = parameter.numel * self.param_dtype_bytes
        if projection is not None:
            nbytes = projection.low_rank * self.param_dtype_bytes
            frame.assign("grad", self.record_project(frame, parameter, projection, phase))
        if phase is StepPhase.first:
            frame.state(parameter.name, "exp_avg", nbytes)
            frame.state(parameter.name, "exp_avg_sq", nbytes)
        self.record_adam(frame, nbytes)
        if projection is not None:
            frame.assign("norm_grad", self.record_project_back(frame, projection))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (7 m n + 19 r N + 2 r M) for a projected matrix.

        Projection and back-projection are two products; the traffic is that of the separate kernels of
        `galore_torch/adamw.py`: read the gradient 1, write the back-projection 1, scale it 2, add it 3.

        Source: arXiv:2403.03507 section 4; galore_torch/adamw.py.
        Assumes: no weight decay; no reuse in cache.
        """
        projection = self.projection(parameter)
        if projection is None:
            return StepWork(0, self.full_rank_traffic(parameter), 0, None)
        elements = (
            (1 + SCALED_BACK_PROJECTION_ACCESSES + PARAMETER_UPDATE_ACCESSES) * projection.full
            + (2 + LOW_RANK_ADAM_ACCESSES) * projection.low_rank
            + 2 * projection.matrix
        )
        return self._work(projection, elements * self.param_dtype_bytes)

    def _work(self, projection: Projection, bytes_moved: int) -> StepWork:
        svd_work = projection.full * projection.short_side
        return StepWork(2 * projection.product_flops, bytes_moved, svd_work, self.update_interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLoreAdamW8bit(GaLoreProgram):
    """`galore_torch.GaLoreAdamW8bit`: bitsandbytes states of the projected gradient.

    Its arguments are positional, and bitsandbytes 0.50.2 reads the one for percentile clipping as `max_unorm` = 100:
    every parameter keeps a norm of its update, and where states are 32-bit the norm of the parameter is computed.

    Not modelled: that code also replaces ``p.grad`` by the projected gradient, which frees the full one before the
    step ends. Counting both gradients until then bounds the peak from above.
    """

    block_size: int = DEFAULT_BLOCK_SIZE

    @property
    def local_names(self) -> tuple[str, ...]:
        """The slots of ``step()`` that hold temporaries."""
        return ("grad",)

    def states(self, parameter: ParameterTensor) -> tuple[StateTensor, ...]:
        """P in the gradient's dtype, r M s, 8-bit moments of r N elements, and 4 bytes; elsewhere 8-bit moments and 4.

        Source: galore_torch/adamw8bit.py; bitsandbytes' rule, see `blockwise_states`; recorded on an H100,
            benchmarks/gpu_recordings.
        Assumes: bitsandbytes 0.50.2, which takes the arguments as described above.
        """
        projection = self.projection(parameter)
        norm = StateTensor(name=UNORM_VECTOR, nbytes=UNORM_BYTES)
        if projection is None:
            return (*blockwise_states(parameter.numel, self.block_size), norm)
        p = StateTensor(name=PROJECTION, nbytes=self.projection_bytes(projection))
        return (p, *blockwise_states(projection.low_rank, self.block_size), norm)

    def shared_states(self, parameters: Sequence[ParameterTensor]) -> tuple[StateTensor, ...]:
        """The two quantisation maps, once some tensor is quantised."""
        quantised = any(
            state.name == "absmax1"
            for kind in Parameters.of(parameters).kinds
            for state in self.states(kind.example)
        )
        return quantisation_maps() if quantised else ()

    def update(self, frame: Frame, parameter: ParameterTensor, phase: StepPhase) -> None:
        """Project; step a zero tensor in place of the weights; project it back onto the saved weights."""
        projection = self.projection(parameter)
        if projection is None:
            self._record_moments(frame, parameter, parameter.numel, phase)
            return
        frame.assign("grad", self.record_project(frame, parameter, projection, phase))
        # ``p.saved_data = p.data.clone()``: the clone takes the place of the weights, which ``p.data =`` frees.
        saved = frame.temporary(projection.full * self.param_dtype_bytes, "saved weights")
        update = frame.temporary(projection.low_rank * self.param_dtype_bytes, "projected update")
        frame.free(saved)
        self._record_moments(frame, parameter, projection.low_rank, phase)
        frame.free(self.record_project_back(frame, projection), update)

    def _record_moments(self, frame: Frame, parameter: ParameterTensor, numel: int, phase: StepPhase) -> None:
        """Bitsandbytes' state, in the first step, and its update: in place, after a norm where states are 32-bit."""
        moments = blockwise_states(numel, self.block_size)
        if phase is StepPhase.first:
            record_blockwise_states(frame, parameter.name, moments)
            frame.state(parameter.name, UNORM_VECTOR, UNORM_BYTES)
        if not is_quantised(numel):
            is_fp32 = self.param_dtype_bytes == FP32_BYTES
            copies = [] if is_fp32 else [frame.temporary(numel * FP32_BYTES, PARAMETER_NORM)]
            frame.free(*copies, frame.temporary(FP32_BYTES, PARAMETER_NORM))

    def update_work(self, parameter: ParameterTensor) -> StepWork:
        """FLOPs = 4 m n r; bytes = s (9 m n + 5 r N + 2 r M) + bitsandbytes' update of r N elements.

        Read the gradient 1, clone the weights 2, write the back-projection 1, scale it 2, add it 3; the projected
        gradient is written, cloned, zeroed and read back.

        Source: galore_torch/adamw8bit.py.
        Assumes: no reuse in cache.
        """
        projection = self.projection(parameter)
        if projection is None:
            moved = update_traffic(parameter.numel, self.param_dtype_bytes, self.states(parameter))
            return StepWork(0, moved, 0, None)
        elements = 9 * projection.full + 5 * projection.low_rank + 2 * projection.matrix
        moments = blockwise_states(projection.low_rank, self.block_size)
        moved = update_traffic(projection.low_rank, self.param_dtype_bytes, moments)
        svd_work = projection.full * projection.short_side
        bytes_moved = elements * self.param_dtype_bytes + moved
        return StepWork(2 * projection.product_flops, bytes_moved, svd_work, self.update_interval)
