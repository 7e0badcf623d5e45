"""`whatfits trace`: from a model and an interpreter to a profile that estimates use."""

import json
import sys
from pathlib import Path

import pytest

from whatfits.estimator.profile.store import user_profiles
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.service.cli import main
from whatfits.service.cli.trace_answer import TraceAnswer

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 96,
    "intermediate_size": 296,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 5,
    "vocab_size": 701,
    "max_position_embeddings": 512,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path / "profiles"))
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["trace", *arguments])
    return int(exit_.value.code or 0)


def write_config(folder: Path, **changes: object) -> str:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIG, **changes}))
    return str(path)


def test_traces_compiles_and_keeps_a_profile(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_config(folder)

    status = run(model, "--micro-batch-size", "3", "--seq-len", "77", "--json")

    answer = TraceAnswer.model_validate_json(capsys.readouterr().out)
    dims = {"L": 5, "b": 3, "s": 77, "h": 96, "i": 296, "a": 4, "k": 2, "d": 24, "V": 701}
    direct = trace_micro_batch(dims, StepOptions())
    assert (status, answer.basis, answer.fallback, answer.kernel) == (0, "compiled", None, "flash")
    assert answer.stack == running_stack()
    assert answer.peak_requested_bytes == max(direct.live_bytes())
    assert answer.num_events == sum(len(tokens) for tokens in direct.parts.values())
    assert [point.num_different_events for point in answer.held_out] == [0] * 5
    explanation = answer.explanation
    assert (
        explanation.peak_allocated_bytes
        == max(direct.live_bytes(rounded_to=512))
        == answer.peak_rounded_bytes
    )
    assert sum(group.bytes for group in explanation.live) <= answer.peak_requested_bytes
    (silu,) = (group for group in explanation.live if group.op == "silu output")
    assert (silu.count, silu.bytes) == (5, 5 * 3 * 77 * 296 * 2)
    kept = sorted(path.name for path in Path(str(answer.saved_to)).iterdir())
    assert kept == [f"{answer.profile}.program.json.gz", f"{answer.profile}.table.json.gz"]
    assert Path(str(answer.saved_to)).parent == user_profiles()


def test_too_few_layers_for_a_class_are_traced_alone_and_said(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_config(folder, num_hidden_layers=2)

    status = run(model, "--seq-len", "64")

    said = capsys.readouterr()
    assert status == 0
    assert "a direct trace of these sizes alone" in said.out
    assert "2 x silu output of model.layers.*.mlp.act_fn " in said.out
    assert "Over the micro-batch " in said.out
    assert said.err.startswith("warning: not kept")
    assert not user_profiles().exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--precision", "bf61"], "error: --precision: 'bf61' is not accepted; accepted: bf16, fp32"),
        (["--attention", "flash"], "error: --attention: 'flash' is not accepted; accepted: sdpa, eager"),
        (["--adapter", "ia3"], "error: --adapter: 'ia3' is not accepted; accepted: none, lora"),
        (["--python", "/no/such/python"], "error: --python: /no/such/python: cannot be started"),
        (["--seq-len", "0"], "--seq-len"),
        (["--micro-batch-size", "x"], "--micro-batch-size"),
    ],
)
def test_bad_input_exits_2_and_says_what_is_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run("llama-60m", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_name_that_is_no_model_exits_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("llama-7") == 2
    assert "did you mean" in capsys.readouterr().err


def test_an_interpreter_without_torch_exits_2_naming_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = folder / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)

    assert run("llama-60m", "--python", str(bare)) == 2
    assert capsys.readouterr().err == (
        f"error: --python: {bare}: torch is not installed; "
        "accepted: an interpreter, 3.11 or newer, with torch and transformers\n"
    )


def test_a_trace_that_takes_too_long_exits_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow = folder / "python"
    slow.write_text("#!/bin/sh\nsleep 600\n")
    slow.chmod(0o755)

    assert run("llama-60m", "--python", str(slow), "--timeout", "1") == 3
    assert "no answer within 1 s" in capsys.readouterr().err
