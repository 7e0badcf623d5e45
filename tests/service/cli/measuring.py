"""`whatfits measure` with a stand-in for the process that measures."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_measurement_result
from whatfits.service.cli import main

__all__ = ["SMALL", "run", "write_run", "write_stand_in"]

SMALL: dict[str, Any] = {
    "model": "llama-60m",
    "training": {"micro_batch_size": 2, "seq_len": 256, "optimizer": {"name": "apollo", "rank": 32}},
    "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
}
STAND_IN = """#!{python}
import json, sys
request = json.load(sys.stdin)
def answer(event, content):
    print(json.dumps({{"event": event, event: content}}), flush=True)
answer("progress", {{"stage": "measuring", "done": 1, "total": 2}})
result = json.loads({result!r})
training, size = request["spec"]["training"], request["spec"]["training"]["micro_batch_size"]
result["num_layers"] = request["num_layers"] or 8
result["notes"] = [f"{{request['device']}} {{request['warmup_steps']}}+{{request['measured_steps']}} {{sys.argv[1:]}}"]
{body}
answer("result", result)
"""


def write_stand_in(folder: Path, body: str = "", **result: Any) -> str:
    path = folder / "python"
    text = make_measurement_result(**result).model_dump_json()
    path.write_text(STAND_IN.format(python=sys.executable, result=text, body=body))
    path.chmod(0o755)
    return str(path)


def write_run(folder: Path, **changes: Any) -> str:
    path = folder / "run.json"
    path.write_text(json.dumps({**SMALL, **changes}))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(("measure", *arguments))
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err
