"""The pages of measurements in a browser, while something is measured."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.e2e.visits import Visit
from tests.measurements import make_measurement, make_result
from whatfits.estimator.specs import Progress
from whatfits.service.storage.measurements import MeasurementStore
from whatfits.service.storage.shipped import prepare_database

pytestmark = pytest.mark.browser


@pytest.fixture
def store(server_database: str) -> Iterator[MeasurementStore]:
    engine = prepare_database(server_database)
    yield MeasurementStore(engine)
    engine.dispose()


def test_progress_and_result_appear_while_the_page_is_open(
    visit: Visit, server_address: str, store: MeasurementStore
) -> None:
    store.add(make_measurement("live"))
    page = visit.page
    page.goto(f"{server_address}/measurements/live")
    expect(page.locator("#measurement")).to_contain_text("It waits for a device.")

    store.begin("live", "agent-7")
    store.add_progress("live", Progress(stage="measuring", done=2, total=10))
    expect(page.locator(".progress")).to_have_text("measuring 2 of 10")

    store.finish("live", make_result())
    expect(page.locator("#measurement")).to_contain_text("All 2 steps ran.")
    visit.save("measurement")
    assert visit.complaints == []


def test_the_list_follows_what_runs_and_leads_to_each(
    visit: Visit, server_address: str, store: MeasurementStore
) -> None:
    store.add(make_measurement("listed", campaign="browser"))
    store.begin("listed", "agent-7")
    store.add_progress("listed", Progress(stage="warmup", done=1, total=3))
    page = visit.page
    page.goto(f"{server_address}/measurements?campaign=browser")
    expect(page.locator(".progress")).to_have_text("warmup 1 of 3")

    store.finish("listed", make_result())
    expect(page.locator("table.ranked")).to_contain_text("succeeded")
    visit.save("measurements")
    page.locator("table.ranked a").click()
    expect(page.locator("h1")).to_contain_text("llama-7b, adamw")
    assert visit.complaints == []


def test_a_phone_shows_the_list_without_scrolling_sideways(
    visit_on_a_phone: Visit, server_address: str
) -> None:
    page = visit_on_a_phone.page
    page.goto(f"{server_address}/measurements")

    expect(page.locator("h1")).to_have_text("Measurements")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
