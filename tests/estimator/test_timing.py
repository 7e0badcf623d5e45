"""The bridge from an optimizer on a rank to its work and time."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.estimator.memory.steps import ALL_OPTIMIZERS, SMALL, make_step
from tests.factories import make_hardware, make_model, make_training
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import Dtype, OptimizerImplementation, OptimizerName, OptimizerSpec
from whatfits.estimator.time import StepTimes
from whatfits.estimator.timing import arithmetic_of, optimizer_work, step_times, time_at


def times(step: StepMemory, batches: list[int]) -> StepTimes:
    return step_times(
        step.optimizer,
        make_training(),
        step.gpu,
        make_hardware(num_gpus=8),
        micro_batch_size=np.array(batches),
        seq_len=512,
        grad_accum_steps=1,
        checkpointing=False,
    )


@pytest.mark.parametrize("optimizer", ALL_OPTIMIZERS, ids=lambda o: f"{o.name}-{o.implementation}")
def test_work_is_the_programs_own(optimizer: OptimizerSpec) -> None:
    step = make_step(optimizer=optimizer)
    expected = step.optimizer.program.flops_and_bytes(step.tensors.local)

    work = optimizer_work(step.optimizer, optimizer)

    assert (work.bytes_moved, work.gemm_flops, work.svd_work) == (
        expected.bytes_moved, expected.flops, expected.svd_work
    )  # fmt: skip
    assert work.refresh_interval >= 1


def test_lists_of_tensors_take_fewer_kernels_than_a_loop() -> None:
    specs = [
        OptimizerSpec(name=OptimizerName.ADAMW, implementation=implementation)
        for implementation in (OptimizerImplementation.FOREACH, OptimizerImplementation.FOR_LOOP)
    ]

    foreach, loop = (optimizer_work(make_step(optimizer=spec).optimizer, spec).kernels for spec in specs)
    assert foreach < loop


def test_paged_states_cross_the_host_link_once_a_step() -> None:
    """Two moments of a byte each, of embedding and head: the only tensors of 100,000 elements and more."""
    paged, plain = (
        OptimizerSpec(name=name) for name in (OptimizerName.PAGED_ADAMW_8BIT, OptimizerName.ADAMW_8BIT)
    )
    model = make_model(**{**SMALL, "vocab_size": 2000})
    steps = [make_step(model, optimizer=spec) for spec in (paged, plain)]

    work, plain_work = (
        optimizer_work(step.optimizer, spec) for step, spec in zip(steps, (paged, plain), strict=True)
    )

    assert work.managed_bytes == 2 * 2 * 2000 * 96
    assert replace(work, managed_bytes=0) == plain_work


def test_one_entry_of_many_is_the_answer_of_one() -> None:
    step = make_step(placement=Placement.DDP)
    together = times(step, [1, 2, 8])

    for index, batch in enumerate((1, 2, 8)):
        one = time_at(times(step, [batch]), 0)
        assert time_at(together, index) == one
        assert one.step_time_seconds.low <= one.step_time_seconds.median <= one.step_time_seconds.high
        assert one.tokens_per_second == pytest.approx(8 * one.tokens_per_second_per_gpu)


def test_undefined_utilisation_is_left_out() -> None:
    found = times(make_step(), [4])

    assert time_at(replace(found, mfu=np.full_like(found.mfu, math.nan)), 0).mfu is None


@pytest.mark.parametrize(
    ("training", "placement", "dtype", "travelling"),
    [
        ({}, Placement.DDP, Dtype.BF16, 2.0),
        ({}, Placement.FSDP, Dtype.BF16, 2.0),
        ({"precision": "bf16_master"}, Placement.DDP, Dtype.BF16, 2.0),
        ({"precision": "bf16_mixed", "framework": "fsdp2"}, Placement.FSDP, Dtype.BF16, 8 / 3),
        ({"precision": "fp16_mixed", "framework": "fsdp2"}, Placement.FSDP, Dtype.FP16, 8 / 3),
    ],
)
def test_precision_decides_the_dtype_of_products_and_of_what_travels(
    training: dict[str, Any], placement: Placement, dtype: Dtype, travelling: float
) -> None:
    step = make_step(placement=placement, **training)

    found = arithmetic_of(make_training(**training), step.optimizer)

    assert (found.dtype, found.travelling_bytes, found.frozen) == (dtype, travelling, False)
