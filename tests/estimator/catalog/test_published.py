"""The published rows as data: every row loads, cites its source and says how it was measured."""

import re

import pytest

from whatfits.estimator.catalog import find_gpu, find_model
from whatfits.estimator.catalog.published import PublishedRow, Quantity, Tool, load_loops, load_published
from whatfits.estimator.units import GB

ROWS = load_published()
CITATION = re.compile(
    r"^(github:[\w.-]+/[\w.-]+(@[0-9a-f]{7,40}:| issue #\d+| PR #\d+)|arXiv:\d{4}\.\d{5}|pypi:[\w-]+==)"
)


def test_every_row_cites_a_source_that_can_be_looked_up() -> None:
    assert [row.id for row in ROWS.values() if not CITATION.match(row.source)] == []


def test_every_row_holds_a_figure_or_ran_out_of_memory() -> None:
    assert [row.id for row in ROWS.values() if not row.measured and not row.out_of_memory] == []


def test_catalog_names_in_rows_are_in_the_catalog() -> None:
    for row in ROWS.values():
        if row.gpu_catalog is not None:
            assert find_gpu(row.gpu_catalog).id == row.gpu_catalog
        if row.model.catalog is not None:
            model = find_model(row.model.catalog)
            for name in (
                "num_layers",
                "hidden_size",
                "num_attention_heads",
                "intermediate_size",
                "vocab_size",
            ):
                printed = getattr(row.model, name)
                assert printed in (None, getattr(model, name)), (row.id, name)


def test_a_tool_and_the_quantity_it_reads_agree() -> None:
    reads = {
        Tool.MAX_MEMORY_ALLOCATED: Quantity.PEAK_ALLOCATED,
        Tool.MAX_MEMORY_RESERVED: Quantity.PEAK_RESERVED,
        Tool.NVML: Quantity.DEVICE_USED,
    }
    for row in ROWS.values():
        for reading in row.measured:
            assert reading.tool not in reads or reads[reading.tool] is reading.quantity, row.id


# The README of vramcalc 0.1.2, section Validation, column `measured`, training rows from top to bottom.
VRAMCALC = (17.51, 13.76, 30.55, 25.22, 30.26, 32.15, 23.40, 10.13, 14.52, 9.51, 18.98, 20.55, 13.78)


@pytest.mark.parametrize(("number", "printed"), list(enumerate(VRAMCALC)))
def test_the_vramcalc_rows_are_those_of_its_readme(number: int, printed: float) -> None:
    row: PublishedRow = ROWS[f"vramcalc-{number:02}"]

    assert [reading.nbytes for reading in row.measured] == [pytest.approx(printed * GB)]
    assert row.stack == {"torch": "2.14.1+cu130", "transformers": "4.57.6", "peft": "0.21.2"}
    assert row.loop in load_loops()
