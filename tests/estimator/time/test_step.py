"""Properties every step-time estimate has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whatfits.estimator.catalog import find_gpu, find_model, load_gpus
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import Dtype, ModelSpec
from whatfits.estimator.time import (
    Arithmetic,
    OptimizerWork,
    StepTimes,
    estimate_step_time,
    gpu_priors,
    load_priors,
    model_flops_utilization,
)
from whatfits.estimator.time.communication import all_reduce_seconds, build_link, gather_seconds
from whatfits.estimator.time.compute import HF_EAGER, memory_bound_bytes
from whatfits.estimator.time.step import parameter_bytes

WORK = OptimizerWork(bytes_moved=2e11, kernels=500)
BATCHES = np.array([1, 2, 3, 4, 6, 8, 16, 32])
PLACEMENTS = ["single", "ddp", "fsdp"]


def make_model(*, num_layers: int = 32, hidden_size: int = 4096, intermediate_size: int = 11008) -> ModelSpec:
    """LLaMA-7B, or a variation of it."""
    layer = 4 * hidden_size**2 + 3 * hidden_size * intermediate_size + 2 * hidden_size
    return ModelSpec(
        name="made-up",
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_attention_heads=hidden_size // 128,
        num_key_value_heads=hidden_size // 128,
        head_dim=128,
        vocab_size=32000,
        tie_embeddings=False,
        max_position_embeddings=2048,
        num_parameters=num_layers * layer + 2 * 32000 * hidden_size + hidden_size,
        source="LlamaConfig defaults",
    )


def times(
    *,
    gpu: str = "a100-80gb-sxm",
    layers: int = 32,
    batch: object = BATCHES,
    seq_len: object = 1024,
    accum: object = 1,
    checkpointing: object = False,
    placement: str = "fsdp",
    num_gpus: int = 8,
) -> StepTimes:
    return estimate_step_time(
        make_model(num_layers=layers),
        find_gpu(gpu),
        micro_batch_size=np.asarray(batch),
        seq_len=np.asarray(seq_len),
        grad_accum_steps=np.asarray(accum),
        checkpointing=np.asarray(checkpointing),
        placement=placement,  # type: ignore[arg-type]
        num_gpus=num_gpus,
        gpus_per_node=8,
        optimizer=WORK,
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_step_never_gets_shorter_with_more_work(placement: str) -> None:
    assert np.all(np.diff(times(placement=placement).median) >= 0)
    assert np.all(np.diff(times(placement=placement, seq_len=2 ** np.arange(7, 16), batch=1).median) >= 0)
    assert np.all(np.diff(times(placement=placement, accum=np.arange(1, 20), batch=4).median) > 0)
    deeper = [times(placement=placement, layers=layers).median for layers in (2, 4, 8, 32, 80)]
    assert np.all(np.diff(deeper, axis=0) > 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_checkpointing_is_slower(placement: str) -> None:
    assert np.all(times(placement=placement, checkpointing=True).compute > times(placement=placement).compute)
    assert np.all(times(placement=placement, checkpointing=True).median > times(placement=placement).median)


@pytest.mark.parametrize("placement", ["ddp", "fsdp"])
def test_more_gpus_train_more_tokens_a_second(placement: str) -> None:
    rates = [times(placement=placement, num_gpus=n).tokens_per_second for n in (1, 2, 4, 8, 16, 32, 64)]
    assert np.all(np.diff(rates, axis=0) > 0)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_gpu_communicates_nothing(placement: str) -> None:
    alone = times(placement=placement, num_gpus=1)
    assert np.all(alone.exposed_communication == 0)
    np.testing.assert_array_equal(alone.median, times(placement="single", num_gpus=8).median)


@given(
    batch=st.integers(1, 64),
    seq_len=st.integers(1, 32768),
    accum=st.integers(1, 64),
    checkpointing=st.booleans(),
    placement=st.sampled_from(PLACEMENTS),
    num_gpus=st.sampled_from([1, 2, 7, 8, 16, 128]),
    gpu=st.sampled_from(
        ["a100-80gb-sxm", "h100-80gb-sxm", "b200-180gb-sxm", "l4", "rtx-4090", "mi300x", "gaudi-2"]
    ),
)
def test_the_parts_sum_to_the_median_inside_its_interval(
    batch: int, seq_len: int, accum: int, checkpointing: bool, placement: str, num_gpus: int, gpu: str
) -> None:
    got = times(
        batch=batch,
        seq_len=seq_len,
        accum=accum,
        checkpointing=checkpointing,
        placement=placement,
        num_gpus=num_gpus,
        gpu=gpu,
    )
    parts = (got.compute, got.exposed_communication, got.pipeline_bubble, got.optimizer_step)
    assert all(np.isfinite(part) and part >= 0 for part in parts)
    assert float(sum(parts)) == pytest.approx(float(got.median), rel=1e-12)
    assert 0 < float(got.low) < float(got.median) < float(got.high)
    assert float(got.low) * float(got.high) == pytest.approx(float(got.median) ** 2)
    assert 0 < float(got.mfu) < 1


def test_arrays_give_what_single_values_give() -> None:
    grid = times(batch=BATCHES[:, None], checkpointing=np.array([False, True]))
    assert grid.median.shape == grid.mfu.shape == grid.low.shape == (8, 2)
    for row, batch in enumerate(BATCHES):
        for column, checkpointing in enumerate((False, True)):
            assert times(batch=batch, checkpointing=checkpointing).median == grid.median[row, column]


def test_other_gpus_have_wider_intervals() -> None:
    ratios = [
        float((t := times(gpu=gpu, batch=8)).high / t.low)
        for gpu in ("a100-80gb-sxm", "b200-180gb-sxm", "mi300x")
    ]
    assert ratios == sorted(ratios)
    assert ratios[0] > 1.5


def test_small_batches_wait_for_the_host_and_are_less_certain() -> None:
    small, large = times(batch=1, seq_len=64), times(batch=16, seq_len=2048)
    assert float(small.compute) == pytest.approx(32 * 2e-3)
    assert float(small.high / small.low) > float(large.high / large.low)


@pytest.mark.parametrize("gpu", load_gpus())
def test_every_catalog_gpu_with_bf16_is_modelled_and_the_others_refused_by_name(gpu: str) -> None:
    if find_gpu(gpu).supports_bf16:
        assert np.all(times(gpu=gpu).median > 0)
    else:
        with pytest.raises(UnsupportedError, match=gpu):
            times(gpu=gpu)


def test_memory_bound_bytes_of_a_7b_layer_match_the_operation_count() -> None:
    """151 h forward and 327 h backward per token and layer, counted over the operations of LLaMA-7B."""
    dims = make_model().dims
    once = float(memory_bound_bytes(dims, tokens=1, recompute=0))
    layer = (once - sum(HF_EAGER.vocabulary) * 32000) / 32
    assert layer == pytest.approx((151 + 327) * 4096, rel=0.01)
    again = float(memory_bound_bytes(dims, tokens=1, recompute=1)) - once
    assert again == pytest.approx(32 * 151 * 4096, rel=0.01)


def test_a_7b_model_has_6_74_billion_parameters_of_which_a_layer_has_202_million() -> None:
    sizes = parameter_bytes(make_model())
    assert sizes.total == 2 * 6738415616
    assert sizes.layer == 2 * 202383360


def test_large_all_reduces_reach_the_published_bus_bandwidth() -> None:
    """235 GB/s on 8 A100, 367 on 8 H200 and 682 on 8 B200 at 16 GiB."""
    nbytes = 2.0**34
    for gpu, published in (("a100-80gb-sxm", 235e9), ("h200-141gb-sxm", 367e9), ("b200-180gb-sxm", 682e9)):
        link = build_link(find_gpu(gpu), num_gpus=8, gpus_per_node=8)
        assert 2 * 7 / 8 * nbytes / all_reduce_seconds(nbytes, link) == pytest.approx(published, rel=0.08)


def test_gpus_beyond_a_bridge_meet_over_pcie() -> None:
    gpu = find_gpu("a100-80gb-pcie")
    pair, four = (build_link(gpu, num_gpus=n, gpus_per_node=8) for n in (2, 4))
    assert pair.bytes_per_second > 10 * four.bytes_per_second
    assert gather_seconds(1e9, pair) < gather_seconds(1e9, four)


def test_mfu_without_a_peak_is_not_a_number() -> None:
    mfu = model_flops_utilization(
        make_model(), seq_len=2048, tokens_per_second_per_gpu=1.0, peak_flops_per_second=None
    )
    assert np.isnan(mfu)


def test_every_constant_has_a_source() -> None:
    assert all(prior.source and prior.value > 0 for prior in load_priors().values())


def test_single_precision_without_tensor_cores_is_many_times_slower() -> None:
    """67 against 989 TFLOPS on an H100, and twice the bytes."""
    half, single = (
        estimate_step_time(
            find_model("llama-7b"), find_gpu("h100-80gb-sxm"), micro_batch_size=8, seq_len=2048, grad_accum_steps=1, checkpointing=False,
            placement="single", num_gpus=1, gpus_per_node=8, optimizer=OptimizerWork(bytes_moved=0.0), arithmetic=Arithmetic(dtype=dtype),
        )
        for dtype in (Dtype.BF16, Dtype.FP32)
    )  # fmt: skip

    assert 5 < float(single.median / half.median) < 989 / 67


def test_frozen_weights_save_one_of_three_products_and_have_no_mfu() -> None:
    whole, frozen = (
        estimate_step_time(
            find_model("llama-7b"), find_gpu("h100-80gb-sxm"), micro_batch_size=8, seq_len=512, grad_accum_steps=1, checkpointing=False,
            placement="single", num_gpus=1, gpus_per_node=8, optimizer=OptimizerWork(bytes_moved=0.0), arithmetic=Arithmetic(frozen=flag),
        )
        for flag in (False, True)
    )  # fmt: skip

    assert 2 / 3 < float(frozen.median / whole.median) < 0.8
    assert np.isnan(frozen.mfu)


def test_a_gpu_without_the_dtype_is_refused() -> None:
    assert gpu_priors(find_gpu("t4"), Dtype.FP16).peak_flops_per_second > 6e13
    with pytest.raises(UnsupportedError, match="bf16 peak"):
        gpu_priors(find_gpu("t4"))
