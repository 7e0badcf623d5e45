"""Trace in the environment of any Python that has torch and transformers: `python -m whatfits.profiler.trace.child`.

Nothing else is needed there but the numpy that transformers needs: no pydantic, no installed whatfits.
`child_process.TraceChild` starts this module so that only modules of whatfits come from outside the interpreter's own
environment. By hand, where whatfits is installed beside torch, the command above does.

The first line of the answer introduces the interpreter:

    {"python": "3.11.2", "versions": {"torch": "2.13.0", "transformers": "4.57.6"}}

Each line of standard input is a request, one JSON object; it is answered with one line for each of its points:

    {"options": {"precision": "bf16_mixed", "attention": "sdpa", "checkpointing": "full"},
     "points": [{"L": 3, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 2, "d": 24, "V": 701}]}

    {"trace": {"parts": {...}, "origins": [...], "parameters": [...], "buffers": [...]}}      as in `protocol`

or asks what a config is:

    {"describe": {"config": "{...}", "architecture": ""}}

    {"facts": {"architecture": "GPT2LMHeadModel", "num_layers": 12, ...}}                    as in `config_facts`

or, with `factory` in place of both, what a module of the user's own is.

`options` are the fields of `StepOptions`, those left out at their defaults (`adapter` holds those of
`AdapterOptions`); a point holds the `Dims`. What goes wrong is a line too, in place of any of these:

    {"error": {"kind": "missing_package", "package": "torch", "message": "..."}}

Kinds: `missing_package` and `unusable_package` in place of the introduction, after which the program ends;
`bad_request`, once for a request; `config_refused` for a description, with the `field` of the config at fault;
`trace_failed`, `out_of_memory`, or `missing_package` where an adapter needs peft, for one point.
It ends when standard input does. What libraries print goes to standard error.
"""

import importlib
import importlib.util
import json
import logging
import platform
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from whatfits.profiler.answers import claim_standard_output, write_answer
from whatfits.profiler.trace.protocol import options_from_json, trace_to_json
from whatfits.profiler.trace.stack import STACK_PACKAGES, installed_versions, outdated

__all__ = ["main"]

Json = dict[str, Any]  # Any: whatever JSON holds


def main() -> int:
    """Introduce this interpreter, then answer requests until there are no more."""
    answers = claim_standard_output()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    trouble = _trouble()
    if trouble is not None:
        write_answer(answers, {"error": trouble})
        return 2
    write_answer(answers, {"python": platform.python_version(), "versions": installed_versions()})
    for line in sys.stdin:
        for answer in answer_request(line):
            write_answer(answers, answer)
    return 0


def answer_request(line: str) -> Iterator[Json]:
    """One answer for each point of a request."""
    from whatfits.profiler.trace.training_step import trace_micro_batch  # noqa: PLC0415  (needs what `_trouble` looks for)

    try:
        request = json.loads(line)
        if "describe" in request:
            yield _facts(**request["describe"])
            return
        options = options_from_json(request.get("options", {}))
        points = [{str(name): int(value) for name, value in point.items()} for point in request["points"]]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        yield {"error": {"kind": "bad_request", "message": f"{type(error).__name__}: {error}"}}
        return
    for dims in points:
        try:
            yield {"trace": trace_to_json(trace_micro_batch(dims, options))}
        except Exception as error:  # noqa: BLE001  (whatever the traced code raises is the answer)
            yield {"error": {"kind": _kind(error), **_describe(error)}}


def _facts(config: str = "", architecture: str = "", factory: str = "") -> Json:
    from whatfits.profiler.trace.configs import describe  # noqa: PLC0415  (as above)
    from whatfits.profiler.trace.own_module import describe_own  # noqa: PLC0415  (as above)

    try:
        facts = describe_own(factory) if factory else describe(config, architecture)
        return {"facts": facts.to_json()}
    except Exception as error:  # noqa: BLE001  (whatever the model's code raises is the answer)
        return {"error": {"kind": _kind(error), "field": getattr(error, "field", ""), **_describe(error)}}


def _kind(error: Exception) -> str:
    """What an error of the traced code is; torch says in words alone that it got no memory."""
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return "out_of_memory"
    if type(error).__name__ == "ConfigError":  # whose module imports torch
        return "config_refused"
    missing = isinstance(error, ModuleNotFoundError) and error.name is not None
    return "missing_package" if missing else "trace_failed"


def _trouble() -> Json | None:
    """What keeps this interpreter from tracing."""
    for package in STACK_PACKAGES:
        if importlib.util.find_spec(package) is None:
            return {"kind": "missing_package", "package": package, "message": f"{package} is not installed"}
    old = outdated(installed_versions())
    if old is not None:
        return {"kind": "unusable_package", "package": old.partition(" ")[0], "message": old}
    try:
        importlib.import_module("whatfits.profiler.trace.training_step")
    except Exception as error:  # noqa: BLE001  (an import may raise anything)
        package = (getattr(error, "name", None) or "torch").partition(".")[0]
        return {"kind": "unusable_package", **_describe(error), "package": package}
    return None


def _describe(error: Exception) -> Json:
    package = error.name if isinstance(error, ModuleNotFoundError) else None
    known = {"package": package} if package else {}
    return {**known, "type": type(error).__name__, "message": str(error)[:2000]}


if __name__ == "__main__":
    sys.exit(main())
