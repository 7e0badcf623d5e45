"""The lists show what the catalog holds, and `--json` what the API answers."""

import json

import pytest

from whatfits.estimator.catalog import load_gpus, load_models
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.service.api.schemas import GpuList, ModelList, OptimizerList
from whatfits.service.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.err) == (0, "")
    return captured.out


def test_models_are_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {line.split()[0] for line in run(capsys, "models").splitlines()[1:]}
    assert set(load_models()) <= shown
    listed = json.loads(run(capsys, "models", "--json"))
    assert [model["name"] for model in listed.get("items", listed)] == list(load_models())


def test_gpus_are_all_listed_before_the_note(capsys: pytest.CaptureFixture[str]) -> None:
    table, note = run(capsys, "gpus").split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == list(load_gpus())
    assert note.startswith("memory: what the driver reports")


def test_gpu_memory_is_the_driver_s_and_not_the_marketed_size(capsys: pytest.CaptureFixture[str]) -> None:
    """torch 2.x reports 84,987,740,160 bytes for an A100-SXM4-80GB; 80 GB would be 74.51 GiB."""
    rows = [line.split() for line in run(capsys, "gpus", "a100-80gb-sxm").splitlines()]
    assert ["a100-80gb-sxm", "79.15"] in [row[:2] for row in rows]


def test_estimated_gpu_memory_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        line.split()[0]: line.split()[1] for line in run(capsys, "gpus").split("\n\n")[0].splitlines()[1:]
    }
    marked = {name for name, memory in rows.items() if memory.startswith("~")}
    assert marked == {
        gpu.id for gpu in load_gpus().values() if gpu.total_bytes and gpu.total_bytes_is_estimate
    }
    unknown = {name for name, memory in rows.items() if memory == "-"}
    assert unknown == {gpu.id for gpu in load_gpus().values() if gpu.total_bytes is None}


def test_optimizers_are_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    table, note = run(capsys, "optimizers").split("\n\n")
    rows = [line.split()[0] for line in table.splitlines()[1:]]
    assert rows == [str(name) for name in OPTIMIZERS]
    assert note.startswith("B/param: bytes of state a parameter of LLaMA-7B")


def test_details_of_an_optimizer_name_paper_cost_constraints_and_evidence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = " ".join(run(capsys, "optimizers", "apollo_mini", "--details").split())

    assert text.startswith("apollo_mini: APOLLO-Mini")
    assert "paper: Zhu et al.: APOLLO: SGD-like Memory, AdamW-level Performance, arXiv:2412.05270" in text
    assert "LLaMA-7B, bf16, as published: 0.157 bytes of state a parameter" in text
    assert "constraints: takes whole matrices: no sharded parameters" in text
    assert "Hugging Face Trainer: apollo_adamw" in text
    assert "LLaMA-60M, rank 1: perplexity 31.93 beside 34.06 of AdamW, ratio 0.937" in text


def test_text_narrows_the_list_without_regard_to_case(capsys: pytest.CaptureFixture[str]) -> None:
    table, _ = run(capsys, "optimizers", "FRUG").split("\n\n")
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["frugal"]


def test_json_is_the_api_s_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert ModelList.model_validate_json(run(capsys, "models", "--json")).items == tuple(
        load_models().values()
    )
    assert GpuList.model_validate_json(run(capsys, "gpus", "--json")).items == tuple(load_gpus().values())
    listed = OptimizerList.model_validate_json(run(capsys, "optimizers", "--json")).items
    assert [entry.name for entry in listed] == [str(name) for name in OPTIMIZERS]


def test_json_of_an_empty_list_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(run(capsys, "models", "no such text", "--json")) == {"items": []}
