"""The pages of measurements as the server sends them, before any script runs."""

from collections.abc import Mapping

import pytest
from fastapi.testclient import TestClient

from tests.fakes import make_estimate
from tests.measurements import make_measurement, make_result
from tests.web.test_pages import Page
from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.specs import Measurement, MeasurementFailure, MeasurementResult, Progress
from whatfits.estimator.specs.measurement import FailureKind
from whatfits.service.storage.measurements import MeasurementStore


@pytest.fixture
def ended(store: MeasurementStore) -> Mapping[str, Measurement]:
    """One measurement that ended in each way."""
    outcomes: dict[str, MeasurementResult | MeasurementFailure | None] = {
        "exact": make_result(traced_peak_requested_bytes=2**40 + 1),
        "off": make_result(traced_peak_requested_bytes=2**40),
        "full": make_result(outcome="out_of_memory", reached_step=1, reached_phase="backward"),
        "broken": MeasurementFailure(kind=FailureKind.RAISED, message="<script>alert(1)</script>"),
        "stopped": None,
    }
    for name, outcome in outcomes.items():
        store.add(make_measurement(name, campaign="ways to end"))
        store.finish(name, outcome)
    return {name: store.get(name) for name in outcomes}


def test_runs_that_came_with_the_package_are_listed(site: TestClient) -> None:
    page = Page(site.get("/measurements").text)

    assert "NVIDIA H100 80GB HBM3" in page.text
    assert "of the estimate" in page.text
    assert "No agent has been heard" in page.text


def test_older_measurements_are_a_link_away_with_the_filters_kept(site: TestClient) -> None:
    first = Page(site.get("/measurements?optimizer=adamw").text)
    (older,) = [a["href"] for a in first.all("a") if (a["href"] or "").startswith("/measurements?")]

    assert older is not None
    assert older.startswith("/measurements?optimizer=adamw&cursor=")
    second = Page(site.get(older).text)
    assert {a["href"] for a in first.all("a")} & {
        a["href"] for a in second.all("a") if "speed" in str(a["href"])
    } == set()


@pytest.mark.usefixtures("ended")
def test_filters_come_from_the_address_and_stand_in_the_form(site: TestClient) -> None:
    page = Page(site.get("/measurements?campaign=ways+to+end&status=failed").text)

    assert page.field("campaign")["value"] == "ways to end"
    assert [option["value"] for option in page.all("option") if "selected" in option] == ["failed"]
    links = [a["href"] for a in page.all("a") if (a["href"] or "").startswith("/measurements/")]
    assert links == ["/measurements/broken"]


def test_a_filter_that_cannot_be_used_is_said_with_what_is_accepted(site: TestClient) -> None:
    response = site.get("/measurements?status=lost")

    assert response.status_code == 422
    assert "cancelled" in Page(response.text).text
    assert "'lost'" in Page(response.text).text


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exact", ("succeeded", "as traced", "All 2 steps ran.", "1024.00 GiB")),
        ("off", ("+1 B from the trace",)),
        ("full", ("out of memory", "Memory ran out in backward after 1 steps.")),
        ("broken", ("failed", "It failed (raised): <script>alert(1)</script>")),
        ("stopped", ("cancelled", "It was cancelled.")),
    ],
)
def test_each_end_is_worded(site: TestClient, name: str, said: tuple[str, ...]) -> None:
    response = site.get(f"/measurements/{name}")
    page = Page(response.text)
    listed = Page(site.get("/measurements?campaign=ways+to+end").text)

    assert response.status_code == 200
    for words in said:
        assert words in page.text or words in listed.text
    assert "<script>alert" not in response.text


@pytest.mark.usefixtures("ended")
def test_every_sample_is_shown(site: TestClient) -> None:
    assert "400 ms 500 ms" in Page(site.get("/measurements/exact").text).text


def test_measured_stands_beside_estimated(site: TestClient, store: MeasurementStore) -> None:
    measurement = make_measurement("compared")
    estimate = make_estimate(resolve_run(measurement.request.spec).run)
    measured = make_result(peak_requested_bytes=estimate.memory.peak_requested_bytes * 2)
    store.add(Measurement.model_validate({**measurement.model_dump(), "estimate": estimate.model_dump()}))
    store.finish("compared", measured)

    text = Page(site.get("/measurements/compared").text).text

    assert "+100.00%" in text
    assert "A CPU measured; the estimate is of the GPU that the run names." in text


def test_a_page_that_will_change_loads_again_without_a_script_and_others_do_not(
    site: TestClient, store: MeasurementStore
) -> None:
    store.add(make_measurement("waiting"))
    store.begin("waiting", "agent-7")
    store.add_progress("waiting", Progress(stage="warmup", done=1, total=3))
    unfinished = site.get("/measurements/waiting").text
    store.finish("waiting", make_result())
    final = site.get("/measurements/waiting").text

    assert '<meta http-equiv="refresh"' in unfinished
    assert 'data-events="/api/v1/measurements/waiting/events"' in unfinished
    assert "Agent agent-7 runs it, attempt 1." in unfinished
    assert "refresh" not in final.replace("refresh_step", "")
    assert "data-events" not in final


def test_an_unknown_measurement_is_a_page_that_says_so(site: TestClient) -> None:
    response = site.get("/measurements/nothing")

    assert response.status_code == 404
    assert "nothing" in Page(response.text).text
