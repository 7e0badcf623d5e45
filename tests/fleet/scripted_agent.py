"""An agent whose child is the scripted one: `python -m tests.fleet.scripted_agent`, settings from the environment."""

from tests.fleet.scripts import run_scripted
from whatfits.service.agent import leave_process, run_agent
from whatfits.service.logs import configure_logging
from whatfits.service.settings import Settings

if __name__ == "__main__":
    configure_logging(json=False)
    run_agent(Settings(), "cpu", run=run_scripted)
    leave_process(0)
