"""Agents in a terminal."""

from collections.abc import Sequence

from whatfits.service.api.measurement_schemas import AgentEntry
from whatfits.service.cli.output import build_table, print_rendered


def render_agents(agents: Sequence[AgentEntry]) -> None:
    """Print a line for each agent."""
    if not agents:
        print_rendered("no agent was heard in the last hour")
        return
    table = build_table("queue", "host", "slot", "device", "", "last heard", "agent")
    for agent in agents:
        heard = agent.heartbeat_at.strftime("%Y-%m-%d %H:%M:%S UTC")
        state = "live" if agent.live else "silent"
        table.add_row(agent.queue, agent.host, agent.slot, agent.device_name, state, heard, agent.id)
    print_rendered(table)
