"""The question as the form and the query string write it, and as the API and the command line take it."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from whatfits.web.answers import FieldProblem, Problem

__all__ = [
    "FormProblems",
    "PlanForm",
    "assign_problems",
    "build_cli_command",
    "build_plan_request",
    "read_plan_form",
]

DEFAULT_MODEL = "LLaMA-13B"
DEFAULT_GPUS = "8xA100-80GB"
DEFAULT_SEQ_LEN = "2048"
DEFAULT_OBJECTIVE = "throughput"
DEFAULT_PRECISION = "bf16"

_LONGEST_NUMBER = 18


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanForm:
    """The form's fields as text, exactly as given, so that a wrong one can be shown again."""

    model: str = DEFAULT_MODEL
    gpus: str = DEFAULT_GPUS
    seq_len: str = DEFAULT_SEQ_LEN
    global_batch_size: str = ""
    optimizers: tuple[str, ...] = ()
    """Names asked for; none means all."""
    precision: str = DEFAULT_PRECISION
    objective: str = DEFAULT_OBJECTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class FormProblems:
    """What is wrong, by form field; `general` is what belongs to none."""

    by_field: dict[str, tuple[str, ...]]
    general: tuple[str, ...]

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.general, *(sentence for found in self.by_field.values() for sentence in found))


class QueryString(Protocol):
    """What is read of a parsed query string."""

    def get(self, key: str, default: str) -> str: ...

    def getlist(self, key: str) -> list[str]: ...


def read_plan_form(query: QueryString) -> PlanForm:
    """The form that a query string states; what it leaves out has the default."""
    return PlanForm(
        model=query.get("model", DEFAULT_MODEL).strip(),
        gpus=query.get("gpus", DEFAULT_GPUS).strip(),
        seq_len=query.get("seq_len", DEFAULT_SEQ_LEN).strip(),
        global_batch_size=query.get("global_batch_size", "").strip(),
        optimizers=tuple(dict.fromkeys(name for name in query.getlist("optimizer") if name != "all")),
        precision=query.get("precision", DEFAULT_PRECISION).strip(),
        objective=query.get("objective", DEFAULT_OBJECTIVE).strip(),
    )


# A plan request is JSON; the API checks it.
def build_plan_request(form: PlanForm) -> dict[str, Any]:
    """The API's request for a form: text that is no number stays text, for the API to refuse in its own words."""
    request: dict[str, Any] = {"model": form.model, "hardware": form.gpus}
    if form.seq_len:
        request["seq_len"] = _number_or_text(form.seq_len)
    if form.global_batch_size:
        request["global_batch_size"] = _number_or_text(form.global_batch_size)
    request["optimizers"] = list(form.optimizers) or "all"
    request["precisions"] = [form.precision]
    request["objective"] = form.objective
    return request


def build_cli_command(form: PlanForm) -> str:
    """The shell command that asks the same question."""
    words = ["whatfits", "plan", form.model, "--gpus", form.gpus]
    if form.seq_len:
        words += ["--seq-len", form.seq_len]
    if form.global_batch_size:
        words += ["--global-batch-size", form.global_batch_size]
    for name in form.optimizers:
        words += ["--optimizer", name]
    words += ["--precision", form.precision, "--objective", form.objective]
    return shlex.join(words)


_FIELD_OF = {
    "model": "model",
    "hardware": "gpus",
    "gpu": "gpus",
    "gpus": "gpus",
    "seq_len": "seq_len",
    "global_batch_size": "global_batch_size",
    "optimizers": "optimizers",
    "optimizer": "optimizers",
    "precisions": "precision",
    "precision": "precision",
    "objective": "objective",
}


def assign_problems(problem: Problem | None) -> FormProblems:
    """Sort a problem document's errors to the form fields they are about."""
    if problem is None:
        return FormProblems(by_field={}, general=())
    by_field: dict[str, tuple[str, ...]] = {}
    general: tuple[str, ...] = () if problem.errors else (problem.detail,)
    for error in problem.errors:
        field = _form_field_of(error)
        if field is None:
            general += (error.detail,)
        else:
            by_field[field] = (*by_field.get(field, ()), error.detail)
    return FormProblems(by_field=by_field, general=general)


def _form_field_of(error: FieldProblem) -> str | None:
    parts: Iterable[str] = (*(error.pointer or "").split("/"), *error.field.split("."))
    return next((_FIELD_OF[part] for part in parts if part in _FIELD_OF), None)


def _number_or_text(text: str) -> int | str:
    is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) <= _LONGEST_NUMBER
    return int(text) if is_number else text
