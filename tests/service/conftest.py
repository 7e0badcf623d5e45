"""The API with a fake planner behind it."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.service.app import create_app
from whatfits.service.settings import Settings


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def api(planner: FakePlanner) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(), planner=planner)) as client:
        yield client
