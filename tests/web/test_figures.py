"""Figures are pure JSON whose lengths are bytes."""

import json
from typing import Any

import pytest

from tests.fakes import FakePlanner
from whatfits.estimator.specs import MemoryBreakdown, PlanRequest
from whatfits.estimator.specs.estimate import DeviceBreakdown
from whatfits.estimator.units import GIB
from whatfits.web.answers import Plan
from whatfits.web.figures import (
    SEGMENTS,
    MemoryBar,
    build_memory_figure,
    build_segment_bytes,
    segments_in_use,
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    answered = FakePlanner().plan(PlanRequest(model="llama-13b", hardware="8xa100-80gb"))
    return Plan.model_validate_json(answered.model_dump_json())


@pytest.fixture(scope="module")
def bars(plan: Plan) -> list[MemoryBar]:
    return [
        MemoryBar(
            label=f"{number}.",
            segments=build_segment_bytes(memory.breakdown, memory.device_breakdown),
            low=memory.device_bytes.low,
            median=memory.device_bytes.median,
            high=memory.device_bytes.high,
        )
        for number, memory in enumerate(candidate.estimate.memory for candidate in plan.candidates)
    ]


def bar_traces(figure: dict[str, Any]) -> list[dict[str, Any]]:
    return [trace for trace in figure["data"] if trace["type"] == "bar"]


def test_the_segments_of_each_bar_sum_to_the_device_total(plan: Plan, bars: list[MemoryBar]) -> None:
    figure = build_memory_figure(bars, usable_bytes=80 * GIB)

    drawn = [sum(sizes) for sizes in zip(*(trace["x"] for trace in bar_traces(figure)), strict=True)]
    assert drawn == [candidate.estimate.memory.device_bytes.median for candidate in plan.candidates]


def test_the_whiskers_end_at_the_interval(plan: Plan, bars: list[MemoryBar]) -> None:
    (interval,) = (
        trace for trace in build_memory_figure(bars, usable_bytes=1)["data"] if trace["type"] == "scatter"
    )

    whiskers = interval["error_x"]
    for index, candidate in enumerate(plan.candidates):
        device = candidate.estimate.memory.device_bytes
        assert interval["x"][index] - whiskers["arrayminus"][index] == device.low
        assert interval["x"][index] + whiskers["array"][index] == device.high


def test_the_limit_line_stands_at_usable_memory_inside_the_axis(bars: list[MemoryBar]) -> None:
    layout = build_memory_figure(bars, usable_bytes=200 * GIB)["layout"]

    (line,) = layout["shapes"]
    assert (line["x0"], line["x1"]) == (200 * GIB, 200 * GIB)
    assert layout["xaxis"]["range"][1] > 200 * GIB
    assert layout["annotations"][0]["text"] == "usable 200.00 GiB"


def test_a_bar_beyond_the_limit_stays_inside_the_axis(bars: list[MemoryBar]) -> None:
    layout = build_memory_figure(bars, usable_bytes=GIB)["layout"]

    assert layout["xaxis"]["range"][1] > max(bar.high for bar in bars)


@pytest.mark.parametrize("usable_gib", [1, 7, 24, 79, 140, 288, 5000])
def test_the_axis_has_a_readable_number_of_round_ticks(usable_gib: int) -> None:
    bar = MemoryBar(label="1.", segments={"weights": GIB}, low=GIB, median=GIB, high=GIB)

    axis = build_memory_figure([bar], usable_bytes=usable_gib * GIB)["layout"]["xaxis"]

    assert 2 <= len(axis["tickvals"]) <= 12
    assert len(axis["tickvals"]) == len(axis["ticktext"])
    assert axis["ticktext"][1] == f"{axis['tickvals'][1] // GIB} GiB"


def test_a_segment_nobody_has_is_not_drawn_and_an_unknown_one_is() -> None:
    bar = MemoryBar(
        label="1.", segments={"weights": 5, "gradients": 0, "new_kind": 3}, low=8, median=8, high=8
    )

    assert [segment.key for segment in segments_in_use([bar])] == ["weights", "new_kind"]
    assert [segment.label for segment in segments_in_use([bar])] == ["Weights", "New kind"]


def test_there_is_a_segment_for_every_term_of_the_estimate() -> None:
    terms = {*MemoryBreakdown.model_fields, *DeviceBreakdown.model_fields} - {"allocated"}

    assert {segment.key for segment in SEGMENTS} == terms


def test_segments_differ_in_colour() -> None:
    assert len({segment.colour for segment in SEGMENTS}) == len(SEGMENTS)


def test_a_figure_is_json(bars: list[MemoryBar]) -> None:
    figure = build_memory_figure(bars, usable_bytes=80 * GIB)

    assert json.loads(json.dumps(figure, allow_nan=False)) == figure
