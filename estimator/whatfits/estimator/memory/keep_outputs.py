"""The event program of a loop that holds the model's outputs longer than the forward pass."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile import CountTable, EventProgram, Token, build_table
from whatfits.estimator.profile.program import COLUMNS, PARTS, IntArray, PartProgram
from whatfits.estimator.specs import KeepOutputs

__all__ = ["keep_outputs", "table_with_outputs"]

_KIND, _LABEL, _PART, _POSITION = (COLUMNS.index(x) for x in ("kind", "label", "ref_part", "c0"))
_FORWARD, _END = PARTS.index("forward"), PARTS.index("end")
_HEAD_PRODUCTS = ("mm", "addmm", "bmm")
_NOTHING = np.array([Token.LAYER_EXIT, -1, -1, -1, 0, 0, 0], dtype=np.int64)


@lru_cache(maxsize=64)
def keep_outputs(program: EventProgram, until: KeepOutputs) -> EventProgram:
    """The program with the logits, the one tensor of the outputs besides the loss, freed after backward or the step.

    Source: transformers' `CausalLMOutputWithPast` holds loss and logits (no cache, no attentions, no hidden states).

    Raises:
        UnsupportedError: the program has no tensor of logits.
    """
    if until is KeepOutputs.NO:
        return program
    release = _release_of_logits(program, until)
    parts = {name: _without_free(part, release) for name, part in program.parts.items()}
    if until is KeepOutputs.BACKWARD:
        backward = parts["backward"]
        parts["backward"] = replace(backward, suffix=np.concatenate([backward.suffix, release[None, :]]))
        return replace(program, parts=parts)
    end = parts["end"]
    prefix, body, suffix = (_shift_references(segment) for segment in (end.prefix, end.body, end.suffix))
    parts["end"] = PartProgram(np.concatenate([release[None, :], prefix]), body, suffix)
    return replace(program, parts=parts)


@lru_cache(maxsize=64)
def table_with_outputs(program: EventProgram, until: KeepOutputs) -> CountTable:
    """The count table of that program."""
    return build_table(keep_outputs(program, until))


def _release_of_logits(program: EventProgram, until: KeepOutputs) -> IntArray:
    """The FREE of the logits' allocation, wherever in the forward part that stands.

    It stands behind all repetitions of the body; in a program of one direct trace there are none, and all is prefix.
    """
    forward = program.parts["forward"]
    for segment, before, repeated in (
        (forward.suffix, len(forward.prefix), len(forward.body)),
        (forward.prefix, 0, 0),
    ):
        for index, token in enumerate(segment):
            if token[_KIND] == Token.ALLOC and _is_logits(program, token):
                return np.array([Token.FREE, -1, -1, _FORWARD, before + index, repeated, 0], dtype=np.int64)
    raise UnsupportedError(
        "training.loop.keep_outputs", str(until), "no", reason=f"{program.key.slug} has no tensor of logits"
    )


def _is_logits(program: EventProgram, token: IntArray) -> bool:
    label = program.labels[token[_LABEL]]
    is_head = label.module.rpartition(".")[2] == "lm_head" and label.op in _HEAD_PRODUCTS
    return is_head and label.category == "logits_and_loss"


def _without_free(part: PartProgram, reference: IntArray) -> PartProgram:
    """The part with that FREE turned into a mark without effect, so that no position moves."""
    segments = [segment.copy() for segment in (part.prefix, part.body, part.suffix)]
    for segment in segments:
        found = (segment[:, _KIND] == Token.FREE) & (segment[:, _PART:] == reference[_PART:]).all(axis=1)
        segment[found] = _NOTHING
    return PartProgram(*segments)


def _shift_references(segment: IntArray) -> IntArray:
    """References to the end part's own tokens, one position later."""
    shifted = segment.copy()
    shifted[shifted[:, _PART] == _END, _POSITION] += 1
    return shifted
