"""What each optimizer costs on LLaMA-7B in bf16: one model for all, so that methods can be compared at a glance.

Hugo Touvron et al.: LLaMA, arXiv:2302.13971, Table 2: 32 layers, hidden size 4096, feed-forward 11008, vocabulary 32000,
6,738,415,616 parameters.
"""

from dataclasses import dataclass
from functools import lru_cache

from whatfits.estimator.catalog import find_model
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import StepPhase
from whatfits.estimator.memory.optimizers.registry import build_optimizer_program, optimizer_facts
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.rank import RankTensors
from whatfits.estimator.profile import load_table
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec, TrainingSpec
from whatfits.estimator.specs.layerwise import ONE_LAYER_OPTIMIZERS

__all__ = ["CostAt7B", "cost_at_7b", "llama_7b_parameters"]

BF16_BYTES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class CostAt7B:
    """Bytes of one optimizer with its default settings."""

    state_bytes: int
    """Persistent state, each tensor rounded up to the allocator's 512; what the driver pages counts too."""
    step_bytes: int
    """Peak of temporaries in an ordinary step of all parameters, or of one after the other in the backward pass."""
    refresh_bytes: int
    """The same in a step that refreshes projections; equal where nothing is refreshed."""
    num_parameters: int

    @property
    def state_bytes_per_parameter(self) -> float:
        """State over all parameters of the model."""
        return self.state_bytes / self.num_parameters


@lru_cache(maxsize=1)
def llama_7b_parameters() -> Parameters:
    """The tensors of the model in module order, as a run on one GPU holds them."""
    model = find_model("llama-7b")
    table = load_table(profile_key(model, TrainingSpec()))
    return RankTensors(model, table.parameters, table.buffers, Placement.SINGLE).local


def cost_at_7b(
    name: OptimizerName, implementation: OptimizerImplementation = OptimizerImplementation.FOREACH
) -> CostAt7B:
    """State and temporaries of an optimizer, every setting at its default."""
    program = build_optimizer_program(
        OptimizerSpec(name=name, implementation=implementation),
        param_dtype_bytes=BF16_BYTES,
        hidden_size=find_model("llama-7b").hidden_size,
    )
    parameters = whole = llama_7b_parameters()
    if name in ONE_LAYER_OPTIMIZERS:
        parameters = Parameters(tensor for tensor in whole if ".layers.0." in tensor.name)
    managed = sum(
        kind.occurrences * state.nbytes
        for kind in parameters.kinds
        for state in program.states(kind.example)
        if state.is_managed
    )
    in_backward = optimizer_facts(name).layerwise_only

    def peak(phase: StepPhase) -> int:
        if in_backward:
            return max(program.update_transient_bytes(kind.example, phase) for kind in parameters.kinds)
        return program.transient_bytes(parameters, phase)

    return CostAt7B(
        state_bytes=program.state_bytes(parameters) + managed,
        step_bytes=peak(StepPhase.steady),
        refresh_bytes=peak(StepPhase.refresh),
        num_parameters=sum(parameter.numel for parameter in whole),
    )
