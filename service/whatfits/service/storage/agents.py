"""Agents: who is registered, and who was heard lately."""

from datetime import datetime, timedelta

from sqlalchemy import Engine, delete, select, update

from whatfits.service.domain.agents import Agent, AgentState
from whatfits.service.storage.database import reading, writing
from whatfits.service.storage.tables import AgentRow

__all__ = ["STALE_AFTER", "AgentStore"]

STALE_AFTER = timedelta(seconds=15)
"""Silence after which an agent counts as gone, unless the store is told otherwise."""


class AgentStore:
    """Registered agents in a database."""

    def __init__(self, engine: Engine, *, stale_after: timedelta = STALE_AFTER) -> None:
        self._engine = engine
        self._stale_after = stale_after

    def register(self, agent: Agent) -> None:
        """Store an agent, in place of what was stored under its id."""
        content = agent.model_dump(mode="json", exclude={"started_at", "heartbeat_at"})
        row = AgentRow(**content, started_at=agent.started_at, heartbeat_at=agent.heartbeat_at)
        with writing(self._engine) as session:
            session.merge(row)

    def heartbeat(self, id: str, at: datetime) -> bool:  # noqa: A002 - the name that all records use
        """Note that an agent is there; False when it is not registered (any more), and has to register again."""
        statement = update(AgentRow).where(AgentRow.id == id).values(heartbeat_at=at).returning(AgentRow.id)
        with writing(self._engine) as session:
            return session.execute(statement).first() is not None

    def list(self, now: datetime) -> tuple[AgentState, ...]:
        """All agents, by queue, host and slot."""
        oldest = now - self._stale_after
        order = (AgentRow.queue, AgentRow.host, AgentRow.slot, AgentRow.id)
        with reading(self._engine) as session:
            rows = session.scalars(select(AgentRow).order_by(*order)).all()
        return tuple(AgentState(agent=_agent_of(row), live=row.heartbeat_at >= oldest) for row in rows)

    def stale(self, now: datetime) -> tuple[Agent, ...]:
        """The agents that were silent for too long."""
        return tuple(state.agent for state in self.list(now) if not state.live)

    def remove(self, id: str) -> bool:  # noqa: A002
        """Forget an agent; whether it was registered."""
        with writing(self._engine) as session:
            gone = session.execute(delete(AgentRow).where(AgentRow.id == id).returning(AgentRow.id))
            return gone.first() is not None


def _agent_of(row: AgentRow) -> Agent:
    return Agent.model_validate({name: getattr(row, name) for name in Agent.model_fields})
