"""`whatfits plan` prints what the estimator answers, and its exit status is the verdict."""

from pathlib import Path

import pytest

from whatfits.estimator import plan_runs
from whatfits.estimator.specs import Plan, PlanRequest, Verdict
from whatfits.service.cli import main

HEADLINE = ("plan", "llama-13b", "--gpus", "8xa100-80gb")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(exit_.value.code, int)
    return exit_.value.code, captured.out, captured.err


def without_clock(plan: Plan) -> Plan:
    return plan.model_copy(update={"elapsed_seconds": 0.0})


def test_json_is_the_estimator_s_answer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *HEADLINE, "--json")
    expected = plan_runs(PlanRequest.model_validate({"model": "llama-13b", "hardware": "8xa100-80gb"}))
    assert (code, err) == (0, "")
    assert without_clock(Plan.model_validate_json(out)) == without_clock(expected)


def test_options_reach_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--seq-len 512 --optimizer apollo --optimizer adamw --rank 64 --rank 128 --objective memory --limit 3"
    )
    _, out, _ = run(capsys, *HEADLINE, *options.split(), "--global-batch-size", "64", "--json")
    question = {
        "model": "llama-13b",
        "hardware": "8xa100-80gb",
        "seq_len": 512,
        "global_batch_size": 64,
        "optimizers": ["apollo", "adamw"],
        "ranks": [64, 128],
        "objective": "memory",
        "limit": 3,
    }
    expected = plan_runs(PlanRequest.model_validate(question))
    assert without_clock(Plan.model_validate_json(out)) == without_clock(expected)


def test_the_table_shows_every_candidate_and_every_rejection(capsys: pytest.CaptureFixture[str]) -> None:
    answer = plan_runs(PlanRequest.model_validate({"model": "llama-13b", "hardware": "8xa100-80gb"}))
    code, out, _ = run(capsys, *HEADLINE)
    lines = out.splitlines()
    assert code == 0
    places = [line.split()[0] for line in lines if line.split() and line.split()[0].isdigit()]
    assert places[-1] == str(len(answer.candidates))
    unwrapped = "".join(out.split())
    assert [r.why for r in answer.rejected if "".join(r.why.split()) not in unwrapped] == []


def test_exits_1_when_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "plan", "llama-3.1-405b", "--gpus", "rtx-3090")
    assert code == 1
    assert out.startswith("Nothing fits")


def test_strict_tells_certain_from_uncertain(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *HEADLINE, "--strict", "--json")
    verdicts = {candidate.estimate.fits for candidate in Plan.model_validate_json(out).candidates}
    assert (code, err) == ((0, "") if Verdict.YES in verdicts else (4, err))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("lama-13b", "--gpus", "h100"), ("model: ", "'lama-13b'", "llama-1-13b")),
        (("llama-13b", "--gpus", "8xa100"), ("a100", "8xa100-80gb-sxm", "8xa100-40gb-sxm")),
        (("llama-13b", "--gpus", "h10"), ("'h10'", "h100")),
        (("llama-13b", "--gpus", "0xh100"), ("0xh100", "2x8xh100")),
        (("llama-13b", "--gpus", "h100", "--seq-len", "0"), ("seq_len: 0",)),
        (
            ("llama-13b", "--gpus", "h100", "--optimizer", "adamww"),
            ("optimizers[0]: 'adamww'", "did you mean adamw"),
        ),
        (
            ("llama-13b", "--gpus", "h100", "--optimizer", "apollo", "--rank", "9999"),
            ("rank", "9999", "5120"),
        ),
        (("llama-13b", "--gpus", "h100", "--objective", "speed"), ("objective: 'speed'", "throughput")),
        (("llama-13b", "--gpus", "h100", "--limit", "0"), ("limit: 0",)),
        (("nosuch.json", "--gpus", "h100"), ("nosuch.json", "No such file")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_exits_2_and_names_value_and_choices(
    arguments: tuple[str, ...], said: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "plan", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert [words for words in said if words not in err] == []
    assert "Traceback" not in err


def test_a_config_of_one_s_own_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 512, "intermediate_size": 1376,'
        ' "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 32000, "max_position_embeddings": 1024}'
    )
    code, out, _ = run(capsys, "plan", str(config), "--gpus", "rtx-3090", "--json")
    assert code == 0
    assert Plan.model_validate_json(out).candidates[0].spec.training.seq_len == 1024
