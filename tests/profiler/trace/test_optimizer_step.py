"""The tracer sees every storage a step allocates and frees, and tells old ones from new ones."""

import pytest
import torch

from whatfits.profiler.trace.optimizer_step import (
    StepEvent,
    peak_of_step,
    state_tensors,
    trace_optimizer_step,
)


class Scratch(torch.optim.Optimizer):
    """Allocates two temporaries and replaces one state tensor in each step."""

    def __init__(self, parameter: torch.nn.Parameter) -> None:
        super().__init__([parameter], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # returns no loss
        parameter = self.param_groups[0]["params"][0]
        with torch.no_grad():
            doubled = parameter * 2
            view = doubled[1:]
            total = doubled.sum()
            del doubled
            view.add_(1)  # keeps the storage
            del view
            self.state[parameter]["total"] = total


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_allocations_and_frees_in_order(device: str) -> None:
    optimizer = Scratch(torch.nn.Parameter(torch.zeros(10, device=device)))

    first, second = trace_optimizer_step(optimizer), trace_optimizer_step(optimizer)

    common = [StepEvent("alloc", 0, 40), StepEvent("alloc", 1, 4), StepEvent("free", 0, 40)]
    assert first == common
    assert [event._replace(block=max(event.block, -1)) for event in second] == [
        *common,
        StepEvent("free", -1, 4),
    ]
    assert peak_of_step(first) == 44


def test_state_inside_a_helper_object_is_found() -> None:
    class Projector:
        def __init__(self) -> None:
            self.matrix = torch.zeros(3)

    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {"projector": Projector(), "norm": torch.zeros(1), "step": 3}

    assert sorted(tensor.numel() for tensor in state_tensors(optimizer)) == [1, 3]
