"""A stand-in for the process that measures: does at once, or never, what the request's seed says. Imports nothing of ours.

What it does is the last two digits of the seed; how often it was begun is a line in the file $SCRIPTED_LOG.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

ENVIRONMENT: dict[str, object] = {
    "device_name": "a scripted CPU", "gpu_uuids": [], "device_total_bytes": None, "compute_capability": None,
    "driver": None, "packages": {"torch": "2.13"}, "torch_cuda": None, "python": "3.11", "platform": "Linux", "commit": None,
}  # fmt: skip
RESULT: dict[str, object] = {
    "outcome": "completed", "reached_step": 3, "reached_phase": None, "num_layers": 2, "num_parameters": 1000, "peaks": [],
    "peak_requested_bytes": 4096, "peak_allocated_bytes": None, "peak_reserved_bytes": None,
    "times": {"forward": [0.1], "loss": [], "backward": [0.2], "optimizer_step": [0.1], "step": [0.4]},
    "tokens_per_second": 10.0, "mfu": None, "environment": ENVIRONMENT,
}  # fmt: skip


def say(event: str, content: object) -> None:
    print(json.dumps({"event": event, event: content}), flush=True)


def main() -> None:
    request = json.load(sys.stdin)
    with Path(os.environ["SCRIPTED_LOG"]).open("a") as log:
        log.write(f"{request['seed']} {os.getpid()}\n")
    script = request["seed"] % 100
    say("progress", {"stage": "measuring", "done": 0, "total": 2, "message": ""})
    if script == 0:
        say("progress", {"stage": "measuring", "done": 2, "total": 2, "message": ""})
        say("result", RESULT)
    elif script == 1:
        say("result", {**RESULT, "outcome": "out_of_memory", "reached_step": 1, "reached_phase": "backward"})
    elif script == 2:
        say("failure", {"kind": "raised", "message": "ValueError: the model's own", "field": None})
    elif script == 3:
        sys.exit(7)
    elif script == 4:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    else:  # so many tenths of a second
        time.sleep(script / 10)
        say("result", RESULT)


main()
