"""A server's database is opened without being asked for, and at once when it is."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from tests.fleet.processes import eventually
from whatfits.service import backend
from whatfits.service.app import create_app
from whatfits.service.settings import Settings


def client_of(folder: Path) -> TestClient:
    return TestClient(create_app(Settings(database_url=f"sqlite:///{folder}/w.db"), planner=FakePlanner()))


def test_it_is_opened_although_nobody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_FIRST_QUESTIONS_SECONDS", 0.1)
    with client_of(tmp_path):
        eventually((tmp_path / "w.db").exists)


def test_who_needs_it_does_not_wait_for_the_first_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_FIRST_QUESTIONS_SECONDS", 3600.0)
    with client_of(tmp_path) as client:
        assert client.get("/readyz").status_code == 200
