"""Measured runs on a CPU: what a result holds, and that its peak is the trace's."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.profiler.measure.requests import GPT2, TINY, make_request, measured
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import MeasuredStep, MeasurementOutcome, PeakPhase
from whatfits.optim_impls import quantize

EXACT: dict[str, dict[str, Any]] = {
    "accumulation": {"grad_accum_steps": 3},
    "checkpointing": {"activation_checkpointing": "full"},
    "accumulation with checkpointing": {"grad_accum_steps": 2, "activation_checkpointing": "full"},
    "layer-wise with checkpointing": {"layerwise_update": True, "activation_checkpointing": "full"},
    "selective checkpointing": {"activation_checkpointing": "selective", "checkpointing_policy": "ops"},
    "eager attention": {"attention": "eager"},
    "fp32": {"precision": "fp32"},
    "autocast": {"precision": "bf16_mixed"},
    "a scaled loss, clipped": {"precision": "fp16_mixed", "gradient_clipping": True, "grad_accum_steps": 2},
    "master weights": {"precision": "bf16_master", "grad_accum_steps": 2},
    "clipping": {"gradient_clipping": True, "optimizer": {"name": "sgd"}},
    "a loop over parameters": {"optimizer": {"name": "adamw", "implementation": "for_loop"}},
    "gradients kept": {"loop": {"set_grads_to_none": False}},
    "outputs kept": {"loop": {"keep_outputs": "step"}},
    "an adapter": {"method": "lora", "adapter": {"rank": 4, "targets": ["q_proj", "v_proj"]}},
}
OPTIMIZERS = (
    "sgdm", "adamw_8bit", "lion", "adan", "adafactor", "galore_adamw", "galore_adafactor", "fira", "frugal", "apollo",
    "apollo_mini", "muon", "sm3", "gwt", "ldadam", "subtrack", "sophia", "q_galore", "q_apollo_mini", "came", "lamb",
    "schedule_free_adamw", "lomo",
)  # fmt: skip


@pytest.fixture
def _new_codebooks() -> Iterator[None]:
    """Maps of 8-bit codes are made once per process; a run in a process of its own makes them itself."""
    quantize.codebook.cache_clear()
    yield
    quantize.codebook.cache_clear()


@pytest.mark.parametrize("training", EXACT.values(), ids=EXACT)
def test_the_measured_peak_is_the_traces(training: dict[str, Any]) -> None:
    result, _ = measured(make_request(training=training, measured_steps=1))

    assert result.notes == ()
    assert result.peak_requested_bytes == result.traced_peak_requested_bytes


@pytest.mark.usefixtures("_new_codebooks")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizers_peak_is_the_traces(name: str) -> None:
    request = make_request(training={"optimizer": {"name": name}}, measured_steps=1)

    result, _ = measured(request)

    assert result.peak_requested_bytes == result.traced_peak_requested_bytes
    assert all("whatfits.optim_impls" in note for note in result.notes)


def test_a_result_says_what_every_step_took() -> None:
    result, told = measured(make_request(measured_steps=4))

    assert result.outcome is MeasurementOutcome.COMPLETED
    assert result.reached_phase is None
    assert result.reached_step == 3 + 1 + 4
    times = result.times
    every = (times.forward, times.loss, times.backward, times.optimizer_step, times.step)
    assert [len(samples) for samples in every] == [4] * 5
    assert times.refresh_step == ()
    parts = zip(times.forward, times.loss, times.backward, times.optimizer_step, strict=True)
    assert [sum(part) for part in parts] == pytest.approx(list(times.step))
    assert {(p.step, p.phase) for p in result.peaks} == {
        (step, phase) for step in (MeasuredStep.FIRST, MeasuredStep.STEADY) for phase in PeakPhase
    }
    assert max(p.peak_requested_bytes for p in result.peaks) == result.peak_requested_bytes
    assert [p.stage for p in told if p.done == p.total] == ["building", "warmup", "measuring", "tracing"]


def test_tokens_per_second_are_those_of_the_median_step() -> None:
    result, _ = measured(make_request(training={"grad_accum_steps": 2}, measured_steps=3))

    assert result.tokens_per_second == 2 * 16 * 2 / sorted(result.times.step)[1]
    assert result.mfu is None


def test_steps_that_refresh_projections_stand_apart() -> None:
    request = make_request(training={"optimizer": {"name": "galore_adamw", "rank": 4}}, measured_steps=2)

    result, told = measured(request)

    assert (len(result.times.step), len(result.times.refresh_step)) == (2, 1)
    assert result.refresh_interval == 1 + 2
    assert result.reached_step == 3 + 1 + 2 + 1
    assert "refresh" in {p.stage for p in told}
    steps = {p.step: p.peak_requested_bytes for p in result.peaks if p.phase is PeakPhase.OPTIMIZER_STEP}
    assert set(steps) == set(MeasuredStep)
    assert steps[MeasuredStep.REFRESH] > steps[MeasuredStep.STEADY]


@pytest.mark.parametrize(
    ("allocator", "notes"),
    [
        ("classic", ()),
        (
            "expandable",
            (
                "allocator: expandable has no effect on a CPU, which has no caching allocator: "
                "live tensors are counted.",
            ),
        ),
    ],
)
def test_an_allocator_that_a_cpu_has_not_is_noted(allocator: str, notes: tuple[str, ...]) -> None:
    result, _ = measured(make_request(spec={"allocator": allocator}, measured_steps=1))

    assert result.notes == notes


def test_layers_can_be_left_out() -> None:
    whole, _ = measured(make_request(measured_steps=1))
    shallow, _ = measured(make_request(measured_steps=1, num_layers=1))

    assert (whole.num_layers, shallow.num_layers) == (2, 1)
    assert shallow.num_parameters < whole.num_parameters
    assert shallow.peak_requested_bytes == shallow.traced_peak_requested_bytes


def test_models_of_any_config_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path))  # what building it finds out is kept there

    result, _ = measured(
        make_request(model=GPT2, training={"attention": "eager", "precision": "fp32"}, measured_steps=1)
    )

    assert result.num_layers == 2
    assert result.peak_requested_bytes == result.traced_peak_requested_bytes


def test_what_is_not_traced_is_measured_and_says_so() -> None:
    grouped = {**TINY, "num_key_value_heads": 2}

    result, _ = measured(make_request(model=grouped, measured_steps=1))

    assert result.traced_peak_requested_bytes is None
    assert result.peak_requested_bytes > 0
    (note,) = result.notes
    assert note.startswith(
        "There is no trace beside this measurement: the CPU's kernels for a mask, grouped key"
    )


def test_out_of_memory_is_a_result_that_says_how_far_it_got() -> None:
    enough, _ = measured(make_request(measured_steps=1))
    cap = enough.peak_requested_bytes - 1

    result, _ = measured(make_request(measured_steps=1, hardware={"memory_cap_bytes": cap}))

    assert result.outcome is MeasurementOutcome.OUT_OF_MEMORY
    assert result.reached_phase is PeakPhase.OPTIMIZER_STEP
    assert result.reached_step == 0
    assert 0 < result.peak_requested_bytes <= cap
    assert result.times.step == ()
    assert result.tokens_per_second is None
    (note,) = result.notes
    assert f"memory_cap_bytes is {cap}" in note


def test_memory_for_less_than_the_weights_is_out_before_the_first_step() -> None:
    result, _ = measured(make_request(hardware={"memory_cap_bytes": 1000}))

    assert result.outcome is MeasurementOutcome.OUT_OF_MEMORY
    assert (result.reached_step, result.reached_phase) == (0, None)


def test_a_snapshot_holds_the_events_of_the_memory_pass() -> None:
    result, _ = measured(make_request(snapshot=True, measured_steps=1))

    assert result.snapshot_path is not None
    path = Path(result.snapshot_path)
    events = json.loads(gzip.decompress(path.read_bytes()))["events"]
    path.unlink()
    live = highest = 0
    for nbytes in events["signed_bytes"]:
        live += nbytes
        highest = max(highest, live)
    assert highest == result.peak_requested_bytes


def test_the_environment_names_what_it_was_measured_with() -> None:
    request = make_request(training={"optimizer": {"name": "lamb"}}, measured_steps=1)

    environment = measured(request)[0].environment

    assert environment.packages["torch"] == torch.__version__
    assert set(environment.packages) == {"torch", "transformers", "pytorch_optimizer"}
    assert environment.device_name
    assert environment.gpu_uuids == ()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "loss": ({"training": {"loss": "chunked"}}, "training.loss"),
    "attention": ({"training": {"attention": "flash_attention_2"}}, "training.attention"),
    "compile": ({"training": {"compile": True}}, "training.compile"),
    "precision": ({"training": {"precision": "fp8"}}, "training.precision"),
    "framework": ({"training": {"framework": "megatron"}}, "training.framework"),
    "method": ({"training": {"method": "qlora"}}, "training.method"),
    "optimizer": ({"training": {"optimizer": {"name": "mezo"}}}, "training.optimizer.name"),
    "paged optimizer": ({"training": {"optimizer": {"name": "paged_adamw"}}}, "training.optimizer.name"),
    "block size": (
        {"training": {"optimizer": {"name": "adamw_8bit", "block_size": 2048}}},
        "training.optimizer.block_size",
    ),
    "stack": ({"spec": {"stack": {"torch": "1.13"}}}, "stack"),
    "several processes": ({"hardware": {"num_gpus": 2}}, "hardware.num_gpus"),
}


@pytest.mark.parametrize(("changes", "field"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_measured_is_refused_by_name(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        measured(make_request(**changes))

    assert caught.value.field == field
