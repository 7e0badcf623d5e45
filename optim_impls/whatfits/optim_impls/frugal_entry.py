"""What FRUGAL declares of itself, split by split, and its rows of the registry."""

from typing import Any

import torch

from whatfits.optim_impls.adamw import adamw_states
from whatfits.optim_impls.chunks import CHUNK, rows_per_chunk
from whatfits.optim_impls.declare import Capabilities, Hyper, Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.frugal import MOMENTS, Frugal, active_numbers
from whatfits.optim_impls.frugal_split import split_rank

__all__ = ["ENTRIES", "ENTRY", "FrugalDeclaration"]

STEP_COUNT_BYTES = 4
"""The step count that torch's fused AdamW reads."""


class FrugalDeclaration:
    """State of the chosen part; a choice of whole matrices belongs to all of them (`active_states`)."""

    def treatment(self, role: Role) -> str:
        return "split adamw and sign" if role is Role.MATRIX else "adamw"

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """Nothing for a whole matrix, whose turn comes and goes: see `active_states`."""
        if not _is_matrix(parameter):
            return adamw_states(parameter)
        rows, columns = parameter.shape
        split, density, dtype = hyper["split"], hyper["density"], parameter.dtype
        if split == "block":
            return ()
        if split == "columns":
            shape: tuple[int, ...] = (rows, int(columns * density))
            chosen = StateTensor("indices", (shape[1],), torch.int64)
        elif split == "elements":
            shape = (int(parameter.numel * density),)
            chosen = StateTensor("indices", shape, torch.int32)
        else:
            rank = split_rank(parameter.shape, density)
            shape = (rows, rank) if rows >= columns else (rank, columns)
            projection = (rank, columns) if rows >= columns else (rows, rank)
            chosen = StateTensor("projection", projection, dtype)
        return (chosen, *(StateTensor(name, shape, dtype) for name in MOMENTS))

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:  # noqa: ARG002
        return ()

    def active_states(
        self, matrices: list[Parameter], hyper: Hyper, *, turn: int = 0
    ) -> dict[int, tuple[StateTensor, ...]]:
        """States of the matrices that have some in a turn, by their number among the matrices; `split` is block."""
        numbers = active_numbers(
            len(matrices), density=hyper["density"], order=hyper["block_order"], turn=turn, seed=hyper["seed"]
        )
        return {number: adamw_states(matrices[number]) for number in numbers}

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """A piece of the signs and what the split takes; a refresh also what choosing takes, before that."""
        if not _is_matrix(parameter):
            return STEP_COUNT_BYTES
        steady = _update_bytes(parameter, hyper)
        if phase is Phase.STEADY or hyper["split"] == "block":
            return steady
        # A refresh first frees the part chosen before.
        freed = self.states(parameter, hyper)[0].nbytes if phase is Phase.REFRESH else 0
        return max(steady, _choice_bytes(parameter, hyper) - freed)

    def refresh_interval(self, hyper: Hyper) -> int | None:
        return int(hyper["projection_update_interval"])


def _is_matrix(parameter: Parameter) -> bool:
    return parameter.role is Role.MATRIX and len(parameter.shape) == 2


def _update_bytes(parameter: Parameter, hyper: Hyper) -> int:
    """Peak of one matrix' update."""
    (rows, columns), size = parameter.shape, parameter.dtype.itemsize
    piece_rows = rows_per_chunk(parameter.shape)
    piece = min(parameter.numel, CHUNK)
    signs = piece * size if hyper["state_free"] == "sign" else 0
    if hyper["split"] == "block":
        return signs
    if hyper["split"] == "columns":
        count = int(columns * hyper["density"])
        return piece_rows * (columns + count) * size + STEP_COUNT_BYTES
    if hyper["split"] == "elements":
        count = int(parameter.numel * hyper["density"])
        return count * size + max(piece * size, min(count, CHUNK) * (8 + size) + STEP_COUNT_BYTES)
    low = split_rank(parameter.shape, hyper["density"]) * max(rows, columns)
    return max((2 * low + piece_rows * columns) * size, 2 * low * size + STEP_COUNT_BYTES)


def _choice_bytes(parameter: Parameter, hyper: Hyper) -> int:
    """Peak of choosing the part of one matrix, what is kept of it not counted."""
    (rows, columns), numel = parameter.shape, parameter.numel
    side, rank = min(rows, columns), split_rank(parameter.shape, hyper["density"])
    if hyper["split"] == "columns":
        return 8 * columns + 8 * int(columns * hyper["density"])
    if hyper["split"] == "elements":
        count = int(numel * hyper["density"])
        return max(4 * (numel + count), 12 * count)
    if hyper["split"] == "random":
        return 8 * side * rank + 4 * rank * rank
    if hyper["split"] == "svd":
        copy = 0 if parameter.dtype is torch.float32 else 4 * numel
        return max(copy + 4 * side * side, 8 * side * side + 4 * side)
    return 0


_DEFAULTS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "split": "block",
    "density": 0.25,
    "projection_update_interval": 200,
    "state_free": "sign",
    "state_free_scale": 1.0,
    "block_order": "descending",
    "seed": 0,
}
_NO_SHARDS = "Whole matrices, columns or subspaces are chosen, so that a rank needs the whole gradient."


def _entry(name: str, title: str, summary: str, split: str) -> OptimizerEntry:
    reasons = {"shards": _NO_SHARDS}
    if split == "block":
        reasons["layerwise"] = "Which matrices have state is chosen among all of them."
    return OptimizerEntry(
        name=name,
        title=title,
        summary=summary,
        paper="Zmushko et al.: FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for Scalable Training, "
        "arXiv:2411.07837",
        licence="Apache-2.0",
        source="own",
        build=lambda groups, hyper: Frugal(groups, **hyper),
        defaults={**_DEFAULTS, "split": split},
        declaration=FrugalDeclaration(),
        capabilities=Capabilities(layerwise=split != "block", reasons=reasons),
    )


ENTRY = _entry(
    "frugal",
    "FRUGAL",
    "AdamW for a quarter of the linear layers' tensors in turn, signs of gradients for the rest.",
    "block",
)
ENTRIES = (
    ENTRY,
    _entry(
        "frugal_columns",
        "FRUGAL with columns",
        "AdamW for a quarter of every matrix' columns, signs of gradients for the others.",
        "columns",
    ),
    _entry(
        "frugal_elements",
        "FRUGAL with random elements",
        "AdamW for a quarter of every matrix' elements, signs of gradients for the others.",
        "elements",
    ),
    _entry(
        "frugal_random",
        "FRUGAL with random projection",
        "AdamW in a random subspace of every matrix, signs of what it leaves for the rest.",
        "random",
    ),
    _entry(
        "frugal_svd",
        "FRUGAL with SVD projection",
        "AdamW in the gradient's leading subspace of every matrix, signs of what it leaves for the rest.",
        "svd",
    ),
)
