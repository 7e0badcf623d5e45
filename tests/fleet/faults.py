"""A campaign of faults on a real PostgreSQL: agents killed and frozen, database and server gone for a while, jobs cancelled.

Afterwards every job has ended, once, as it had to: nothing is lost, nothing is there twice.
"""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.fleet.processes import Fleet, Member, eventually, open_fleet
from tests.fleet.scripts import Script, make_body
from tests.postgres import PostgresServer

__all__ = ["Outcome", "run_faults"]

_PATH = "/api/v1/measurements"
_MIXTURE = (
    (Script.SUCCEED, "succeeded"),
    (Script.HALF_A_SECOND, "succeeded"),
    (Script.RUN_OUT_OF_MEMORY, "succeeded"),
    (Script.RAISE, "failed"),
    (Script.HALF_A_SECOND, "succeeded"),
    (Script.DIE, "failed"),
)
_LONG = 40
"""Tenths of a second: time enough to be interrupted in."""
_FINAL = ("succeeded", "failed", "cancelled")


@dataclass(kw_only=True)
class Outcome:
    """What came of a campaign."""

    num_jobs: int
    statuses: Counter[str]
    attempts: Counter[int]
    num_runs: int
    """Children that were begun, for all jobs."""
    faults: list[str]
    wrong: list[str] = field(default_factory=list)
    """What is not as it has to be, a sentence each."""


