"""The training loop that is measured: plain PyTorch around an unchanged Hugging Face causal language model.

Its conventions are those of the traced loop: token ids and labels as two int64 tensors, no attention mask, only the
loss kept from the output, gradients set to None after the step, then the loss and the inputs dropped.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from whatfits.profiler.measure.cases import NUM_STEPS, Case
from whatfits.profiler.measure.probes import Probe
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import Dims, StepOptions

__all__ = ["train"]

_LEARNING_RATE = 1e-4


def train(case: Case, dims: Dims, *, tie_embeddings: bool, device: str, probe: Probe) -> list[float]:
    """Run the case's steps under a probe; returns the loss of each step."""
    torch.manual_seed(0)
    options = StepOptions(
        tie_embeddings=tie_embeddings, checkpointing="full" if case.checkpointing else "none"
    )
    model = build_model(dims, options, device="cpu")
    gc.collect()
    gc.disable()  # a collection would free tensors at moments of its own
    try:
        with probe.recording(device):
            probe.enter("setup", step=-1)
            _place(model, device)
            return _steps(case, model, dims["V"], device, probe)
    finally:
        gc.enable()


def _place(model: nn.Module, device: str) -> None:
    """Copy parameters and buffers to the device in the order of `Module.to`, also when that is where they are."""
    model._apply(lambda tensor: tensor.to(device, copy=True))


def _steps(case: Case, model: nn.Module, vocab_size: int, device: str, probe: Probe) -> list[float]:
    optimizer = _install_optimizer(case, model, probe)
    shape = (case.micro_batch_size, case.seq_len)
    losses: list[float] = []
    with _loss_phase(model, probe):
        for step in range(NUM_STEPS):
            for micro_batch in range(case.grad_accum_steps):
                probe.enter("forward", step=step)
                input_ids = torch.randint(vocab_size, shape, device=device)
                labels = torch.randint(vocab_size, shape, device=device)
                loss = model(input_ids=input_ids, labels=labels).loss
                probe.enter("backward", step=step)
                loss.backward()
                if micro_batch < case.grad_accum_steps - 1:
                    del loss, input_ids, labels
            probe.enter("optimizer_step", step=step)
            losses.append(float(loss.item()))
            if optimizer is not None:
                with probe.in_optimizer():
                    optimizer.step()
                optimizer.zero_grad()
            del loss, input_ids, labels
    probe.enter("end", step=NUM_STEPS)
    return losses


def build_optimizer(case: Case, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The case's optimizer over some parameters."""
    flags: dict[str, Any] = {
        "for_loop": {"foreach": False, "fused": False},
        "foreach": {"foreach": True},
        "fused": {"fused": True},
    }[case.implementation]
    make: Callable[..., torch.optim.Optimizer] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[
        case.optimizer
    ]
    return make(parameters, lr=_LEARNING_RATE, **flags)


def _install_optimizer(case: Case, model: nn.Module, probe: Probe) -> torch.optim.Optimizer | None:
    """One optimizer for all parameters, or with a layer-wise update one per parameter, run by its gradient's hook."""
    if not case.layerwise:
        return build_optimizer(case, list(model.parameters()))
    optimizers = {parameter: build_optimizer(case, [parameter]) for parameter in model.parameters()}

    def update(parameter: torch.Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        optimizer = optimizers[parameter]
        with probe.in_optimizer():
            optimizer.step()
        optimizer.zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(update)
    return None


@contextmanager
def _loss_phase(model: nn.Module, probe: Probe) -> Iterator[None]:
    """Tell the probe when the model's forward comes to its loss function."""
    original: Callable[..., torch.Tensor] = getattr(model, "loss_function")  # noqa: B009  (nn.Module types it a tensor)

    def loss_function(*args: Any, **kwargs: Any) -> torch.Tensor:  # the model's own signature
        probe.enter("loss")
        return original(*args, **kwargs)

    model.loss_function = loss_function  # type: ignore[assignment]
    try:
        yield
    finally:
        model.loss_function = original  # type: ignore[assignment]
