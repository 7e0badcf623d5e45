"""The training loop that is measured: plain PyTorch around an unchanged Hugging Face model.

Its conventions are those of the traced loop: the inputs of a micro-batch are made where it begins, only the loss is
kept from the output unless the recipe says otherwise, forward runs under autocast in the mixed precisions, gradients
are set to None after the step, then the loss and the inputs are dropped.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from whatfits.estimator.specs import KeepOutputs, Precision
from whatfits.optim_impls import LayerwiseOptimizer
from whatfits.profiler.measure.inputs import make_inputs
from whatfits.profiler.measure.master_weights import MasterWeights
from whatfits.profiler.measure.optimizers import MAX_GRAD_NORM, build_recipe_optimizer
from whatfits.profiler.measure.probes import Probe
from whatfits.profiler.measure.ranks import without_reduction
from whatfits.profiler.measure.recipe import Recipe
from whatfits.profiler.trace.model import build_model, causal_model
from whatfits.profiler.trace.training_step import AUTOCAST_DTYPES

__all__ = ["TrainingRun", "build_real_model", "place", "train", "undisturbed"]

_LOSS_SCALE = 2.0**8
"""A first loss scale under which no step is skipped, as one with too large a scale would be."""


def build_real_model(recipe: Recipe, device: str) -> nn.Module:
    """The model with random weights drawn from the recipe's seed, made on a device."""
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.dims, recipe.options, device=device)
    if device != "cpu":
        torch.cuda.empty_cache()  # what drawing the weights took is no part of training
    return model


def place(model: nn.Module, device: str) -> None:
    """Copy parameters and buffers to the device in the order of `Module.to`, also when that is where they are."""
    model._apply(lambda tensor: tensor.to(device, copy=True))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without garbage collections, which free tensors at moments of their own."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class TrainingRun:
    """A model and its optimizer, trained one step at a time; the probe is told where the loop stands."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        device: str,
        probe: Probe,
        *,
        interval: int | None = None,
        called: nn.Module | None = None,
    ) -> None:
        """Make the optimizer.

        Args:
            recipe: what is trained.
            model: on its device.
            device: of the inputs.
            probe: is told.
            interval: steps between refreshes, the recipe's own where left out.
            called: what stands round the model and is called in its place, where anything does.
        """
        training = recipe.training
        self.recipe, self.model, self.device, self.probe = recipe, model, device, probe
        self.called = called or model
        self.masters = MasterWeights(model) if training.precision is Precision.BF16_MASTER else None
        trained = model if self.masters is None else self.masters.named
        self.optimizer = build_recipe_optimizer(recipe, trained, interval=interval)
        self.scaler = self._make_scaler() if training.precision is Precision.FP16_MIXED else None

    def steps(self, numbers: range, done: Callable[[int], object] = lambda _number: None) -> None:
        """Run some steps; `done` hears the number of each."""
        with self._instrumented():
            for number in numbers:
                self._step(number)
                done(number)

    def close(self) -> None:
        """Drop the optimizer and what it holds, and the gradients."""
        if isinstance(self.optimizer, LayerwiseOptimizer):
            self.optimizer.remove_hooks()
        self.model.zero_grad(set_to_none=True)
        del self.optimizer, self.masters, self.scaler

    def _step(self, number: int) -> None:
        training, probe = self.recipe.training, self.probe
        loop = training.loop
        if loop.empty_cache_each_step and self.device != "cpu":
            torch.cuda.empty_cache()
        for _ in range(training.grad_accum_steps - 1):
            with without_reduction(self.called):
                self._micro_batch(number)
        held = self._micro_batch(number)
        probe.enter("optimizer_step", step=number)
        self._update()
        del held
        probe.enter("rest", step=number)

    def _micro_batch(self, number: int) -> tuple[Any, ...]:
        """Forward and backward; returns what the loop holds until the end of the step: a tuple drops its last first."""
        keep = self.recipe.training.loop.keep_outputs
        self.probe.enter("forward", step=number)
        given = make_inputs(self.recipe, self.model, torch.device(self.device))
        with self._autocast():
            outputs = self.called(**given)
            loss = outputs.loss
            if keep is KeepOutputs.NO:
                outputs = None
        self.probe.enter("backward", step=number)
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if keep is KeepOutputs.BACKWARD:
            outputs = None
        return given, loss, outputs

    def _update(self) -> None:
        """Unscale, clip, copy to master precision, step, drop the gradients: in the order in which that is modelled."""
        training = self.recipe.training
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if training.gradient_clipping:
            nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        if self.masters is not None:
            self.masters.take_gradients()
        if self.scaler is not None:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()
        if self.masters is not None:
            self.masters.write_back()
        set_to_none = training.loop.set_grads_to_none
        self.model.zero_grad(set_to_none=set_to_none)

    def _make_scaler(self) -> torch.amp.GradScaler:
        """The scaler with the two numbers it keeps, which it makes when it first scales."""
        scaler = torch.amp.GradScaler(self.device, init_scale=_LOSS_SCALE)
        self.probe.stepping(begins=True)
        scaler.scale(torch.empty((), device=self.device))
        self.probe.stepping(begins=False)
        return scaler

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_DTYPES.get(self.recipe.training.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device, dtype=dtype)

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        """Tell the probe when forward comes to the loss function, and when an optimizer's `step()` begins and ends."""
        causal: Any = causal_model(self.model)
        original: Any = getattr(causal, "loss_function", None)

        def loss_function(*args: Any, **kwargs: Any) -> torch.Tensor:  # the model's own signature
            self.probe.enter("loss")
            result: torch.Tensor = original(*args, **kwargs)
            return result

        if original is not None:
            causal.loss_function = loss_function
        hooks = [
            register_optimizer_step_pre_hook(lambda *_: self.probe.stepping(begins=True)),
            register_optimizer_step_post_hook(lambda *_: self.probe.stepping(begins=False)),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            if original is not None:
                causal.loss_function = original


def train(recipe: Recipe, device: str, probe: Probe, *, num_steps: int, interval: int | None = None) -> None:
    """Build a model on the host, move it to the device and run its first steps, all of it under a probe."""
    model = build_real_model(recipe, "cpu")
    with undisturbed(), probe.recording(device):
        probe.enter("setup", step=-1)
        place(model, device)
        run = TrainingRun(recipe, model, device, probe, interval=interval)
        run.steps(range(num_steps))
        probe.enter("end", step=num_steps)
