"""What a batch carries, and what model code hears about it."""

from collections.abc import Callable

import pytest
import torch

from whatfits.profiler.trace.masks import MASKS, batch_inputs, scalar_answers

CPU = torch.device("cpu")


def everything_seen(given: dict[str, torch.Tensor]) -> bool:
    """What `.all()` of the mask, or of the positions one document would have, really is."""
    if "attention_mask" in given:
        return bool(given["attention_mask"].all())
    positions = given.get("position_ids")
    return positions is None or bool((positions.diff() == 1).all())


@pytest.mark.parametrize("mask", MASKS)
def test_the_answer_is_what_the_values_say(mask: str) -> None:
    given = batch_inputs(mask, 2, 6, CPU)

    assert scalar_answers(mask)(torch.empty((), dtype=torch.bool)) == everything_seen(given)


@pytest.mark.parametrize("make", [torch.empty, torch.zeros])
def test_a_number_that_depends_on_the_data_is_refused(make: Callable[..., torch.Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"reads a torch\.int64 value"):
        scalar_answers("none")(make((), dtype=torch.int64))


def test_inputs_by_mask() -> None:
    assert {m: set(batch_inputs(m, 2, 6, CPU)) - {"input_ids", "labels"} for m in MASKS} == {
        "none": set(),
        "ones": {"attention_mask"},
        "padded": {"attention_mask"},
        "packed": {"position_ids"},
    }
    assert batch_inputs("padded", 2, 4, CPU)["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch_inputs("packed", 2, 4, CPU)["position_ids"].tolist() == [[0, 1, 0, 1]] * 2


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="none, ones, padded, packed, not 'causal'"):
        batch_inputs("causal", 2, 4, CPU)
