"""The pages over the API with a fake planner behind it, and what they show as a tree."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from whatfits.service.serve import build_server_app
from whatfits.service.settings import Settings


@pytest.fixture
def planner() -> FakePlanner:
    return FakePlanner()


@pytest.fixture
def site(planner: FakePlanner) -> Iterator[TestClient]:
    with TestClient(build_server_app(Settings(), planner=planner)) as client:
        yield client
