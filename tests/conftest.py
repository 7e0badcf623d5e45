"""What holds for every test: nothing from the network, one thread per worker, the hypothesis profiles; the databases."""

import os

# Read when torch and numpy are first imported: pytest-xdist's workers share the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

from hypothesis import settings

from tests.databases import (
    database_url,
    migrated_sqlite,
    postgres_server,
    postgres_template,
    postgres_url,
    ready_postgres,
    ready_sqlite,
    ready_url,
)

__all__ = [
    "database_url",
    "migrated_sqlite",
    "postgres_server",
    "postgres_template",
    "postgres_url",
    "ready_postgres",
    "ready_sqlite",
    "ready_url",
]

# No deadlines: how fast an example runs says nothing about whether it is right.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=300, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
