"""What a question needs of a model, traced in a child and kept in the user's folder: a direct trace, or a class compiled.

Nothing here loads torch: the child does.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.catalog.config_models import known_facts
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile import ProfileKey
from whatfits.estimator.profile.store import save_class, save_profile, stack_folder, user_profiles
from whatfits.service.trace_limits import Model

if TYPE_CHECKING:
    from whatfits.profiler.trace.child_process import TraceChild
    from whatfits.profiler.trace.classes import StructureClass
    from whatfits.profiler.trace.config_facts import ConfigFacts
    from whatfits.profiler.trace.events import Trace
    from whatfits.profiler.trace.options import Dims, StepOptions
    from whatfits.profiler.trace.produce import Produced

__all__ = ["TRACED_CHECKPOINTINGS", "compile_class", "keep", "trace_class", "trace_directly"]

TRACED_CHECKPOINTINGS = ("none", "full")
"""Of models that are known by their config; which layers others name is not known of them."""
_MAX_EVENTS = 300_000
"""Nine times those of DeepSeek-V3's step (32,118, its 61 layers of experts): more is a mistake or an attack."""
_NOT_COMPILED = (
    "`whatfits trace` compiles this model for every micro-batch and length, and has not done so yet"
)
_LENGTH_BY_LENGTH = "this model's code computes one token after the other, and is traced length by length"


def _options(model: Model, key: ProfileKey) -> "StepOptions":
    """What a key says, to be traced."""
    from whatfits.profiler.trace.classes import KERNEL_ORDERS
    from whatfits.profiler.trace.options import StepOptions

    config = resolve_model(model)[0].config
    assert config is not None, "the key names a config"
    if key.checkpointing not in TRACED_CHECKPOINTINGS:
        reason = f"{key.checkpointing} is not traced yet for {key.architecture}"
        accepted = ", ".join(TRACED_CHECKPOINTINGS)
        raise UnsupportedError(
            "training.activation_checkpointing", key.checkpointing, accepted, reason=reason
        )
    return StepOptions(
        architecture=key.architecture,
        config=config,
        precision=key.precision,
        attention=key.attention,
        kernels=KERNEL_ORDERS[key.first_kernel],
        checkpointing=key.checkpointing,
    )


def _structure(options: "StepOptions", facts: "ConfigFacts", dims: "Dims") -> "tuple[StructureClass, Dims]":
    """The class that a micro-batch and a sequence length fall into, and all dims of that point."""
    from whatfits.profiler.trace.config_classes import config_class

    targets = {"t": dims["s"]} if facts.inputs == "tokens_and_targets" else {}
    return config_class(options, facts, dims), {"L": facts.num_layers, **targets, **dims}


def _kept_facts(config: str) -> "ConfigFacts":
    from whatfits.profiler.trace.config_facts import ConfigFacts

    facts = known_facts(config)
    assert facts is not None, "the model was resolved"
    return ConfigFacts.from_json(dict(facts))


def _tracer(child: "TraceChild", options: "StepOptions") -> "Callable[[Dims], Trace]":
    """Trace in the child; a step of very many events would take this process too long to compile."""

    def trace(dims: "Dims") -> "Trace":
        found = child.trace(dims, options)
        count = sum(len(tokens) for tokens in found.parts.values())
        if count > _MAX_EVENTS:
            reason = f"one step of it at {dims} has {count:,} events"
            raise UnsupportedError(
                "model", options.architecture, f"a step of at most {_MAX_EVENTS:,} events", reason=reason
            )
        return found

    return trace


def trace_directly(child: "TraceChild", model: Model, key: ProfileKey, dims: "Dims") -> None:
    """Keep a direct trace, which answers for this micro-batch and this length alone.

    Raises:
        UnsupportedError: The model, or its length, is not traced.
    """
    from whatfits.profiler.trace.produce import direct_program
    from whatfits.profiler.trace.token_loops import TOKEN_BY_TOKEN

    options = _options(model, key)
    structure, point = _structure(options, _kept_facts(options.config), dims)
    _require_short_sequences(child, options, point)
    trace = _tracer(child, options)(point)
    reason = _LENGTH_BY_LENGTH if options.architecture in TOKEN_BY_TOKEN else _NOT_COMPILED
    program = direct_program(structure, child.stack, trace, point, reason)
    save_profile(program, user_profiles() / stack_folder(child.stack))


def trace_class(child: "TraceChild", model: Model, key: ProfileKey, dims: "Dims") -> None:
    """Keep the class that a micro-batch and a length fall into, compiled.

    Raises:
        UnsupportedError: It is not traced, or does not compile.
    """
    options = _options(model, key)
    produced, _ = compile_class(child, options, _kept_facts(options.config), dims)
    keep(produced, child.stack)
    if produced.fallback is not None:
        reason = (
            f"a plan needs {key.slug} for every micro-batch, and it does not compile: {produced.fallback}"
        )
        accepted = "an estimate, which is answered from a direct trace"
        raise UnsupportedError("model", key.architecture, accepted, reason=reason)


def compile_class(
    child: "TraceChild", options: "StepOptions", facts: "ConfigFacts", dims: "Dims"
) -> "tuple[Produced, Dims]":
    """The class that a micro-batch and a sequence length fall into, verified there too; and all dims of that point."""
    from whatfits.profiler.trace.produce import produce

    structure, point = _structure(options, facts, dims)
    _require_short_sequences(child, options, point)
    return produce(structure, child.stack, _tracer(child, options), point), point


def _require_short_sequences(child: "TraceChild", options: "StepOptions", dims: "Dims") -> None:
    """Refuse at once what steps through a sequence token by token, and would not be traced within the limits."""
    from whatfits.profiler.trace.token_loops import TOKEN_BY_TOKEN, token_loop

    if options.architecture not in TOKEN_BY_TOKEN:
        return
    loop = token_loop(lambda point: child.trace(point, options), dims)
    if loop.events(dims["s"]) <= _MAX_EVENTS:
        return
    reason = (
        f"{options.architecture} computes one token after the other in transformers' own code, the one that is traced: "
        f"a step of {dims['s']:,} tokens has {loop.events(dims['s']):,} events, more than {_MAX_EVENTS:,}"
    )
    raise UnsupportedError(
        "training.seq_len", dims["s"], f"at most {loop.longest(_MAX_EVENTS)} for this model", reason=reason
    )


def keep(produced: "Produced", stack: Mapping[str, str]) -> None:
    """Keep a class; of one that does not compile the direct trace, which answers its own question alone."""
    folder = user_profiles() / stack_folder(stack)
    if produced.fallback is None:
        save_class(produced.programs, folder)
    elif produced.program.key.only:
        save_profile(produced.program, folder)
