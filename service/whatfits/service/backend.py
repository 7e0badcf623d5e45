"""What answers for measurements, opened beside the server: questions that need no database are answered meanwhile."""

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from whatfits.service.domain.campaigns import Campaigns
from whatfits.service.domain.measurements import Jobs, Measurements
from whatfits.service.domain.planner import Planner
from whatfits.service.local_agent import LocalAgent
from whatfits.service.settings import Settings
from whatfits.service.storage.agents import AgentStore
from whatfits.service.storage.campaigns import CampaignStore
from whatfits.service.storage.claims import ClaimStore
from whatfits.service.storage.coordination import database_now
from whatfits.service.storage.errors import StorageError, StorageUnavailableError
from whatfits.service.storage.measurements import MeasurementStore
from whatfits.service.storage.shipped import prepare_database

if TYPE_CHECKING:
    from sqlalchemy import Engine as Database

__all__ = ["Backend", "compose_campaigns"]

_WAIT_SECONDS = 10.0
_RETRY_SECONDS = 2.0
_FIRST_QUESTIONS_SECONDS = 2.0
"""Opening takes about half a second of the server's one interpreter: plans that are asked at its start go before."""
_log = structlog.get_logger()


class Backend:
    """Database, queues and reaper of a server; opened once, in the background, tried again until it works."""

    def __init__(self, settings: Settings, planner: Planner, local_agent: LocalAgent | None = None) -> None:
        self._settings = settings
        self._planner = planner
        self._local_agent = local_agent
        self._started = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._needed = threading.Event()
        self._opened = threading.Event()
        self._error: StorageError | None = None
        self._campaigns: Campaigns | None = None
        self._close: list[Callable[[], object]] = []

    def start(self) -> None:
        """Have it opened soon, or when it is first needed, unless that was begun before."""
        with self._started:
            if self._thread is None:
                self._thread = threading.Thread(target=self._follow, name="open-database", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Close everything."""
        self._stop.set()
        self._needed.set()
        if self._thread is not None:
            self._thread.join()
        self._release()

    def measurements(self) -> Measurements:
        """Who answers for measurements.

        Raises:
            StorageError: The database cannot be opened (yet).
        """
        return self.campaigns().measurements

    def campaigns(self) -> Campaigns:
        """Who answers for campaigns.

        Raises:
            StorageError: The database cannot be opened (yet).
        """
        self._needed.set()
        self.start()
        self._opened.wait(_WAIT_SECONDS)
        if self._campaigns is None:
            raise self._error or StorageUnavailableError("the database is being prepared; ask again later")
        return self._campaigns

    def _follow(self) -> None:
        self._needed.wait(_FIRST_QUESTIONS_SECONDS)
        while not self._stop.is_set():
            try:
                self._open()
            except StorageError as error:
                self._release()
                self._error = error
                self._opened.set()  # who waits is told what is wrong
                _log.warning("database.unavailable", error=str(error))
                self._stop.wait(_RETRY_SECONDS)
            else:
                self._opened.set()
                return

    def _release(self) -> None:
        """Close what was opened, the last first."""
        while self._close:
            self._close.pop()()

    def _open(self) -> None:
        database = prepare_database(self._settings.database_url)
        self._close.append(database.dispose)
        # Imported here, in the background: the first page need not wait for it.
        from whatfits.service.engine import Engine, migrate_engine  # noqa: PLC0415
        from whatfits.service.reaper import Reaper  # noqa: PLC0415  (as above)

        migrate_engine(self._settings.database_url)
        engine = Engine(self._settings.database_url)
        self._close.append(engine.close)
        reaper = Reaper(database, engine, self._settings)
        reaper.start()
        self._close.append(reaper.stop)
        self._campaigns = compose_campaigns(database, engine, self._planner, self._settings)
        if self._local_agent is not None:
            self._local_agent.start()
            self._close.append(self._local_agent.stop)


def compose_campaigns(database: "Database", jobs: Jobs, planner: Planner, settings: Settings) -> Campaigns:
    """The rules for campaigns, with those for measurements, over an open database and its queues."""
    from whatfits.service.engine import JOB_SCHEMA_VERSION  # noqa: PLC0415  (as above)

    measurements = Measurements(
        store=MeasurementStore(database),
        claims=ClaimStore(database),
        agents=AgentStore(database, stale_after=settings.stale_after),
        jobs=jobs,
        planner=planner,
        now=partial(database_now, database),
        job_schema_version=JOB_SCHEMA_VERSION,
    )
    return Campaigns(store=CampaignStore(database), measurements=measurements)
