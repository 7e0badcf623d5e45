"""`whatfits estimate` answers for one run, from a file, standard input or options; its exit status is the verdict."""

import io
import json
import sys
from pathlib import Path

import pytest

from whatfits.estimator import estimate_run
from whatfits.estimator.specs import Estimate, RunSpec, Verdict
from whatfits.estimator.units import format_bytes
from whatfits.service.cli import main

SMALL = {
    "model": "llama-60m",
    "training": {"micro_batch_size": 2, "seq_len": 256, "optimizer": {"name": "apollo", "rank": 32}},
    "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 1},
}
"""Fits many times over."""
LARGE = {"model": "llama-3.1-70b", "hardware": {"gpu": "rtx-3090"}}
"""Its weights alone are six times the memory."""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(("estimate", *arguments))
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


def write(folder: Path, spec: object) -> str:
    path = folder / "run.json"
    path.write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return str(path)


def test_json_of_a_file_is_the_estimator_s_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, write(tmp_path, SMALL), "--json")
    assert (code, err) == (0, "")
    assert Estimate.model_validate_json(out) == estimate_run(RunSpec.model_validate(SMALL))


def test_standard_input_and_file_are_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from_file = run(capsys, write(tmp_path, SMALL), "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(SMALL).encode())))
    assert run(capsys, "-", "--json") == from_file


def test_options_and_file_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--model llama-60m --gpus a100-80gb-sxm --micro-batch 2 --seq-len 256 --optimizer apollo --rank 32"
    )
    assert run(capsys, *options.split(), "--json") == run(capsys, write(tmp_path, SMALL), "--json")


def test_every_option_reaches_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--model llama-60m --gpus 2x4xa100-80gb-sxm --micro-batch 2 --seq-len 256 --grad-accum 3 --optimizer adamw "
        "--implementation fused --checkpointing full --precision bf16 --framework pytorch --allocator expandable"
    )
    _, out, _ = run(capsys, *options.split(), "--json")
    spec = Estimate.model_validate_json(out).spec
    training = spec.training
    assert (training.micro_batch_size, training.seq_len, training.grad_accum_steps) == (2, 256, 3)
    assert (training.optimizer.name, training.optimizer.implementation) == ("adamw", "fused")
    assert (training.activation_checkpointing, training.precision, training.framework) == (
        "full",
        "bf16",
        "pytorch",
    )
    assert (spec.hardware.num_gpus, spec.hardware.gpus_per_node) == (8, 4)
    assert (spec.parallelism.dp_replicate_degree, spec.allocator) == (8, "expandable")


def test_options_of_method_and_module_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    """No profile of that class is shipped; the error names it, and with it every option."""
    options = (
        "--model llama-60m --gpus a100-80gb-sxm --precision bf16_mixed --method dora --lora-rank 4 --lora-targets "
        "v_proj,q_proj --attention eager --dropout 0.2 --packed --loss chunked --checkpointing every_3"
    )
    code, _, err = run(capsys, *options.split())
    assert code == 2
    slug = (
        "llamaforcausallm-bf16_mixed-eager-ckpt_every_3-loss_chunked-mb_one-kv_full-untied-mask_packed-dropout-"
        "dora_q_proj+v_proj"
    )
    assert slug in err.replace("\n", "")


def test_clipping_reaches_the_run_and_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--model", "llama-60m", "--gpus", "a100-80gb-sxm", "--precision", "bf16_master", "--clip"]
    _, out, _ = run(capsys, *question, "--json")
    answer = Estimate.model_validate_json(out)
    assert answer.spec.training.gradient_clipping is True
    assert answer.memory.breakdown.master_weights > 0
    _, text, _ = run(capsys, *question)
    assert "bf16_master, clipped" in text
    assert "master weights" in text


def test_layerwise_and_shards_reach_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    question = ["--model", "llama-60m", "--seq-len", "256", "--json"]
    _, out, _ = run(capsys, *question, "--gpus", "a100-80gb-sxm", "--layerwise")
    assert Estimate.model_validate_json(out).spec.training.layerwise_update
    _, out, _ = run(capsys, *question, "--gpus", "8xa100-80gb-sxm", "--shard", "8")
    parallelism = Estimate.model_validate_json(out).spec.parallelism
    assert (parallelism.dp_replicate_degree, parallelism.dp_shard_degree, parallelism.zero_stage) == (1, 8, 3)


