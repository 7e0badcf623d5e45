"""Twelve optimizers measured over REST by the agent that `whatfits serve` brings, each peak beside the trace's."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.verify.report import ROOT, Section
from whatfits.estimator.units import format_bytes, format_seconds
from whatfits.profiler.process_family import tethered

__all__ = ["verify_measured"]

_TITLE = "Twelve optimizers measured over REST by the local agent"
_COLUMNS = (
    "optimizer",
    "progress events",
    "peak requested",
    "less the trace",
    "optimizer step, median",
    "samples",
)
_OPTIMIZERS = (
    "adamw", "adamw_8bit", "lion", "adan", "adafactor", "sgdm", "galore_adamw", "fira", "frugal", "apollo", "apollo_mini", "muon",
)  # fmt: skip
_SOURCES = ("estimator", "optim_impls", "profiler", "service", "web")
_SERVE = ("-c", "from whatfits.service.cli import main; main()", "serve")
_START_SECONDS = 120.0
_MEASURED_STEPS = 5


def verify_measured() -> Section:
    """A 60M LLaMA of 1 x 64 tokens in bf16 with each optimizer; the server and its agent are processes of their own."""
    rows, failures = [], []
    with tempfile.TemporaryDirectory(prefix="whatfits-verify-") as folder, _server(Path(folder)) as client:
        ids = {name: _submit(client, name) for name in _OPTIMIZERS}
        for name, id_ in ids.items():
            events = _follow(client, id_)
            row, problems = _describe(name, events)
            rows.append(row)
            failures += problems
    exact = sum(row[3] == 0 for row in rows)
    summary = f"{len(rows)} measurements of a 60M LLaMA, {exact} with the trace's peak to the byte"
    return Section(title=_TITLE, summary=summary, columns=_COLUMNS, rows=rows, failures=failures)


@contextmanager
def _server(folder: Path) -> Iterator[httpx2.Client]:
    """A server with its local agent, on an empty database; a client of it once the agent is there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(ROOT / source) for source in _SOURCES),
        "WHATFITS_DATABASE_URL": f"sqlite:///{folder}/verify.db",
    }
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            tethered([sys.executable, *_SERVE, "--port", str(port)], parent=os.getpid()),
            env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=600) as client:
            _wait_for_agent(client)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_for_agent(client: httpx2.Client) -> None:
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            agents = client.get("/agents").json()["items"]
        except httpx2.TransportError:
            agents = []
        if any(agent["live"] for agent in agents):
            return
        if time.monotonic() > until:
            raise TimeoutError(f"no agent within {_START_SECONDS:g} s")
        time.sleep(0.2)


def _submit(client: httpx2.Client, optimizer: str) -> str:
    run = {
        "model": "llama-60m",
        "training": {"micro_batch_size": 1, "seq_len": 64, "optimizer": {"name": optimizer}},
        "hardware": {"gpu": "h100-80gb-sxm"},
    }
    body = {"spec": run, "device": "cpu", "warmup_steps": 2, "measured_steps": _MEASURED_STEPS}
    response = client.post("/measurements", json=body)
    response.raise_for_status()
    return str(response.json()["id"])


def _follow(client: httpx2.Client, id_: str) -> list[tuple[str, Any]]:  # Any: an event's JSON
    """Every event of a measurement, by name."""
    events, name = [], ""
    with client.stream("GET", f"/measurements/{id_}/events") as response:
        for line in response.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                events.append((name, json.loads(value)))
    return events


def _describe(name: str, events: list[tuple[str, Any]]) -> tuple[tuple[object, ...], list[str]]:
    """A row, and what is wrong."""
    num_progress = sum(kind == "progress" for kind, _ in events)
    final = events[-1][1] if events and events[-1][0] == "final" else {}
    result = final.get("result")
    if result is None:
        return (name, num_progress, "-", "-", "-", 0), [f"{name}: {final.get('failure') or 'no final event'}"]
    difference = result["peak_requested_bytes"] - result["traced_peak_requested_bytes"]
    samples = sorted(result["times"]["optimizer_step"])
    row = (
        name,
        num_progress,
        format_bytes(result["peak_requested_bytes"]),
        difference,
        format_seconds(samples[len(samples) // 2]),
        len(samples),
    )
    wrong = {
        f"{name}: the peak is {difference:+,} bytes from the trace's": difference != 0,
        f"{name}: {len(samples)} optimizer step times for {_MEASURED_STEPS} steps": len(samples)
        != _MEASURED_STEPS,
        f"{name}: no progress was told": num_progress == 0,
    }
    return row, [sentence for sentence, is_wrong in wrong.items() if is_wrong]
