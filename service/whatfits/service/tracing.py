"""Answers about models nobody has traced yet: a child process traces what a question needs, and that is kept.

An estimate is answered from a direct trace of its very micro-batch and sequence length, which takes seconds; a plan,
which asks for many of them, from the classes it needs, compiled. Nothing here loads torch: the child does.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

from whatfits.estimator import estimate_run, plan_runs
from whatfits.estimator.catalog import resolve_model, resolve_run
from whatfits.estimator.catalog.config_models import UntracedModelError, keep_facts
from whatfits.estimator.catalog.resolve import default_seq_len
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.profile import MissingProfileError, ProfileKey, config_id
from whatfits.estimator.specs import Estimate, Plan, PlanRequest, RunSpec
from whatfits.service.kept_traces import trace_class, trace_directly
from whatfits.service.trace_limits import Model, TraceLimits, TracingBusyError, naming_the_model

if TYPE_CHECKING:
    from whatfits.profiler.trace.child_process import TraceChild

__all__ = ["OnDemand"]

Answer = TypeVar("Answer")

_CLASSES_OF_A_PLAN = 4
_NUM_LOCKS = 64


class OnDemand:
    """Answers the two questions, tracing models that nobody has traced; safe to use from several threads."""

    def __init__(
        self, limits: TraceLimits | None = None, *, notify: Callable[[str], object] = lambda _: None
    ) -> None:
        """Answer within limits; `notify` is told, in a sentence, what an answer waits for."""
        self._limits = limits or TraceLimits()
        self._notify = notify
        self._places = threading.BoundedSemaphore(self._limits.max_waiting)
        self._children = threading.BoundedSemaphore(self._limits.max_children)
        self._locks = tuple(threading.Lock() for _ in range(_NUM_LOCKS))

    def estimate(self, run: RunSpec, *, explain: bool = False) -> Estimate:
        """As `estimate_run`."""

        def trace(child: "TraceChild", key: ProfileKey) -> None:
            training = resolve_run(run).run.training
            dims = {"b": training.micro_batch_size, "s": training.seq_len}
            if training.target_seq_len is not None:
                dims["t"] = training.target_seq_len
            trace_directly(child, run.model, key, dims)

        ask = partial(estimate_run, run, explain=explain)
        return self._answer(ask, run.model, trace, num_classes=1)

    def plan(self, request: PlanRequest) -> Plan:
        """As `plan_runs`."""

        def trace(child: "TraceChild", key: ProfileKey) -> None:
            seq_len = request.seq_len or default_seq_len(resolve_model(request.model)[0])
            dims = {"b": 1 if key.micro_batch == "one" else 2, "s": seq_len}
            trace_class(child, request.model, key, dims)

        return self._answer(partial(plan_runs, request), request.model, trace, num_classes=_CLASSES_OF_A_PLAN)

    def _answer(
        self,
        ask: Callable[[], Answer],
        model: Model,
        trace: Callable[["TraceChild", ProfileKey], None],
        *,
        num_classes: int,
    ) -> Answer:
        """Ask; trace what is missing and ask again."""
        try:
            return ask()
        except (UntracedModelError, MissingProfileError) as error:
            if _class_of(error) is None:
                raise
            if not _can_trace():
                raise _naming_the_extra(error) from None
            lock = self._locks[int(_class_of(error) or "", 16) % _NUM_LOCKS]
        with self._place(), self._waiting(lock):
            with suppress(UntracedModelError, MissingProfileError):  # another question may have had it traced
                return ask()
            with self._waiting(self._children), self._start(model, num_classes) as child:
                return self._trace_and_ask(child, ask, trace)

    def _trace_and_ask(
        self,
        child: "TraceChild",
        ask: Callable[[], Answer],
        trace: Callable[["TraceChild", ProfileKey], None],
    ) -> Answer:
        seen: set[object] = set()
        while True:
            try:
                return ask()
            except UntracedModelError as error:
                _require_new(error, error.config, seen)
                self._notify("building the model, which nobody has traced yet")
                keep_facts(error.config, child.describe(error.config).to_json())
            except MissingProfileError as error:
                _require_new(error, error.key, seen)
                if error.key is None or not error.key.config or child.stack != error.stack:
                    raise
                self._notify(f"tracing {error.key.slug}")
                trace(child, error.key)

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Be one of the questions that wait; refused at once where there are too many, so that others are answered."""
        if not self._places.acquire(blocking=False):
            raise TracingBusyError("too many questions wait for a trace; ask again later")
        try:
            yield
        finally:
            self._places.release()

    @contextmanager
    def _waiting(self, lock: "threading.Lock | threading.BoundedSemaphore") -> Iterator[None]:
        """Hold a lock, got within the time a trace may take."""
        if not lock.acquire(timeout=self._limits.timeout_seconds):
            raise TracingBusyError("too many models are being traced; ask again later")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _start(self, model: Model, num_classes: int) -> Iterator["TraceChild"]:
        from whatfits.profiler.trace.child_process import TraceChild

        limits = self._limits
        with naming_the_model(model, limits):
            child = TraceChild(
                sys.executable,
                timeout_seconds=limits.timeout_seconds,
                total_seconds=limits.timeout_seconds * num_classes,
                memory_bytes=limits.memory_bytes,
            )
            with child:
                yield child


def _can_trace() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "transformers"))


def _class_of(error: UntracedModelError | MissingProfileError) -> str | None:
    """The config that is to be traced; none where no config can be."""
    if isinstance(error, UntracedModelError):
        return config_id(error.config)
    return (error.key.config or None) if error.key is not None else None


def _naming_the_extra(error: InputError) -> InputError:
    reason = f"{error.reason}; where 'whatfits[agent]' is installed, this is done on demand"
    return UnsupportedError(error.field, error.value, error.accepted, reason=reason)


def _require_new(error: InputError, missing: object, seen: set[object]) -> None:
    """Raise what was traced and is missing all the same."""
    if missing in seen:
        raise error
    seen.add(missing)
