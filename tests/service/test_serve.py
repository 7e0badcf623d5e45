"""Log lines, for machines and for people."""

import json
from collections.abc import Iterator

import pytest
import structlog

from whatfits.service.serve import configure_logging


@pytest.fixture(autouse=True)
def _default_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def log_a_failure() -> None:
    try:
        int("no number")
    except ValueError:
        structlog.get_logger().exception("request.failed", path="/x")


def test_a_log_line_for_machines_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(json=True)
    log_a_failure()

    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["level"], line["path"]) == ("request.failed", "error", "/x")
    assert "ValueError: invalid literal" in line["exception"]
    assert line["timestamp"].endswith("Z")


def test_a_log_line_for_people_has_the_event_first_and_the_trace_below(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging(json=False)
    log_a_failure()

    first, *rest = capsys.readouterr().out.splitlines()
    assert "request.failed" in first
    assert "path=/x" in first
    assert rest[-1].startswith("ValueError: invalid literal")
