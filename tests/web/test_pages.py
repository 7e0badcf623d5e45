"""The page as the server sends it, before any script runs."""

import json
import re
from html.parser import HTMLParser

import pytest
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

from tests.fakes import FakePlanner
from whatfits.estimator.specs import Plan, PlanRequest
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings

WHOLE_QUESTION = (
    "/?model=llama-2-7b&gpus=8xa100-80gb&seq_len=4096&global_batch_size=64&optimizer=adamw&objective=memory"
)


class Page(HTMLParser):
    """Elements by tag with their attributes, and all text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def field(self, name: str) -> dict[str, str | None]:
        return next(attributes for _, attributes in self.elements if attributes.get("id") == name)


def test_the_headline_question_is_asked_and_answered_at_once(site: TestClient, planner: FakePlanner) -> None:
    response = site.get("/")
    page = Page(response.text)

    assert response.status_code == 200
    assert page.field("model")["value"] == "LLaMA-13B"
    assert page.field("gpus")["value"] == "8xA100-80GB"
    assert page.field("seq_len")["value"] == "2048"
    assert "LLaMA-13B on 8 × A100 SXM4 80GB: 3 of 5 choices fit (1 of them perhaps)" in page.text
    assert "fastest: AdamW, FSDP x8." in page.text
    assert planner.asked[-1] == PlanRequest(model="LLaMA-13B", hardware="8xA100-80GB", seq_len=2048)


def test_the_query_string_is_the_question(site: TestClient, planner: FakePlanner) -> None:
    page = Page(site.get(WHOLE_QUESTION).text)

    (asked,) = planner.asked
    assert isinstance(asked, PlanRequest)
    assert (asked.model, asked.seq_len, asked.global_batch_size) == ("llama-2-7b", 4096, 64)
    assert asked.optimizers == ("adamw",)
    assert page.field("seq_len")["value"] == "4096"
    assert page.field("global_batch_size")["value"] == "64"
    assert [box["value"] for box in page.all("input") if "checked" in box] == ["adamw"]
    assert [option["value"] for option in page.all("option") if "selected" in option] == ["bf16", "memory"]
    assert "least memory: " in page.text


def test_the_form_sends_itself_to_the_page_without_a_script(site: TestClient) -> None:
    (form,) = Page(site.get("/").text).all("form")

    assert (form["method"], form["action"]) == ("get", "/")


def test_every_figure_of_the_plan_is_shown_as_the_api_gives_it(site: TestClient) -> None:
    page = Page(site.get("/").text)

    for shown in ("70.13 GiB", "69.13 to 72.13 GiB", "9.02 GiB", "31,250", "19,531 to 39,062", "analytical"):
        assert shown in page.text
    assert "weights, gradients and states alone take 96.96 GiB of 79.15 GiB" in page.text
    assert "FSDP over the 8 GPUs instead of DDP" in page.text
    assert "Two cuBLAS workspaces are live in training." in page.text
    assert page.text.count("Two cuBLAS workspaces") == 1


def test_the_figure_in_the_page_sums_to_the_device_totals(site: TestClient) -> None:
    html = site.get("/").text
    found = re.search(r'id="memory-figure">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figure = json.loads(found[1])
    request = {"model": "LLaMA-13B", "hardware": "8xA100-80GB", "seq_len": 2048}
    plan = Plan.model_validate(site.post("/api/v1/plans", json=request).json())

    bars = [trace["x"] for trace in figure["data"] if trace["type"] == "bar"]
    drawn = [sum(sizes) for sizes in zip(*bars, strict=True)]
    assert drawn == [candidate.estimate.memory.device_bytes.median for candidate in plan.candidates]


def test_the_request_shown_is_the_request_asked(site: TestClient, planner: FakePlanner) -> None:
    html = site.get(WHOLE_QUESTION).text
    shown = re.findall(r"<pre><code>(.*?)</code></pre>", html, re.DOTALL)

    assert shown[0].startswith("whatfits plan llama-2-7b --gpus 8xa100-80gb --seq-len 4096")
    request = json.loads(shown[1].replace("&#34;", '"'))
    assert planner.asked == [PlanRequest.model_validate(request)]


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        ("model=lama-13b", "model", "did you mean llama"),
        ("gpus=8xa100", "gpus", "80 GB"),
        ("gpus=8xb100000", "gpus", "8xb100000"),
        ("seq_len=0", "seq_len", "greater than or equal to 1"),
        ("seq_len=many", "seq_len", "many"),
        ("global_batch_size=9", "global_batch_size", "a multiple of 8"),
        ("optimizer=adamww", None, "did you mean adamw"),
        ("objective=quality", "objective", "not modelled yet"),
        ("precision=fp8", "precision", "not modelled yet"),
        ("precision=bf15", "precision", "did you mean bf16"),
        ("model=python:os:getcwd", "model", "command line only"),
        ("model=", "model", "no model is called"),
    ],
)
def test_a_wrong_value_is_explained_beside_its_field(
    site: TestClient, query: str, field: str | None, words: str
) -> None:
    response = site.get(f"/?{query}")
    page = Page(response.text)

    assert response.status_code == 422
    assert response.headers["content-type"].startswith("text/html")
    assert words in page.text
    assert "Traceback" not in response.text
    if field is not None:
        assert page.field(field)["aria-invalid"] == "true"
        described = page.field(field)["aria-describedby"] or ""
        assert page.field(described.split()[-1])["class"] == "field-error"


def test_what_was_typed_is_escaped_everywhere(site: TestClient) -> None:
    attack = '"><script>alert(1)</script>'

    for name in ("model", "gpus", "seq_len", "global_batch_size", "optimizer", "precision", "objective"):
        html = site.get("/", params={name: attack}).text
        assert "<script>alert" not in html
        assert "&lt;script&gt;alert(1)" in html


def test_a_failing_api_is_admitted_without_a_traceback() -> None:
    planner = FakePlanner(failure=RuntimeError("secret"))
    with TestClient(build_server_app(Settings(), planner=planner)) as site, capture_logs():
        response = site.get("/")

    assert response.status_code == 500
    assert "Internal error" in response.text
    assert "secret" not in response.text


def test_when_nothing_fits_the_reasons_are_the_answer() -> None:
    with TestClient(build_server_app(Settings(), planner=FakePlanner(nothing_fits=True))) as site:
        response = site.get("/")
    page = Page(response.text)

    assert response.status_code == 200
    assert "LLaMA-13B on 8xA100-80GB: none of 2 choices fits." in page.text
    assert "What does not fit, and why" in page.text
    assert 'id="memory-figure"' not in response.text


def test_everything_the_page_loads_comes_from_this_server(site: TestClient) -> None:
    page = Page(site.get("/").text)
    loaded = [
        address
        for _, attributes in page.elements
        for key in ("src", "href")
        if (address := attributes.get(key)) and not address.startswith("#")
    ]

    assert "/static/plotly/plotly.min.js" in loaded
    for address in loaded:
        assert address.startswith("/")
        assert not address.startswith("//")
        assert site.get(address).status_code == 200


def test_every_field_has_a_label(site: TestClient) -> None:
    page = Page(site.get("/").text)
    labelled = {label.get("for") for label in page.all("label")}

    fields = [*page.all("input"), *page.all("select")]
    assert all(field.get("id") in labelled or field.get("type") == "checkbox" for field in fields)


def test_the_pages_are_not_part_of_the_api_description(site: TestClient) -> None:
    assert all(path.startswith("/api/v1/") for path in site.get("/api/v1/openapi.json").json()["paths"])
