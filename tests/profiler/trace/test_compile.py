"""The compiler accepts what repeats and refuses everything else."""

import pytest
import torch

from whatfits.estimator.profile import Token
from whatfits.estimator.profile.program import PARTS, Label
from whatfits.profiler.trace import compile as compiler
from whatfits.profiler.trace.compile import FlatToken, StructureError, find_cut, flatten
from whatfits.profiler.trace.events import Trace
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.training_step import MicroBatchTracer, assign_categories, trace_micro_batch

DIMS = {"L": 3, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 2, "d": 24, "V": 701}


def tokens(text: str) -> list[FlatToken]:
    """One token per letter."""
    return [FlatToken(Token.LAYER_ENTER, letter, 0, None) for letter in text]


def flat(text: str) -> dict[str, list[FlatToken]]:
    return {part: tokens(text if part == "forward" else "") for part in PARTS}


@pytest.mark.parametrize(
    ("base", "deeper"),
    [("abXXcd", "abXXXcd"), ("aPQPQz", "aPQPQPQz"), ("PQR", "PQRPQR"), ("ab", "ab"), ("", "")],
)
def test_a_cut_rebuilds_the_deeper_list(base: str, deeper: str) -> None:
    cut = find_cut(tokens(base), tokens(deeper))

    assert cut.body == len(deeper) - len(base)
    assert base[: cut.start] + deeper[cut.start : cut.start + cut.body] + base[cut.start :] == deeper


@pytest.mark.parametrize(("base", "deeper"), [("abcd", "axcyd"), ("abXc", "ab"), ("abc", "abd")])
def test_lists_without_a_repeating_body_are_refused(base: str, deeper: str) -> None:
    with pytest.raises(StructureError, match="no repeating body"):
        find_cut(tokens(base), tokens(deeper))


def test_affine_references_are_found_and_others_refused() -> None:
    observed = [(total, repeat, 7 + 5 * total - 3 * repeat) for total in (1, 2, 3) for repeat in range(total)]

    assert compiler._fit_reference(observed) == (7, 5, -3)
    with pytest.raises(StructureError, match="not affine"):
        compiler._fit_reference([(1, 0, 1), (2, 0, 4), (3, 0, 9)])


def test_a_third_depth_that_does_not_continue_the_pattern_is_refused() -> None:
    """Layers that alternate look like a body of one layer until the next depth."""
    depths = {3: flat("abXXXz"), 4: flat("abXXXXz"), 5: flat("abXXXXYz")}
    cuts = {part: find_cut(depths[3][part], depths[4][part]) for part in PARTS}

    with pytest.raises(StructureError, match="forward at 5 layers"):
        compiler._require_same_tokens(depths, cuts)


def test_a_point_with_other_tokens_is_refused() -> None:
    with pytest.raises(StructureError, match="tokens at one point"):
        compiler._require_same_structure(flat("ab"), flat("abc"))
    with pytest.raises(StructureError, match="differs between points"):
        compiler._require_same_structure(flat("ab"), flat("ac"))


class DoubledMlp(torch.nn.Module):
    """Runs the layer's feed-forward network twice."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(self.inner(hidden))
        return result


def heterogeneous_trace(num_layers: int) -> Trace:
    """Every second layer is another one."""
    model = build_model({**DIMS, "L": num_layers}, StepOptions())
    for layer in list(model.get_submodule("model.layers").children())[::2]:
        layer.mlp = DoubledMlp(layer.mlp)  # type: ignore[arg-type]
    parts = MicroBatchTracer(model).micro_batch(DIMS["b"], DIMS["s"])
    assign_categories(parts, "lm_head")
    return Trace(parts=parts, parameters=(), buffers=())


def test_a_stack_of_unlike_layers_is_refused() -> None:
    flats = {depth: flatten(heterogeneous_trace(depth)) for depth in (3, 4, 5)}

    with pytest.raises(StructureError):
        compiler._require_same_tokens(
            flats, {part: find_cut(flats[3][part], flats[4][part]) for part in PARTS}
        )


def test_labels_of_all_layers_are_alike() -> None:
    found = flatten(trace_micro_batch(DIMS, StepOptions()))

    modules = {
        token.label.module for part in PARTS for token in found[part] if isinstance(token.label, Label)
    }
    assert "model.layers.*.self_attn" in modules
    assert not any(character.isdigit() for module in modules for character in module)
