"""Every own optimizer trains a small LLaMA beside its public reference."""

import torch

from tests.optim_impls.training import STEPS, Case, mean_last, train_own, train_reference
from tests.optim_impls.training_cases import CASES
from tests.verify.report import Section
from whatfits.optim_impls.registry import REGISTRY

__all__ = ["verify_training"]


def verify_training() -> Section:
    """The mean loss of the last steps is no worse than the reference's, within the row's tolerance."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: list[tuple[object, ...]] = []
    failures = []
    references: dict[str, list[float]] = {}
    for case in CASES:
        own = train_own(case)
        key = repr((case.reference, case.settings, case.projected))
        if key not in references:
            references[key] = train_reference(case)
        row, failure = compare(case, own, references[key])
        rows.append(row)
        failures += [failure] if failure else []
    torch.set_num_threads(threads)
    missing = {name for name, entry in REGISTRY.items() if entry.source == "own"} - {c.name for c in CASES}
    failures += [f"{name}: not trained here" for name in sorted(missing)]
    return Section(
        title="Own optimizers train a LLaMA as well as their references",
        summary=f"{len({c.name for c in CASES})} methods in {len(CASES)} forms, {STEPS} steps on a Markov chain of 256 tokens, "
        "same weights, data and hyper-parameters; mean loss of the last 20 steps. Tolerance 1%, since projections and "
        "roundings are drawn apart or differ in their order; 10% where only AdamW, with full states, is there to compare "
        f"with; {len(failures)} worse",
        columns=(
            "method",
            "reference",
            "it is",
            "first loss",
            "last loss",
            "reference's last",
            "ratio",
            "at most",
        ),
        rows=rows,
        failures=failures,
    )


def compare(case: Case, own: list[float], reference: list[float]) -> tuple[tuple[object, ...], str]:
    """A row, and what failed or nothing."""
    last, theirs = mean_last(own), mean_last(reference)
    ratio, limit = last / theirs, 1 + case.tolerance
    row = (
        case.title,
        case.reference,
        case.note,
        f"{own[0]:.3f}",
        f"{last:.4f}",
        f"{theirs:.4f}",
        f"{ratio:.4f}",
        f"{limit:.2f}",
    )
    if not last < own[0]:
        return row, f"{case.title}: the loss did not fall, {own[0]:.3f} to {last:.3f}"
    return row, "" if ratio <= limit else f"{case.title}: {ratio:.4f} of {case.reference}'s loss"
