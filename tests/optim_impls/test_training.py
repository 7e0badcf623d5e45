"""A small LLaMA learns, step for step as with the reference: a short form of the training in `make verify`."""

import pytest

from tests.optim_impls.training import train_own, train_reference
from tests.optim_impls.training_cases import CASES

STEPS = 30
DETERMINISTIC = {case.name: case for case in reversed(CASES) if case.name in ("lion", "adan", "galore_adamw")}


@pytest.mark.parametrize("name", sorted(DETERMINISTIC))
def test_learns_as_with_the_reference(name: str) -> None:
    case = DETERMINISTIC[name]
    pytest.importorskip(case.reference.partition(".")[0])

    own, reference = train_own(case, STEPS), train_reference(case, STEPS)

    assert own[-1] < 0.9 * own[0]
    assert own == pytest.approx(reference, rel=2e-3)