class _Campaign:
    """A server and agents on one database, and the jobs that were given to them."""

    def __init__(self, postgres: PostgresServer, fleet: Fleet) -> None:
        self.postgres = postgres
        self.fleet = fleet
        self.port = _free_port()
        self.server = self.start_server()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.agents: list[Member] = []
        self.expected: dict[str, str] = {}
        self.seeds: dict[str, int] = {}
        self.faults: list[str] = []

    def start_server(self) -> Member:
        code = "from whatfits.service.cli import main; main()"
        return self.fleet.start(["-c", code, "serve", "--no-agent", "--port", str(self.port)])

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask again while the server or its database is away."""

        def attempt() -> Any:
            try:
                answer = self.client.request(method, path, **options)
            except httpx2.TransportError:
                time.sleep(0.2)
                return None
            return answer if answer.status_code < 500 else None

        return eventually(attempt, seconds=120)

    def submit(self, script: int, status: str) -> str:
        body = make_body(script)
        headers = {"Idempotency-Key": f"key-{body['seed']}"}
        answer = self.ask("POST", f"{_PATH}?when_unavailable=queue", json=body, headers=headers)
        again = self.ask("POST", f"{_PATH}?when_unavailable=queue", json=body, headers=headers)
        id_ = str(answer.json()["id"])
        if again.json()["id"] != id_:
            raise AssertionError(f"the key of {id_} was taken twice")
        self.expected[id_], self.seeds[id_] = status, body["seed"]
        return id_

    def get(self, id_: str) -> Any:
        return self.ask("GET", f"{_PATH}/{id_}").json()

    def held(self, id_: str) -> Member:
        """The agent that runs a job, once one does."""

        def find() -> Member | None:
            found = self.get(id_)
            if found["status"] != "running" or not self.fleet.runs_of(self.seeds[id_]):
                return None
            return next(agent for agent in self.agents if f"agent_id={found['agent']}" in agent.log)

        member = eventually(find, seconds=240)
        assert member is not None
        return member

    def wait_for(self, id_: str, *, attempts: int) -> None:
        eventually(lambda: self.get(id_)["attempts"] >= attempts, seconds=240)

    def all(self) -> list[Any]:
        found, query = [], "?source=local&limit=200"
        while True:
            page = self.ask("GET", _PATH + query).json()
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            query = f"?source=local&limit=200&cursor={page['next_cursor']}"


def run_faults(
    postgres: PostgresServer,
    folder: Path,
    *,
    num_jobs: int,
    num_agents: int,
    everything: bool,
    template: str = "template1",
) -> Outcome:
    """Have jobs carried out while faults happen.

    Args:
        postgres: A server that may be stopped and started.
        folder: For logs.
        num_jobs: Jobs in all, those that are interrupted included.
        num_agents: Agents at the same time.
        everything: Whether database and API server go away, too.
        template: Database that is copied to begin with; what it lacks, the server makes.
    """
    url = postgres.url(postgres.create_database(template=template))
    with open_fleet(url, folder) as fleet, _opened(_Campaign(postgres, fleet)) as campaign:
        campaign.ask("GET", "/readyz")
        campaign.agents = [fleet.start_agent() for _ in range(num_agents)]
        faults = [_kill_an_agent, _freeze_an_agent]
        faults += [_restart_the_database, _kill_the_server] if everything else []
        num_cancelled = 5 if everything else 2
        mixture = [
            _MIXTURE[number % len(_MIXTURE)] for number in range(num_jobs - len(faults) - num_cancelled)
        ]
        share = len(mixture) // (len(faults) + 1)
        for fault in faults:
            job = campaign.submit(_LONG, "succeeded")
            for _ in range(share):
                campaign.submit(*mixture.pop())
            fault(campaign, job)
        for script, status in mixture:
            campaign.submit(script, status)
        _cancel(campaign, [campaign.submit(Script.HANG, "cancelled") for _ in range(num_cancelled)])
        eventually(lambda: all(each["status"] in _FINAL for each in campaign.all()), seconds=420)
        return _judge(campaign, num_jobs)


def _kill_an_agent(campaign: _Campaign, job: str) -> None:
    agent = campaign.held(job)
    agent.kill()
    campaign.agents.append(campaign.fleet.start_agent())
    campaign.wait_for(job, attempts=2)
    campaign.faults.append("kill -9 of an agent in the middle of a job")


def _freeze_an_agent(campaign: _Campaign, job: str) -> None:
    agent = campaign.held(job)
    agent.freeze()
    campaign.wait_for(job, attempts=2)
    agent.thaw()
    campaign.faults.append("SIGSTOP of an agent until another had its job, then SIGCONT")


def _restart_the_database(campaign: _Campaign, job: str) -> None:
    campaign.held(job)
    campaign.postgres.stop()
    time.sleep(3)
    campaign.postgres.start()
    campaign.faults.append("PostgreSQL stopped for 3 s in the middle of a job")


def _kill_the_server(campaign: _Campaign, job: str) -> None:
    campaign.held(job)
    campaign.server.kill()
    campaign.server = campaign.start_server()
    campaign.faults.append("kill -9 of the API server in the middle of a job")


def _cancel(campaign: _Campaign, jobs: list[str]) -> None:
    campaign.held(jobs[0])
    for job in jobs:
        campaign.ask("DELETE", f"{_PATH}/{job}")
    campaign.faults.append(f"{len(jobs)} jobs cancelled, the first of them in the middle")


def _judge(campaign: _Campaign, num_jobs: int) -> Outcome:
    found = campaign.all()
    runs = {each["id"]: len(campaign.fleet.runs_of(campaign.seeds.get(each["id"], -1))) for each in found}
    wrong = []
    if sorted(each["id"] for each in found) != sorted(campaign.expected) or len(found) != num_jobs:
        wrong.append(f"{len(found)} measurements for {len(campaign.expected)} submissions of {num_jobs}")
    for each in found:
        told = [each["result"] is not None, each["failure"] is not None, each["status"] == "cancelled"]
        if each["status"] != campaign.expected.get(each["id"]) or sum(told) != 1:
            wrong.append(
                f"{each['id']}: {each['status']}, {each['failure']}, not {campaign.expected[each['id']]}"
            )
        if runs[each["id"]] > each["attempts"]:
            wrong.append(f"{each['id']}: begun {runs[each['id']]} times in {each['attempts']} attempts")
    return Outcome(
        num_jobs=num_jobs,
        statuses=Counter(each["status"] for each in found),
        attempts=Counter(each["attempts"] for each in found),
        num_runs=sum(runs.values()),
        faults=campaign.faults,
        wrong=wrong,
    )


@contextmanager
def _opened(campaign: _Campaign) -> Iterator[_Campaign]:
    with campaign.client:
        yield campaign


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
