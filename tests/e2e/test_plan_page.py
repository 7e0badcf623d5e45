"""The page in a browser, over the real server and estimator."""

from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from tests.e2e.visits import Visit

pytestmark = pytest.mark.browser


def test_the_page_answers_the_headline_question_with_a_chart(visit: Visit, server_address: str) -> None:
    visit.page.goto(server_address)

    expect(visit.page.locator("h1")).to_contain_text("LLaMA-13B on 8 × A100")
    expect(visit.page.locator("h1")).to_contain_text("choices fit")
    rows = visit.page.locator("section[aria-labelledby=ranked-title] tbody tr")
    assert rows.count() > 1
    bars = visit.page.locator("#memory-chart .bars .point path")
    expect(bars.first).to_be_attached()
    assert bars.count() >= 5 * rows.count()
    box = bars.first.bounding_box()
    assert box is not None
    assert box["width"] > 20
    expect(visit.page.locator("#memory-chart .shapelayer path")).to_have_count(1)
    expect(visit.page.locator("#memory-chart")).to_contain_text("usable")
    visit.save("plan-wide")
    assert visit.complaints == []


def test_nothing_is_loaded_from_elsewhere(visit: Visit, server_address: str) -> None:
    visit.page.goto(server_address)
    visit.page.wait_for_load_state("networkidle")

    assert len(visit.addresses) >= 4
    assert [address for address in visit.addresses if not address.startswith((server_address, "data:"))] == []


def test_submitting_the_form_makes_a_link_that_is_the_answer(visit: Visit, server_address: str) -> None:
    page = visit.page
    page.goto(server_address)
    page.get_by_label("Model").fill("llama-2-7b")
    page.get_by_label("Sequence length").fill("4096")
    page.get_by_label("AdamW", exact=True).check()
    page.get_by_label("APOLLO-Mini", exact=True).check()
    page.get_by_label("Order").select_option("memory")
    page.get_by_role("button", name="Show what fits").click()

    query = parse_qs(urlsplit(page.url).query)
    assert query == {
        "model": ["llama-2-7b"],
        "gpus": ["8xA100-80GB"],
        "seq_len": ["4096"],
        "optimizer": ["adamw", "apollo_mini"],
        "precision": ["bf16"],
        "objective": ["memory"],
    } | ({"global_batch_size": [""]} if "global_batch_size" in query else {})
    headline = page.locator("h1").inner_text()
    assert headline.startswith("llama-2-7b on 8 × A100")
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.locator("h1").inner_text() == headline
    expect(page.get_by_label("AdamW", exact=True)).to_be_checked()
    assert visit.complaints == []


def test_the_page_works_without_scripts(visit_without_scripts: Visit, server_address: str) -> None:
    page = visit_without_scripts.page
    page.goto(server_address)
    page.get_by_label("Sequence length").fill("1024")
    page.get_by_role("button", name="Show what fits").click()

    assert parse_qs(urlsplit(page.url).query)["seq_len"] == ["1024"]
    expect(page.locator("h1")).to_contain_text("choices fit")
    expect(page.get_by_text("The chart needs JavaScript")).to_be_visible()
    page.get_by_text("The same as a table").click()
    expect(page.locator("table.segments")).to_be_visible()
    visit_without_scripts.save("plan-no-scripts")


def test_a_wrong_answer_is_corrected_in_place(visit: Visit, server_address: str) -> None:
    page = visit.page
    page.goto(f"{server_address}/?gpus=8xa100")

    expect(page.get_by_role("alert")).to_contain_text("80 GB")
    expect(page.get_by_label("GPUs")).to_have_attribute("aria-invalid", "true")
    visit.save("plan-wrong")
    page.get_by_label("GPUs").fill("8xa100-80gb")
    page.get_by_role("button", name="Show what fits").click()
    expect(page.locator("h1")).to_contain_text("choices fit")


def test_the_page_fits_a_phone(visit_on_a_phone: Visit, server_address: str) -> None:
    page = visit_on_a_phone.page
    page.goto(server_address)
    expect(page.locator("#memory-chart .bars .point").first).to_be_attached()
    visit_on_a_phone.save("plan-phone-dark")

    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert visit_on_a_phone.complaints == []


def test_the_command_and_the_request_are_copied(visit: Visit, server_address: str) -> None:
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server_address)
    page.goto(server_address)
    page.get_by_role("button", name="Copy").first.click()

    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("whatfits plan LLaMA-13B --gpus 8xA100-80GB")
