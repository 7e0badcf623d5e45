"""What `whatfits trace` traces: a class of an architecture, the model of any config, or a module of the user's own."""

from dataclasses import dataclass, replace
from functools import partial

from whatfits.estimator.catalog import model_argument, resolve_model
from whatfits.estimator.catalog.config_models import UntracedModelError, keep_facts, known_facts
from whatfits.estimator.catalog.resolve import default_seq_len
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile.store import save_class, stack_folder, user_profiles
from whatfits.estimator.specs import ModelSpec
from whatfits.estimator.specs.training import DEFAULT_SEQ_LEN
from whatfits.profiler.trace.child_process import TraceChild
from whatfits.profiler.trace.classes import class_at
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.produce import Produced, produce
from whatfits.service.cli.trace_answer import TraceAnswer, describe_trace
from whatfits.service.kept_traces import TRACED_CHECKPOINTINGS, compile_class, keep
from whatfits.service.trace_limits import Model, TraceLimits, naming_the_model

__all__ = ["Asked", "answer_with"]

_OWN = "python:"


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be traced: `options` without the model, the lengths, and what one trace may take."""

    name: str
    options: StepOptions
    micro_batch_size: int
    seq_len: int | None
    adapter_rank: int
    limits: TraceLimits

    @property
    def own(self) -> str:
        """MODULE:FACTORY of a module of the user's own; empty of other models."""
        return self.name.removeprefix(_OWN) if self.name.startswith(_OWN) else ""

    def check(self) -> None:
        """Refuse what names no model, before anything is started.

        Raises:
            InputError: it names none.
        """
        if self.own:
            _require_plain(self.options, "a module of your own", ("none",))
            return
        try:
            resolve_model(model_argument(self.name))
        except UntracedModelError:
            return

    def lengths(self, default_seq_len: int) -> Dims:
        """Micro-batch and sequence length."""
        return {"b": self.micro_batch_size, "s": self.seq_len or default_seq_len}


def answer_with(child: TraceChild, asked: Asked) -> TraceAnswer:
    """Trace, compile, verify and keep; what a class needs is one child.

    Raises:
        InputError: the model cannot be traced, or not like this.
        TraceError: the child cannot go on.
    """
    folder = user_profiles() / stack_folder(child.stack)
    describe = partial(describe_trace, versions=child.versions, python=child.python)
    if asked.own:
        with naming_the_model(asked.name, asked.limits):
            produced, point = _trace_own(child, asked)
        return describe(asked.name, produced, point, folder=None)
    model = model_argument(asked.name)
    spec = _find(child, model, asked)
    if spec.config is None:
        produced, dims = _trace_architecture(child, spec, asked)
        kept = produced.fallback is None
        if kept:
            save_class(produced.programs, folder)
        return describe(spec.name, produced, dims, folder=folder if kept else None)
    _require_plain(asked.options, spec.architecture, TRACED_CHECKPOINTINGS)
    options = replace(asked.options, architecture=spec.architecture, config=spec.config)
    facts = ConfigFacts.from_json(dict(known_facts(spec.config) or {}))
    lengths = asked.lengths(default_seq_len(spec))
    with naming_the_model(model, asked.limits):
        produced, point = compile_class(child, options, facts, lengths)
    keep(produced, child.stack)
    return describe(spec.name, produced, point, folder=folder)


def _find(child: TraceChild, model: Model, asked: Asked) -> ModelSpec:
    """The model, which the child builds once if nobody has."""
    try:
        return resolve_model(model)[0]
    except UntracedModelError as error:
        with naming_the_model(model, asked.limits):
            keep_facts(error.config, child.describe(error.config).to_json())
    return resolve_model(model)[0]


def _trace_architecture(child: TraceChild, spec: ModelSpec, asked: Asked) -> tuple[Produced, Dims]:
    options = replace(asked.options, architecture=spec.architecture, tie_embeddings=spec.tie_embeddings)
    dims: Dims = {**spec.dims, **asked.lengths(default_seq_len(spec)), "r": asked.adapter_rank}
    structure = class_at(options, dims)
    return produce(structure, child.stack, partial(child.trace, options=options), dims), dims


def _trace_own(child: TraceChild, asked: Asked) -> tuple[Produced, Dims]:
    facts = child.describe_own(asked.own)
    options = replace(asked.options, architecture=facts.architecture, factory=asked.own)
    return compile_class(child, options, facts, asked.lengths(DEFAULT_SEQ_LEN))


def _require_plain(options: StepOptions, what: str, checkpointings: tuple[str, ...]) -> None:
    """Refuse what is known of LLaMA and Qwen2 alone."""
    adapter = "none" if options.adapter is None else ",".join(options.adapter.targets)
    for flag, value, accepted in (
        ("--adapter", adapter, ("none",)),
        ("--loss", options.loss, ("standard",)),
        ("--mask", options.mask, ("none",)),
        ("--dropout", options.dropout, (0.0,)),
        ("--checkpointing", options.checkpointing, checkpointings),
    ):
        if value not in accepted:
            reason = f"{value} is not traced yet for {what}"
            raise UnsupportedError(flag, value, ", ".join(map(str, accepted)), reason=reason)
