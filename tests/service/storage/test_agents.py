"""The register of agents, on SQLite and on PostgreSQL."""

from datetime import timedelta

from sqlalchemy import Engine

from tests.measurements import NOON, make_agent
from whatfits.service.domain.agents import AgentState
from whatfits.service.storage.agents import STALE_AFTER, AgentStore

SECOND = timedelta(seconds=1)


def test_an_agent_comes_back_as_it_registered(agents: AgentStore) -> None:
    agent = make_agent(gpu_uuids=("GPU-1", "GPU-2"))
    agents.register(agent)
    assert agents.list(NOON) == (AgentState(agent=agent, live=True),)


def test_registering_again_replaces_what_was_there(agents: AgentStore) -> None:
    agents.register(make_agent())
    agents.register(make_agent(slot="cpu1"))
    (state,) = agents.list(NOON)
    assert state.agent.slot == "cpu1"


def test_agents_are_listed_by_queue_host_and_slot(agents: AgentStore) -> None:
    agents.register(make_agent("a", queue="z"))
    agents.register(make_agent("b", host="y"))
    agents.register(make_agent("c", slot="cpu1"))
    agents.register(make_agent("d"))
    assert [state.agent.id for state in agents.list(NOON)] == ["d", "c", "b", "a"]


def test_an_agent_is_stale_when_it_was_silent_too_long(agents: AgentStore) -> None:
    agents.register(make_agent("silent"))
    agents.register(make_agent("heard", queue="gpu/h100-80gb-sxm/x1"))
    later = NOON + STALE_AFTER + SECOND
    assert agents.heartbeat("heard", later) is True
    assert [agent.id for agent in agents.stale(later)] == ["silent"]
    assert [state.agent.queue for state in agents.list(later) if state.live] == ["gpu/h100-80gb-sxm/x1"]
    assert agents.stale(NOON + STALE_AFTER) == ()


def test_the_silence_allowed_can_be_chosen(engine: Engine) -> None:
    strict = AgentStore(engine, stale_after=SECOND)
    strict.register(make_agent())
    assert [agent.id for agent in strict.stale(NOON + 2 * SECOND)] == ["agent-1"]


def test_a_removed_agent_is_told_to_register_again(agents: AgentStore) -> None:
    agents.register(make_agent())
    assert agents.remove("agent-1") is True
    assert agents.remove("agent-1") is False
    assert agents.heartbeat("agent-1", NOON) is False
    assert agents.list(NOON) == ()
