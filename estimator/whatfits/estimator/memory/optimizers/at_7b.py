"""What each optimizer costs on LLaMA-7B in bf16: one model for all, so that methods can be compared at a glance.

Hugo Touvron et al.: LLaMA, arXiv:2302.13971, Table 2: 32 layers, hidden size 4096, feed-forward 11008, vocabulary 32000,
6,738,415,616 parameters.
"""

from dataclasses import dataclass
from functools import lru_cache

from whatfits.estimator.memory.optimizers.parameters import Parameters
from whatfits.estimator.memory.optimizers.program import ParameterRole, ParameterTensor, StepPhase
from whatfits.estimator.memory.optimizers.registry import build_optimizer_program, optimizer_facts
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec
from whatfits.estimator.specs.layerwise import ONE_LAYER_OPTIMIZERS

__all__ = ["CostAt7B", "cost_at_7b", "llama_7b_parameters"]

BF16_BYTES = 2
HIDDEN, FEED_FORWARD, LAYERS, VOCABULARY = 4096, 11008, 32, 32000


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
    """The tensors of the model in module order."""
    layers = [tensor for layer in range(LAYERS) for tensor in _layer(f"model.layers.{layer}")]
    before = _tensor("model.embed_tokens.weight", (VOCABULARY, HIDDEN), ParameterRole.embedding)
    norm = _tensor("model.norm.weight", (HIDDEN,), ParameterRole.vector)
    head = _tensor("lm_head.weight", (VOCABULARY, HIDDEN), ParameterRole.head)
    return Parameters((before, *layers, norm, head))


def cost_at_7b(
    name: OptimizerName, implementation: OptimizerImplementation = OptimizerImplementation.FOREACH
) -> CostAt7B:
    """State and temporaries of an optimizer, every setting at its default."""
    program = build_optimizer_program(
        OptimizerSpec(name=name, implementation=implementation),
        param_dtype_bytes=BF16_BYTES,
        hidden_size=HIDDEN,
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


def _layer(name: str) -> list[ParameterTensor]:
    linear, vector = ParameterRole.linear, ParameterRole.vector
    attention = ("q_proj", "k_proj", "v_proj", "o_proj")
    norms = ("input_layernorm", "post_attention_layernorm")
    return [
        *(_tensor(f"{name}.self_attn.{part}.weight", (HIDDEN, HIDDEN), linear) for part in attention),
        *(
            _tensor(f"{name}.mlp.{part}.weight", (FEED_FORWARD, HIDDEN), linear)
            for part in ("gate_proj", "up_proj")
        ),
        _tensor(f"{name}.mlp.down_proj.weight", (HIDDEN, FEED_FORWARD), linear),
        *(_tensor(f"{name}.{part}.weight", (HIDDEN,), vector) for part in norms),
    ]


def _tensor(name: str, shape: tuple[int, ...], role: ParameterRole) -> ParameterTensor:
    return ParameterTensor(name=name, shape=shape, role=role)
