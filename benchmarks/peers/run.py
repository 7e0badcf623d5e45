"""The same questions to whatfits and to other tools, in one run: part of `make bench`, writes benchmarks/peers.json.

Each tool answers through its own code in an environment of its own. One that cannot be installed is listed with the reason.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("estimator", "optim_impls", "profiler"))]

from benchmarks.accuracy.evaluate import Interpreters  # noqa: E402 (the path is set above)
from benchmarks.peers.environments import PEERS, Peer, PeerUnavailableError, interpreter  # noqa: E402 (the path is set above)
from benchmarks.peers.ours import answer_headline, answer_published, cold_seconds  # noqa: E402 (the same)
from benchmarks.peers.questions import headline_questions, published_questions  # noqa: E402 (the same)

OUT = ROOT / "benchmarks" / "peers.json"
_ANSWER_SECONDS = 300

Answers = list[dict[str, Any]]


def ask(peer: Peer, python: Path, questions: list[dict[str, Any]]) -> Answers:
    """All answers of one tool."""
    script = Path(__file__).with_name(f"ask_{peer.name}.py")
    done = subprocess.run(
        [str(python), str(script)],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
        timeout=_ANSWER_SECONDS,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    answers: Answers = json.loads(done.stdout)
    return answers


def ask_peer(peer: Peer, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Answers of one tool with the wall time of a fresh process for the first question, or why there are none."""
    entry: dict[str, Any] = {"title": peer.title, "licence": peer.licence, "answers_with": peer.answers}
    try:
        python = interpreter(peer)
        answers = ask(peer, python, questions)
        started = time.perf_counter()
        ask(peer, python, questions[:1])
        cold = time.perf_counter() - started
    except PeerUnavailableError as error:
        return {**entry, "not_run": str(error)}
    except subprocess.CalledProcessError as error:
        return {**entry, "not_run": f"its own error: {error.stderr.strip().splitlines()[-1][:200]}"}
    return {
        **entry,
        "cold_seconds": round(cold, 3),
        "answers": dict(zip(_ids(questions), answers, strict=True)),
    }


def ask_us(pythons: list[str]) -> dict[str, Any]:
    """The product's own answers to the same questions."""
    answers = {q["id"]: answer_headline(q) for q in headline_questions()}
    with Interpreters(pythons) as interpreters:
        answers |= {q["id"]: answer_published(q["id"], interpreters) for q in published_questions()}
    return {
        "title": "whatfits",
        "licence": "Apache-2.0",
        "answers_with": "peak allocated memory of one step, replayed; the whole group's placement; an interval and a verdict",
        "cold_seconds": round(cold_seconds(), 3),
        "answers": answers,
    }


def _ids(questions: list[dict[str, Any]]) -> list[str]:
    return [question["id"] for question in questions]


def main() -> int:
    """Ask everybody, print, write."""
    pythons = [x for x in os.environ.get("STACK_PYTHON", "").split(os.pathsep) if x]
    questions = [*headline_questions(), *published_questions()]
    tools = {"whatfits": ask_us(pythons)} | {peer.name: ask_peer(peer, questions) for peer in PEERS}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": {
            "system": platform.platform(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "questions": {q["id"]: {"measured_bytes": q["measured_bytes"]} for q in questions},
        "tools": tools,
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    for name, tool in tools.items():
        print(f"{name:14} {tool.get('not_run') or _summary(report, tool)}")
    return 0


def _summary(report: dict[str, Any], tool: dict[str, Any]) -> str:
    errors = [
        answer["allocated_bytes"] / measured - 1
        for name, answer in tool["answers"].items()
        if (measured := report["questions"][name]["measured_bytes"]) and answer.get("allocated_bytes")
    ]
    if not errors:
        return "no measured question answered"
    mean = sum(abs(e) for e in errors) / len(errors)
    return f"{len(errors):2} measured runs: mean {mean:.2%}, lowest {min(errors):+.2%}, highest {max(errors):+.2%}"


if __name__ == "__main__":
    sys.exit(main())
