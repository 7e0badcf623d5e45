"""What is of no bytes at some symbols is no event there."""

import numpy as np
import pytest

from whatfits.estimator.profile import EventProgram, ProfileKey, SizeExpression, Token, build_table, expand
from whatfits.estimator.profile.program import PARTS, IntArray, Label, PartProgram

KEY = ProfileKey(
    architecture="A",
    precision="bf16",
    attention="sdpa",
    checkpointing="none",
    loss="standard",
    micro_batch="many",
    kv_heads="full",
    tied=False,
)
SCRATCH, KEPT = SizeExpression(((8, (("sorted", 1),)),)), SizeExpression(((2, (("b", 1), ("s", 1))),))


def rows(*tokens: tuple[Token, int, int]) -> IntArray:
    """Token arrays of (kind, size, position of the allocation it frees), all in the part they stand in."""
    array = [
        [k, s, 0 if k == Token.ALLOC else -1, -1 if k == Token.ALLOC else 0, at, 0, 0] for k, s, at in tokens
    ]
    return np.array(array, dtype=np.int64).reshape(-1, 7)


def make_program() -> EventProgram:
    """Scratch and a kept tensor in turn; the scratch is freed first."""
    alloc, free = Token.ALLOC, Token.FREE
    forward = rows((alloc, 0, 0), (alloc, 1, 0), (free, -1, 0), (alloc, 1, 0), (free, -1, 1), (free, -1, 3))
    nothing = rows()
    parts = {name: PartProgram(forward if name == "forward" else nothing, nothing, nothing) for name in PARTS}
    return EventProgram(
        key=KEY,
        stack={},
        base_layers=1,
        sizes=(SCRATCH, KEPT),
        labels=(Label("op", "module", "forward", "temporaries"),),
        parameters=(),
        buffers=(),
        parts=parts,
    )


@pytest.mark.parametrize(
    ("seq_len", "kinds", "blocks", "sizes"),
    [
        (2000, "aafaff", [0, 1, 0, 2, 1, 2], [32000, 8000, 32000, 8000, 8000, 8000]),
        (1000, "aaff", [0, 1, 0, 1], [4000] * 4),
    ],
)
def test_blocks_are_counted_without_what_is_not_there(
    seq_len: int, kinds: str, blocks: list[int], sizes: list[int]
) -> None:
    events, nbytes = expand(make_program(), {"L": 1, "b": 2, "s": seq_len})

    assert "".join("a" if kind == Token.ALLOC else "f" for kind in events.kind) == kinds
    assert events.block.tolist() == blocks
    assert nbytes.tolist() == sizes
    assert events.part_ends == (len(kinds),) * 3
    assert events.num_blocks == kinds.count("a")


def test_a_table_takes_it_as_nothing() -> None:
    table = build_table(make_program())

    assert [e.evaluate({"sorted": 0, "b": 2, "s": 1000}) for e in table.sizes] == [0, 4000]
