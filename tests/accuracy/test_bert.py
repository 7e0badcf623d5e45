"""BERT-large under the Trainer of January 2022: rows of a published page, and the optimizers that ran there."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from benchmarks.accuracy.bert import STACK, Rule, estimate_trainer_row, of_trainer
from benchmarks.accuracy.trainer_optimizers import TrainerAdafactor, TrainerAdamW
from whatfits.estimator.catalog.published import PublishedRow, load_published
from whatfits.estimator.memory.optimizers import OptimizerProgram, ParameterTensor, StepPhase
from whatfits.estimator.memory.optimizers.program import ParameterRole
from whatfits.profiler.trace.optimizer_step import trace_optimizer_step

SHAPES = ((64, 96), (300, 64), (96,), (64,))


def row_of(number: int) -> PublishedRow:
    """Source: huggingface/transformers@0f9f5cee1d, docs/source/en/performance.mdx."""
    return load_published()[f"hf-bertlarge-{number}"]


@pytest.mark.parametrize(("number", "printed_mib"), [(1, 8681), (8, 5363)], ids=["fp32", "fp16_8bit"])
def test_the_devices_total_is_the_published_one(number: int, printed_mib: int) -> None:
    """Gradient accumulation in fp32, `GPU memory occupied: 8681 MB`; with checkpointing, fp16 and 8-bit Adam, 5363 MB."""
    found = estimate_trainer_row(row_of(number))

    assert found.device == pytest.approx(printed_mib << 20, rel=0.002)


def test_todays_softmax_misses_one_tensor_of_scores_a_layer() -> None:
    row = row_of(1)
    scores = 16 * 512 * 512 * 4

    kept = estimate_trainer_row(row).allocated
    todays = estimate_trainer_row(row, STACK - {Rule.SOFTMAX_INPUT}).allocated

    assert kept - todays == 24 * scores


def test_all_nine_rows_are_the_trainers() -> None:
    assert [r.id for r in load_published().values() if of_trainer(r)] == [
        f"hf-bertlarge-{number}" for number in range(9)
    ]


class AdamW415(torch.optim.Optimizer):
    """The statements of `transformers.AdamW.step` that allocate. Source: transformers 4.15, optimization.py."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure here
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg_sq"] = torch.zeros_like(p)
            exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
            exp_avg.mul_(0.9).add_(p.grad, alpha=0.1)
            exp_avg_sq.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            denom = exp_avg_sq.sqrt().add_(1e-8)
            p.addcdiv_(exp_avg, denom, value=-1e-3)


def parameters() -> list[nn.Parameter]:
    found = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    for parameter in found:
        parameter.grad = torch.empty_like(parameter)
    return found


def adafactor() -> torch.optim.Optimizer:
    """As the Trainer makes it."""
    make: Any = transformers.Adafactor
    made: torch.optim.Optimizer = make(parameters(), lr=1e-3, scale_parameter=False, relative_step=False)
    return made


@pytest.mark.parametrize(
    ("make", "program"),
    [(lambda: AdamW415(parameters()), TrainerAdamW()), (adafactor, TrainerAdafactor())],
    ids=["adamw", "adafactor"],
)
def test_optimizers_allocate_what_their_code_does(
    make: Callable[[], torch.optim.Optimizer], program: OptimizerProgram
) -> None:
    optimizer = make()
    tensors = [
        ParameterTensor(name=str(number), shape=shape, role=ParameterRole.vector)
        for number, shape in enumerate(SHAPES)
    ]

    for phase in (StepPhase.first, StepPhase.steady):
        traced = [(e.kind, e.nbytes) for e in trace_optimizer_step(optimizer)]
        assert [(e.kind, e.nbytes) for e in program.events(tensors, phase)] == traced


def test_weights_are_updated_before_biases() -> None:
    order = TrainerAdamW().in_order(
        [ParameterTensor(name=n, shape=s, role=ParameterRole.vector) for n, s in (("b", (2,)), ("w", (2, 2)))]
    )

    assert [p.name for p in order] == ["w", "b"]
