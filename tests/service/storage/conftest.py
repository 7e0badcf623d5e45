"""Stores on an empty database of either kind."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.database import open_database
from whatfits.service.storage.measurements import MeasurementStore


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> MeasurementStore:
    return MeasurementStore(engine)


@pytest.fixture
def agents(engine: Engine) -> AgentStore:
    return AgentStore(engine)
