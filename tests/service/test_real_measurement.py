"""One measurement all the way: asked over REST, carried out by the real child on this machine's CPU."""

import threading
from functools import partial
from pathlib import Path

from fastapi.testclient import TestClient

from tests.fakes import FakePlanner
from tests.fleet.processes import QUICK, eventually
from whatfits.service.agent import AgentProcess, run_on
from whatfits.service.app import create_app
from whatfits.service.settings import Settings
from whatfits.service.slots import find_slot

TINY = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip
BODY = {
    "spec": {
        "model": TINY,
        "training": {"seq_len": 16, "precision": "fp32", "attention": "eager"},
        "hardware": {"gpu": "h100"},
    },
    "device": "cpu",
    "warmup_steps": 1,
    "measured_steps": 2,
}


def test_a_tiny_model_is_measured_by_real_steps_and_its_peak_is_that_of_its_trace(tmp_path: Path) -> None:
    settings = Settings.model_validate({"database_url": f"sqlite:///{tmp_path}/w.db", **QUICK})
    slot = find_slot("cpu", None)
    with TestClient(create_app(settings, planner=FakePlanner())) as client:
        assert client.get("/readyz").status_code == 200
        agent = AgentProcess(settings, slot, partial(run_on, slot))
        thread = threading.Thread(target=agent.serve)
        thread.start()
        try:
            eventually(lambda: client.get("/readyz").json()["live_agents"])
            answer = client.post("/api/v1/measurements", json=BODY)
            assert answer.status_code == 202, answer.text
            location = answer.headers["Location"]
            eventually(
                lambda: client.get(location).json()["status"] not in ("queued", "running"), seconds=240
            )
            found = client.get(location).json()
        finally:
            agent.end()
            thread.join()

    assert (found["status"], found["failure"]) == ("succeeded", None)
    assert found["result"]["peak_requested_bytes"] == found["result"]["traced_peak_requested_bytes"]
    assert len(found["result"]["times"]["step"]) == 2
