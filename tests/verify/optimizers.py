"""Every own optimizer trains a small LLaMA beside its public reference."""

import torch

from tests.optim_impls.training import STEPS, Case, mean_last, train_own, train_reference
from tests.optim_impls.training_cases import CASES
from tests.verify.report import Section
from whatfits.optim_impls.registry import REGISTRY

__all__ = ["verify_training"]

LEAST_FALL = 0.75
"""Of the loss beside the reference's; MeZO's falls so little that the loss itself says nothing."""


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
        summary=f"{len({c.name for c in CASES})} methods in {len(CASES)} rows, {STEPS} steps of a LLaMA of two layers of 64 "
        "in fp32 on a Markov chain of 256 tokens; same weights, data and hyper-parameters; mean loss of the last 20 "
        "steps. At most 1.01 times the reference's, since random projections and parts are drawn apart and sums are "
        f"rounded in another order; {len(failures)} worse",
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
    if not own[0] - last > LEAST_FALL * (reference[0] - theirs) > 0:
        return row, f"{case.title}: the loss fell from {own[0]:.3f} to {last:.3f} only"
    return row, "" if ratio <= limit else f"{case.title}: {ratio:.4f} of {case.reference}'s loss"
