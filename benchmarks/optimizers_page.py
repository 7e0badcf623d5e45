"""Writes docs/optimizers.md from the registry, the estimator's programs and the published results.

Run by `make docs-optimizers`; tests/optim_impls/test_page.py holds the page to be current.
"""

from pathlib import Path

import torch

from whatfits.estimator.memory.at_7b import llama_7b_parameters
from whatfits.estimator.memory.optimizers import OPTIMIZERS, ParameterRole
from whatfits.estimator.specs import OptimizerName
from whatfits.estimator.units import GIB
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.registry import REGISTRY
from whatfits.service.api.schemas import OptimizerEntry as Described
from whatfits.service.api.schemas import describe_optimizer

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parent.parent / "docs" / "optimizers.md"
_ROLES = {
    ParameterRole.linear: Role.MATRIX,
    ParameterRole.embedding: Role.EMBEDDING,
    ParameterRole.head: Role.HEAD,
    ParameterRole.vector: Role.VECTOR,
}
_HEAD = """# Optimizers

Written by `make docs-optimizers`; do not edit.

`build_optimizer(name, model, **hyperparameters)` of `whatfits.optim_impls.build` makes every optimizer of this page: our own
code, or a library's class behind the same call. It splits the parameters as the method's paper does (matrices inside the
model, embeddings, head, vectors), refuses what cannot work before training begins, and returns a `torch.optim.Optimizer`.
`layerwise=True` updates each parameter inside the backward pass and frees its gradient. State holds tensors and numbers
only, so that it loads with `torch.load(weights_only=True)`.

## What each costs

Bytes on LLaMA-7B (6,738,415,616 parameters) in bf16 with default settings, by the estimator's programs; "step" is the peak of
temporaries in a step, refresh steps included. Where there is a program of our own code the second row is the published
code's. `-`: temporaries of a library's step that no program models.

| name | code | licence | state, bytes per parameter | step, GiB | layer-wise | accumulates | clips | `optim=` in HF Trainer |
|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = [row for entry in REGISTRY.values() for row in _cost_rows(entry)]
    parts = [_HEAD + "\n".join(rows), "## Each method", *(_section(entry) for entry in REGISTRY.values())]
    return "\n\n".join(parts) + "\n"


def _described(name: str) -> Described | None:
    return describe_optimizer(name, OPTIMIZERS[OptimizerName(name)]) if name in set(OptimizerName) else None


def _cost_rows(entry: OptimizerEntry) -> list[str]:
    can, described = entry.capabilities, _described(entry.name)
    layerwise = ("yes" if can.whole_step else "only") if can.layerwise else "no"
    flags = [layerwise, "yes" if can.accumulates else "no", "yes" if can.clips else "no"]
    tail = [*flags, f"`{entry.trainer_name}`" if entry.trainer_name else ""]
    code = entry.source if entry.source == "own" else f"`{entry.source}`"
    if described is None:
        return [_row(f"`{entry.name}`", code, entry.licence, *_declared_costs(entry), *tail)]
    own, *published = reversed(described.at_7b)
    costs = [(f"{c.state_bytes_per_parameter:.3f}", f"{_step(c) / GIB:.3f}") for c in (own, *published)]
    rows = [_row(f"`{entry.name}`", code, entry.licence, *costs[0], *tail)]
    return rows + [_row("", "as published", "", *cost, "", "", "", "") for cost in costs[1:]]


def _declared_costs(entry: OptimizerEntry) -> tuple[str, str]:
    """By the registry's declarations, where the estimator has no program of that name."""
    declaration, hyper = entry.declaration, entry.defaults
    tensors = [Parameter(t.shape, torch.bfloat16, _ROLES[t.role]) for t in llama_7b_parameters()]
    state = sum(s.nbytes for s in declaration.shared_states(hyper))
    state += sum(s.nbytes for tensor in tensors for s in declaration.states(tensor, hyper))
    per_parameter = f"{state / sum(tensor.numel for tensor in tensors):.3f}"
    if entry.source != "own":
        return per_parameter, "-"
    phases = (Phase.STEADY, Phase.REFRESH)
    step = max(
        declaration.transient_bytes(tensor, hyper, phase) for tensor in set(tensors) for phase in phases
    )
    return per_parameter, f"{step / GIB:.3f}"


def _step(cost: object) -> int:
    return max(cost.step_bytes, cost.refresh_bytes)  # type: ignore[attr-defined, no-any-return]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _section(entry: OptimizerEntry) -> str:
    described = _described(entry.name)
    lines = [f"### {entry.title} (`{entry.name}`)", "", entry.summary, "", f"* Paper: {entry.paper}."]
    treatments = {role: entry.declaration.treatment(role) for role in Role}
    lines.append(f"* Parameters: {', '.join(f'{role} {what}' for role, what in treatments.items())}.")
    defaults = ", ".join(f"`{key}={value!r}`" for key, value in entry.defaults.items())
    lines.append(f"* Hyper-parameters: {defaults}.")
    if (interval := entry.declaration.refresh_interval(entry.defaults)) is not None:
        lines.append(f"* Refreshed every {interval} steps.")
    if entry.extra:
        lines.append(f"* Needs `pip install 'whatfits[{entry.extra}]'`.")
    lines += [f"* {key}: {reason.rstrip('.')}." for key, reason in entry.capabilities.reasons.items()]
    if entry.paper_differences:
        lines.append(f"* Paper and code: {entry.paper_differences.rstrip('.')}.")
    if described is not None and described.default_rank:
        lines.append(f"* Default rank of the estimator: {described.default_rank}.")
    return "\n".join([*lines, *_quality(described)])


def _quality(described: Described | None) -> list[str]:
    if described is None or not described.quality:
        return []
    head = [
        "",
        "| task | model | rank | metric | value | AdamW's | ratio | from |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        _row(
            row.task,
            row.model,
            str(row.rank or ""),
            f"{row.metric} ({'lower' if row.lower_is_better else 'higher'} is better)",
            f"{row.value:g}",
            f"{row.adamw_value:g}",
            f"{row.ratio_to_adamw:.3f}",
            f"{row.source}, {row.table}",
        )
        for row in described.quality
    ]
    return head + rows


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE}: {len(REGISTRY)} optimizers")
