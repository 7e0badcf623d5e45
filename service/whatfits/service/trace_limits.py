"""What a trace that somebody waits for may take, and what is said where that, or the model, is not enough."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from whatfits.estimator.errors import InputError, UnsupportedError, WhatfitsError
from whatfits.estimator.units import GIB, format_bytes

__all__ = ["Model", "TraceLimits", "TracingBusyError", "naming_the_model"]

# What a question names a model by: a catalog name, or a config, which holds arbitrary JSON.
Model = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLimits:
    """What a trace that somebody waits for may take."""

    timeout_seconds: float = 60.0
    """Wall-clock time of the child, of each class where a plan needs several."""
    memory_bytes: int = 4 * GIB
    """What the child may allocate."""
    max_children: int = 2
    """Children at a time."""
    max_waiting: int = 8
    """Questions that trace or wait for it at a time; a fifth of the threads in which Starlette answers (40, anyio's)."""


class TracingBusyError(WhatfitsError):
    """Too many models are being traced at the moment."""

    retry_after_seconds = 10
    """What a trace of a 70B, the largest of common models, takes (benchmarks/speed.json)."""


@contextmanager
def naming_the_model(model: Model, limits: TraceLimits) -> Iterator[None]:
    """What goes wrong in the child, as an error about the model that the question names."""
    from whatfits.profiler.trace.child_process import (
        ConfigRefusedError,
        TraceEndedError,
        TraceError,
        TraceFailedError,
        TraceMemoryError,
        TraceTimeoutError,
    )

    name = model if isinstance(model, str) else str(model.get("model_type"))
    runs = "a model whose training step runs as asked"
    try:
        yield
    except ConfigRefusedError as error:
        field = f"model.{error.field}" if error.field else "model"
        value = model[error.field] if error.field and not isinstance(model, str) else name
        accepted = "a config that transformers makes a model of by itself"
        raise InputError(field, value, accepted, reason=str(error)) from error
    except TraceTimeoutError as error:
        accepted = f"a model that is traced within {limits.timeout_seconds:g} s; `whatfits trace --timeout` allows more"
        raise UnsupportedError("model", name, accepted, reason=f"{name}: {error}") from error
    except TraceMemoryError as error:
        size = format_bytes(limits.memory_bytes)
        accepted = f"a model that is traced within {size}; `whatfits trace --memory-gib` allows more"
        raise UnsupportedError("model", name, accepted, reason=f"{name}: {error}") from error
    except TraceFailedError as error:
        raise UnsupportedError("model", name, runs, reason=f"tracing {name} raised {error}") from error
    except TraceEndedError as error:
        reason = f"tracing {name} broke the process that traces: {error}"
        raise UnsupportedError("model", name, runs, reason=reason) from error
    except TraceError as error:
        accepted = "a model of the catalog that ships with profiles"
        reason = f"{name} cannot be traced here: {error}"
        raise UnsupportedError("model", name, accepted, reason=reason) from error
