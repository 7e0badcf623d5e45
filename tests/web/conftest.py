"""The pages over the API with a fake planner behind it, and the store that the API reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings
from whatfits.service.storage.measurements import MeasurementStore
from whatfits.service.storage.shipped import prepare_database


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def site(planner: FakePlanner, tmp_path: Path) -> Iterator[TestClient]:
    app = build_server_app(Settings(database_url=_database(tmp_path)), planner=planner)
    with TestClient(app) as client:
        yield client


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    engine = prepare_database(_database(tmp_path))
    yield MeasurementStore(engine)
    engine.dispose()


def _database(folder: Path) -> str:
    return f"sqlite:///{folder}/pages.db"
