"""The comparison with real steps, on a CPU from end to end."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from whatfits.profiler.gpu_first import main
from whatfits.profiler.measure.campaign import build_campaign, run_campaign
from whatfits.profiler.measure.cases import CPU_CASES, Case
from whatfits.profiler.measure.child import measure
from whatfits.profiler.measure.compare import compare_events
from whatfits.profiler.measure.events import EventList
from whatfits.profiler.measure.prediction import predict, recipe_key
from whatfits.profiler.measure.programs import trace_here
from whatfits.profiler.measure.recipe import build_recipe


def test_the_cpu_twin_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--cases", "sgd", "--commit", "abc", "--out", str(tmp_path)]) == 0

    report = json.loads((tmp_path / "report.json").read_text())
    (case,) = report["cases"]
    assert case["error"] is None
    assert case["measured_peaks"]["requested_bytes"] == case["predicted_peaks"]["requested_bytes"] > 0
    assert report["environment"]["torch"] == torch.__version__
    assert report["environment"]["commit"] == "abc"
    (line,) = gzip.decompress((tmp_path / "events.jsonl.gz").read_bytes()).splitlines()
    assert len(json.loads(line)["predicted"]["blocks"]) == case["comparison"]["num_predicted"]
    assert case["name"] in capsys.readouterr().out


@pytest.mark.parametrize("case", CPU_CASES, ids=lambda case: case.name)
def test_real_steps_allocate_and_free_what_is_predicted(case: Case) -> None:
    model = build_campaign("tiny", "cpu").model
    request = {"case": case.to_json(), "model": model.model_dump(mode="json"), "device": "cpu"}
    measured = EventList(**measure(request)["events"])
    recipe = build_recipe(model, case.training)
    program = trace_here(recipe_key(recipe), recipe, on_cpu=True)

    setup, *steps = compare_events(predict(recipe, program, compute_capability=None).events, measured)

    assert (setup.only_predicted, setup.only_measured) == ((), ())
    assert [step.first_difference for step in steps] == [None, None, None]
    assert all(step.num_same_block == step.num_measured > 0 for step in steps)
    assert [s.predicted_peak_bytes for s in steps] == [s.measured_peak_bytes for s in steps]


def test_a_run_that_fails_is_recorded_and_the_report_goes_on() -> None:
    campaign = build_campaign("tiny", "cpu", "sgd")
    broken = campaign.model.model_copy(update={"vocab_size": 0})

    report, lines = run_campaign(type(campaign)(model=broken, device="cpu", cases=campaign.cases))

    assert report["cases"][0]["error"]["type"]
    assert len(lines) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_it_says_so_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    error = capsys.readouterr().err
    assert error == "gpu_first found no CUDA device: run it on a machine with one, or with --device cpu.\n"
