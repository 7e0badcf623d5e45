"""Shipped programs and tables: round trips, expansion and the table's agreement with a walk over the events."""

import gzip
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile import (
    DEFAULT_STACK,
    CountTable,
    EventProgram,
    ProfileKey,
    SizeExpression,
    Token,
    build_table,
    expand,
    expand_structure,
    load_program,
    load_table,
    save_profile,
    with_derived_symbols,
)
from whatfits.estimator.profile.store import shipped_classes, shipped_stacks, stack_folder

Shipped = tuple[ProfileKey, dict[str, str]]


def some_shipped(stack: dict[str, str], step: int) -> list[Shipped]:
    """Every so many of the classes of a stack, in the order of their names."""
    folder = resources.files("whatfits.estimator.profile") / "data" / stack_folder(stack)
    slugs = shipped_classes(stack)[::step]
    heads = [json.loads(gzip.decompress((folder / f"{slug}.table.json.gz").read_bytes())) for slug in slugs]
    return [(ProfileKey(**head["key"]), stack) for head in heads]


SOME = [shipped for stack in shipped_stacks() for shipped in some_shipped(stack, 23)]
of_some = pytest.mark.parametrize("shipped", SOME, ids=lambda x: f"{x[1]['transformers']}-{x[0].slug}")
SOME_KEY = some_shipped(DEFAULT_STACK, 1)[0][0]


def symbols_of(key: ProfileKey, num_layers: int, **changes: int) -> dict[str, int]:
    dims = {"L": num_layers, "b": 3, "s": 301, "h": 192, "i": 461, "a": 8, "d": 24, "V": 1013}
    dims["b"] = 1 if key.micro_batch == "one" else 3
    dims["k"] = {"one": 1, "grouped": 2, "full": 8}[key.kv_heads]
    if key.adapter != "none":
        dims["r"] = 6
    return {**dims, **changes}


def walked_peak(program: EventProgram, symbols: dict[str, int], granularity: int) -> int:
    """Highest sum of live bytes, event by event."""
    events, nbytes = expand(program, symbols)
    live = peak = 0
    for kind, size in zip(events.kind.tolist(), nbytes.tolist(), strict=True):
        rounded = -(-size // granularity) * granularity
        live += rounded if kind == Token.ALLOC else -rounded if kind == Token.FREE else 0
        peak = max(peak, live)
    return peak


def table_peak(table: CountTable, symbols: dict[str, int], granularity: int) -> int:
    values = with_derived_symbols(symbols)
    sizes = np.array([-(-e.evaluate(values) // granularity) * granularity for e in table.sizes])
    return int((table.counts(symbols["L"]).sum(axis=1) @ sizes).max())


@of_some
def test_round_trips_through_json(shipped: Shipped) -> None:
    program, table = load_program(*shipped), load_table(*shipped)

    assert (program.key, program.stack) == (table.key, table.stack) == shipped
    assert EventProgram.from_json(json.loads(json.dumps(program.to_json()))).to_json() == program.to_json()
    assert CountTable.from_json(json.loads(json.dumps(table.to_json()))).to_json() == table.to_json()


@of_some
def test_table_is_the_one_its_program_gives(shipped: Shipped) -> None:
    assert build_table(load_program(*shipped)).to_json() == load_table(*shipped).to_json()


@of_some
@pytest.mark.parametrize("num_layers", [4, 5, 19])
def test_largest_row_is_the_peak_of_the_events(shipped: Shipped, num_layers: int) -> None:
    """Long sequences, large vocabularies and wide layers put the peak into different parts of the step."""
    program, table = load_program(*shipped), load_table(*shipped)
    for changes in ({}, {"s": 2, "V": 50_001}, {"i": 9001, "s": 16}, {"s": 2049, "V": 7}):
        symbols = symbols_of(shipped[0], num_layers, **changes)
        for granularity in (1, 512):
            assert table_peak(table, symbols, granularity) == walked_peak(program, symbols, granularity)


@of_some
def test_every_free_has_its_allocation_and_only_gradients_outlive_the_micro_batch(shipped: Shipped) -> None:
    program = load_program(*shipped)
    events = expand_structure(program, 11)

    live: dict[int, int] = {}
    ready = []
    for kind, block, label in zip(
        events.kind.tolist(), events.block.tolist(), events.label.tolist(), strict=True
    ):
        if kind == Token.ALLOC:
            assert block not in live
            live[block] = label
        elif kind == Token.FREE:
            del live[block]
        elif kind == Token.GRADIENT_READY:
            ready.append(block)
    assert {program.labels[label].category for label in live.values()} == {"gradients"}
    assert sorted(ready) == sorted(live)
    assert len(live) == sum(11 if p.per_layer else 1 for p in program.parameters if p.trainable)


def test_layers_are_entered_and_left_in_turn() -> None:
    events = expand_structure(load_program(SOME_KEY), 7)

    marks = [k for k in events.kind.tolist() if k in (Token.LAYER_ENTER, Token.LAYER_EXIT)]
    assert marks[:14] == [Token.LAYER_ENTER, Token.LAYER_EXIT] * 7


def test_too_few_layers_are_refused() -> None:
    program, table = load_program(SOME_KEY), load_table(SOME_KEY)

    with pytest.raises(ValueError, match="below the 3"):
        expand_structure(program, 2)
    with pytest.raises(ValueError, match="below the 4"):
        table.counts(3)


@pytest.mark.parametrize("change", [{"format": 1}, {"columns": ["kind"]}])
def test_other_formats_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not readable here"):
        EventProgram.from_json({**load_program(SOME_KEY).to_json(), **change})


def test_other_table_formats_are_refused() -> None:
    with pytest.raises(ValueError, match="not readable here"):
        CountTable.from_json({**load_table(SOME_KEY).to_json(), "format": 0})


def test_a_class_that_is_not_shipped_names_the_stacks_that_are() -> None:
    with pytest.raises(UnsupportedError, match=r"torch 2\.13, transformers 5\.23"):
        load_table(SOME_KEY, {"torch": "1.0", "transformers": "4.0"})


def test_stacks_and_their_folders_name_each_other() -> None:
    assert DEFAULT_STACK in shipped_stacks()
    assert stack_folder(DEFAULT_STACK) == "torch-2.13_transformers-5.23"


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    program = load_program(SOME_KEY)
    for folder in ("one", "two"):
        save_profile(program, tmp_path / folder)

    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_a_program_whose_counts_are_not_affine_has_no_table() -> None:
    """A free that finds its allocation only at even depths cannot be summarised."""
    program = load_program(SOME_KEY)
    data = program.to_json()
    body = np.array(data["parts"]["forward"][1])
    frees = np.flatnonzero((body[0] == Token.FREE) & (body[6] != 0))
    body[:, frees[0]] = body[:, frees[-1]]
    data["parts"]["forward"][1] = body.tolist()

    with pytest.raises((ValueError, KeyError)):
        build_table(EventProgram.from_json(data))


def test_sizes_are_sums_of_at_most_two_monomials() -> None:
    for shipped in SOME:
        for size in load_table(*shipped).sizes:
            assert isinstance(size, SizeExpression)
            assert len(size.terms) <= 2
