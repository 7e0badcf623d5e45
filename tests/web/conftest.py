"""The pages over the API with a fake planner behind it, and the store that the API reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.databases import copy_sqlite
from tests.fakes import FakePlanner
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings
from whatfits.service.storage.database import open_database
from whatfits.service.storage.measurements import MeasurementStore


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def database(ready_sqlite: Path, tmp_path: Path) -> str:
    return f"sqlite:///{copy_sqlite(ready_sqlite, tmp_path)}"


@pytest.fixture
def site(planner: FakePlanner, database: str) -> Iterator[TestClient]:
    app = build_server_app(Settings(database_url=database), planner=planner)
    with TestClient(app) as client:
        yield client


@pytest.fixture
def store(database: str) -> Iterator[MeasurementStore]:
    engine = open_database(database)
    yield MeasurementStore(engine)
    engine.dispose()