def test_what_a_loose_gpu_name_was_taken_for_is_an_assumption(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--model", "llama-60m", "--gpus", "a100-80gb", "--seq-len", "256", "--json")
    assumptions = Estimate.model_validate_json(out).provenance.assumptions
    assert [sentence for sentence in assumptions if "a100-80gb-sxm" in sentence]


def test_exits_1_when_it_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, write(tmp_path, LARGE))
    assert (code, err) == (1, "")
    assert out.startswith("does not fit")


def test_uncertain_warns_and_exits_4_under_strict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cap is the median of what the run needs, so its interval lies on both sides."""
    needed = estimate_run(RunSpec.model_validate(SMALL)).memory.device_bytes.median
    capped = {**SMALL, "hardware": {"gpu": "a100-80gb-sxm", "memory_cap_bytes": needed}}
    path = write(tmp_path, capped)
    assert estimate_run(RunSpec.model_validate(capped)).fits is Verdict.UNCERTAIN
    code, _, err = run(capsys, path)
    assert code == 0
    assert err.startswith("warning: uncertain: fits with probability 0.")
    assert run(capsys, path, "--strict")[0] == 4


def test_the_text_opens_with_the_verdict_and_sums_to_the_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(capsys, write(tmp_path, SMALL))
    answer = estimate_run(RunSpec.model_validate(SMALL))
    assert out.startswith("fits (probability ")
    assert f"{answer.memory.breakdown.total:,}" in out
    assert f"{answer.memory.device_bytes.median:,}" in out


def test_an_explained_run_names_what_is_live_and_draws_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, SMALL)
    answer = estimate_run(RunSpec.model_validate(SMALL), explain=True)
    explanation = answer.explanation
    assert explanation is not None

    _, out, _ = run(capsys, path, "--explain", "--json")
    assert Estimate.model_validate_json(out) == answer

    _, out, _ = run(capsys, path, "--explain")
    lines = out.splitlines()
    for group in explanation.live[:20]:
        said = f"{group.count:,} x {group.op}{' of ' if group.module else ''}{group.module} "
        assert [line for line in lines if line.startswith(said) and f" {group.bytes:,} " in line]
    assert f"{len(explanation.live) - 20} smaller groups" in out
    (drawn,) = (line for line in lines if line.startswith(explanation.peak_phase) and "█" in line)
    assert format_bytes(explanation.peak_allocated_bytes) in drawn

    _, out, _ = run(capsys, path)
    assert "smaller groups" not in out


def test_a_sharded_run_cannot_be_explained(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model", "llama-60m", "--gpus", "8xa100-80gb-sxm", "--shard", "8", "--explain")
    code, out, err = run(capsys, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: parallelism.dp_shard_degree: under FSDP memory comes from a table")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ('{"model":', ("not JSON", "line 1, column 10")),
        ({**SMALL, "trainning": {}}, ("trainning", "did you mean training")),
        ({**SMALL, "hardware": {"gpu": "a100"}}, ("a100", "a100-80gb-sxm", "a100-40gb-sxm")),
        (
            {
                **SMALL,
                "hardware": {"gpu": "a100-80gb-sxm", "num_gpus": 3},
                "parallelism": {"tp_degree": 3},
            },
            ("tp_degree", "3", "8"),
        ),
        ({**SMALL, "training": {"seq_len": 0}}, ("training.seq_len: 0",)),
        ({**SMALL, "training": {"optimizer": {"name": "apollo", "rank": 513}}}, ("rank", "513", "512")),
        ({"hardware": {"gpu": "h100"}}, ("model", "missing")),
        ([], ("a JSON object is expected, not list",)),
    ],
    ids=["json", "key", "gpu", "tp", "seq_len", "rank", "model", "list"],
)
def test_bad_input_exits_2_and_names_value_and_choices(
    spec: object, said: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, write(tmp_path, spec))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert [words for words in said if words not in err] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--model: not given"),
        (("--model", "llama-60m"), "--gpus: not given"),
        (("run.json", "--model", "llama-60m"), "SPEC: given together with model"),
        (("nosuch.json",), "nosuch.json: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_missing_or_too_much_is_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {said}")
