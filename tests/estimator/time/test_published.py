"""The step-time model against published runs that no constant was fitted to.

published.json holds the rows with their citations. The rows the GEMM rates were fitted to are other sizes of the
llm-foundry tables; its 13B rows were left out of the fit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.specs import LinkSpec, ModelSpec
from whatfits.estimator.time import (
    OptimizerWork,
    StepTimes,
    estimate_step_time,
    gpu_priors,
    model_flops_utilization,
    optimizer_step_seconds,
)

DATA: dict[str, Any] = json.loads(
    Path(__file__).with_name("published.json").read_text(encoding="utf-8")
)  # JSON
ROWS = {row["id"]: row for row in DATA["step_times"]}
# Bytes of AdamW per parameter: fp32 states and master weights in one fused pass; eager foreach in pure bf16.
FUSED_FP32_BYTES, FOREACH_BF16_BYTES = 30, 42


def model_of(name: str) -> ModelSpec:
    facts = {key: value for key, value in DATA["models"][name].items() if key != "note"}
    return ModelSpec(
        name=name,
        architecture="LlamaForCausalLM",
        head_dim=facts["hidden_size"] // facts["num_attention_heads"],
        tie_embeddings=False,
        max_position_embeddings=8192,
        source="public model config",
        **facts,
    )


def predict(row: dict[str, Any]) -> StepTimes:
    model = model_of(row["model"])
    shard = model.num_parameters / row["num_gpus"]
    return estimate_step_time(
        model,
        find_gpu(row["gpu"]),
        micro_batch_size=row["micro_batch_size"],
        seq_len=row["seq_len"],
        grad_accum_steps=row["grad_accum_steps"],
        checkpointing=row["recomputed_fraction"],
        placement=row["placement"],
        num_gpus=row["num_gpus"],
        gpus_per_node=8,
        optimizer=OptimizerWork(bytes_moved=FUSED_FP32_BYTES * shard, kernels=100),
        compiled=row["compiled"],
        links=LinkSpec(inter_node_bytes_per_second=row["inter_node_bytes_per_second"]),
    )


def relative_error(row: dict[str, Any]) -> float:
    return float(predict(row).tokens_per_second_per_gpu) / float(row["tokens_per_second_per_gpu"]) - 1


@pytest.mark.parametrize("row_id", ROWS)
def test_published_throughput_lies_inside_the_interval(row_id: str) -> None:
    row = ROWS[row_id]
    times = predict(row)
    tokens = row["micro_batch_size"] * row["seq_len"] * row["grad_accum_steps"]
    published = tokens / row["tokens_per_second_per_gpu"]
    print(
        f"{row_id}: {float(times.median):.3f} s ({float(times.low):.3f} to {float(times.high):.3f}), {published:.3f} s"
    )
    assert float(times.low) <= published <= float(times.high)


def test_errors_of_the_median_are_no_larger_than_documented() -> None:
    """On the GPUs whose rates are fitted: 10 % on average, nine of ten runs within 18 %.

    The llm-foundry rows at 8192 tokens and more ran first-generation flash attention, slower than what is modelled.
    """
    errors = np.array([abs(relative_error(row)) for name, row in ROWS.items() if "mi300x" not in name])
    assert errors.mean() < 0.10
    assert np.quantile(errors, 0.9) < 0.18


def test_another_vendor_is_within_its_documented_error() -> None:
    """Published models miss AMD by 6 to 33 %."""
    assert abs(relative_error(ROWS["torchao-8b-8xmi300x-compiled"])) < 0.33


def optimizer_work(row: dict[str, Any]) -> OptimizerWork:
    model = model_of(row["model"])
    hidden, inner = model.dims["h"], model.dims["i"]
    matrices = [(hidden, hidden)] * 4 + [(hidden, inner)] * 3
    projected = row["optimizer"] == "galore"
    return OptimizerWork(
        bytes_moved=FOREACH_BF16_BYTES * model.num_parameters,
        svd_work=projected * model.num_layers * float(sum(m * n * min(m, n) for m, n in matrices)),
        refresh_interval=200,
        kernels=100,
    )


@pytest.mark.parametrize("row", DATA["optimizer_steps"], ids=lambda row: row["id"])
def test_optimizer_steps_are_within_a_quarter_of_the_published_seconds(row: dict[str, Any]) -> None:
    predicted = optimizer_step_seconds(optimizer_work(row), gpu_priors(find_gpu("a100-80gb-sxm")))
    print(f"{row['id']}: {predicted:.3f} s, published {row['optimizer_step_seconds']} s")
    assert predicted == pytest.approx(row["optimizer_step_seconds"], rel=0.25)


@pytest.mark.parametrize("row", DATA["mfu"], ids=lambda row: row["id"])
def test_mfu_is_the_one_the_source_prints(row: dict[str, Any]) -> None:
    model = model_of("mpt-13b").model_copy(
        update={
            "num_layers": row["num_layers"],
            "num_attention_heads": row["hidden_size"] // 128,
            "head_dim": 128,
            "num_parameters": row["num_parameters"],
        }
    )
    mfu = model_flops_utilization(
        model,
        seq_len=row["seq_len"],
        tokens_per_second_per_gpu=row["tokens_per_second_per_gpu"],
        peak_flops_per_second=row["peak_flops_per_second"],
    )
    assert float(mfu) == pytest.approx(row["mfu"], rel=2e-3)
