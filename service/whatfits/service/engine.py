"""Durable jobs: a measurement is one DBOS workflow of one step, in the queue of its kind of device.

All that knows DBOS is here. Three things are not DBOS's: how a measurement ends is what the store says, once; who died is
found by `reaper`; and how often a measurement is tried is counted in the store, because a resumed workflow counts anew.

A job is enqueued for the version of its form, and taken by agents of that version alone: during an upgrade the old ones
finish what was asked of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from dbos import (
    DBOS,
    DBOSClient,
    DBOSConfig,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    WorkflowStatus,
    error,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from whatfits.service.storage.database import lacks_table, parse_database_url
from whatfits.service.storage.errors import StorageUnavailableError, UnmigratedError

__all__ = [
    "JOB_SCHEMA_VERSION",
    "Engine",
    "JobState",
    "RunningJob",
    "Worker",
    "migrate_engine",
]

JOB_SCHEMA_VERSION = "1"
"""The form of `MeasureRequest` and of what an agent does with it; raised when agents of before would misread a job."""
_APPLICATION = "whatfits"
_WORKFLOW = "measure"
_STOP_SECONDS = 5
_TABLES = "the queues' part of the database"


class JobState(StrEnum):
    """Where a job stands in its queue; what came of the measurement is the store's to say."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    """It ran to its end, or raised."""
    CANCELLED = "cancelled"


_STATES: Mapping[str, JobState] = {
    "ENQUEUED": JobState.WAITING,
    "DELAYED": JobState.WAITING,
    "PENDING": JobState.RUNNING,
    "SUCCESS": JobState.ENDED,
    "ERROR": JobState.ENDED,
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": JobState.ENDED,
    "CANCELLED": JobState.CANCELLED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A job that an agent took and has not ended."""

    measurement_id: str
    agent: str


def migrate_engine(url: str) -> None:
    """Create or upgrade the tables that the engine keeps in the same database."""
    with _translating():
        DBOS.migrate(_engine_url(url))


class Engine:
    """The queues, seen from outside: submit, cancel, resume, and who has what. Safe to use from several threads."""

    def __init__(self, url: str, *, job_schema_version: str = JOB_SCHEMA_VERSION) -> None:
        """Connects when it is first used."""
        self._job_schema_version = job_schema_version
        self._client = DBOSClient(
            system_database_url=_engine_url(url),
            serializer=DBOSPortableJSONSerializer(),
            application_name=_APPLICATION,
            retry_connection_errors=False,  # who asks is told, and asks again
            lazy=True,
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.destroy()

    def submit(self, measurement_id: str, queue: str) -> None:
        """Put a measurement into a queue; does nothing when it was put there before."""
        options: EnqueueOptions = {
            "workflow_name": _WORKFLOW,
            "queue_name": queue,
            "workflow_id": measurement_id,
            "app_version": self._job_schema_version,
        }
        with _translating():
            self._client.enqueue(options, measurement_id)

    def cancel(self, measurement_id: str) -> None:
        """Take a measurement out of its queue; does nothing when it ended. A running step is not interrupted."""
        with _translating():
            self._client.cancel_workflow(measurement_id)

    def resume(self, measurement_id: str, queue: str) -> None:
        """Put a measurement back into its queue, whoever has it; does nothing when it ended or never was in one."""
        with _translating():
            try:
                self._client.resume_workflow(measurement_id, queue_name=queue)
            except error.DBOSNonExistentWorkflowError:
                return

    def states(self, measurement_ids: Iterable[str]) -> dict[str, JobState]:
        """Where these stand; those that never were in a queue are left out."""
        wanted = list(measurement_ids)
        found = self._list(workflow_ids=wanted) if wanted else []
        return {workflow.workflow_id: _STATES[workflow.status] for workflow in found}

    def running(self) -> tuple[RunningJob, ...]:
        """What agents have at the moment, dead ones included."""
        return tuple(
            RunningJob(measurement_id=workflow.workflow_id, agent=workflow.executor_id)
            for workflow in self._list(status="PENDING")
            if workflow.executor_id is not None
        )

    def pending_of(self, agent: str) -> frozenset[str]:
        """What one agent has."""
        found = self._list(status="PENDING", executor_id=agent)
        return frozenset(workflow.workflow_id for workflow in found)

    def _list(
        self,
        *,
        workflow_ids: list[str] | None = None,
        status: str | None = None,
        executor_id: str | None = None,
    ) -> list[WorkflowStatus]:
        with _translating():
            return self._client.list_workflows(
                name=_WORKFLOW,
                workflow_ids=workflow_ids,
                status=status,
                executor_id=executor_id,
                load_input=False,
                load_output=False,
            )


class Worker:
    """The agent's side: takes jobs from one queue, one at a time. One in a process, as DBOS is."""

    def __init__(
        self,
        url: str,
        *,
        agent: str,
        queue: str,
        carry_out: Callable[[str], None],
        poll_seconds: float,
        job_schema_version: str = JOB_SCHEMA_VERSION,
    ) -> None:
        """Prepare; `carry_out` is called with the id of a measurement, in a thread of the worker's.

        It may be called again for the same measurement when a process died, and must bear that.
        """
        self._queue = queue
        self._poll_seconds = poll_seconds
        config: DBOSConfig = {
            "name": _APPLICATION,
            "system_database_url": _engine_url(url),
            "executor_id": agent,
            "application_version": job_schema_version,
            "serializer": DBOSPortableJSONSerializer(),
            "run_migrations": False,
            "use_listen_notify": True,
            "log_level": "WARNING",
        }
        DBOS(config=config)

        @DBOS.step(name="carry_out")
        def step(measurement_id: str) -> None:
            carry_out(measurement_id)

        @DBOS.workflow(name=_WORKFLOW)
        def measure(measurement_id: str) -> None:
            step(measurement_id)

        DBOS.listen_queues([queue])

    def start(self) -> None:
        """Take jobs from now on. One that could not start leaves no thread behind."""
        try:
            with _translating():
                DBOS.launch()
                # The limit is per queue and process, and this process listens to this one alone: one job at a time.
                DBOS.register_queue(
                    self._queue, worker_concurrency=1, polling_interval_sec=self._poll_seconds
                )
        except BaseException:
            DBOS.destroy(destroy_registry=True)
            raise

    def stop(self) -> None:
        """Take no more jobs, and wait a moment for the one that runs."""
        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=_STOP_SECONDS)


def _engine_url(url: str) -> str:
    return parse_database_url(url).render_as_string(hide_password=False)


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except error.DBOSInitializationError as cause:  # of a process that may not migrate
        raise UnmigratedError(_TABLES, "its tables are those of another version") from cause
    except SQLAlchemyError as cause:
        reason = str(getattr(cause, "orig", None) or cause).strip()
        if isinstance(cause, DBAPIError) and lacks_table(cause):
            raise UnmigratedError(_TABLES, reason.splitlines()[0]) from cause
        raise StorageUnavailableError(f"the queues cannot be reached: {reason}") from cause
