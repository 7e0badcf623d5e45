"""Trace micro-batches of the default training loop around an unchanged Hugging Face causal language model.

The loop traced here, with the conventions that change bytes: token ids and labels arrive as two int64 tensors, with a
mask or positions if the options say so; forward and loss run under autocast in the mixed precisions, backward outside
of it, in fp16 from a scaled loss; only the loss is kept from the model's output; and the step ends by dropping the loss
and the inputs. The optimizer and the unscaling of gradients are not part of it.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from whatfits.profiler.trace.autocast import CUDA, autocast_on_meta
from whatfits.profiler.trace.config_inputs import micro_batch_of
from whatfits.profiler.trace.configs import layers_of
from whatfits.profiler.trace.cuda_differences import (
    cuda_semantics,
    device_steps,
    in_place_on_device,
)
from whatfits.profiler.trace.events import Alloc, Free, Mark, Token, Trace
from whatfits.profiler.trace.masks import batch_inputs, scalar_answers
from whatfits.profiler.trace.model import build_model, causal_model, head_name, traced_parameters
from whatfits.profiler.trace.modules import ModuleTracker
from whatfits.profiler.trace.options import Dims, StepOptions
from whatfits.profiler.trace.own_module import own_inputs
from whatfits.profiler.trace.storages import StorageRecorder

_DEFAULTS = StepOptions()
AUTOCAST_DTYPES = {"bf16_mixed": torch.bfloat16, "fp16_mixed": torch.float16}
"""What precisions under autocast compute in."""
ReadyHook = Callable[[str, nn.Parameter], None]


class MicroBatchTracer:
    """Runs micro-batches of one model under a recorder and keeps what ties tokens to parameters and modules."""

    def __init__(
        self,
        model: nn.Module,
        options: StepOptions = _DEFAULTS,
        *,
        on_ready: ReadyHook | None = None,
    ) -> None:
        self.model = model
        self.options = options
        self.names = {id(p): n for n, p in model.named_parameters()}
        self.tracker = ModuleTracker(model)
        self.layer_names = {name for name, _ in layers_of(model)}
        self.on_ready = on_ready
        self.device = next(model.parameters()).device
        self.recorder = self.make_recorder()
        self.scaler = self._make_scaler()
        for tensor in [*model.parameters(), *model.buffers()]:
            self.recorder.ignore(tensor)

    def make_recorder(self) -> StorageRecorder:
        """A recorder that sees what the device sees."""
        return StorageRecorder(
            device_type=self.device.type,
            current_module=self.tracker.current,
            temporaries=device_steps,
            in_place=in_place_on_device,
            scalar_answer=scalar_answers(self.options.mask),
        )

    @contextmanager
    def semantics(self) -> Iterator[None]:
        """Make the tensors' device choose what the traced device chooses."""
        with cuda_semantics(self.options), autocast_on_meta(CUDA):
            yield

    def micro_batch(
        self,
        batch: int,
        seq_len: int,
        *,
        target_len: int | None = None,
        before_end: Callable[[], None] | None = None,
    ) -> dict[str, list[Token]]:
        """Trace one forward, backward and end of step; returns the tokens by part.

        `before_end` runs, and is traced, while the loss and the inputs are still there: the optimizer's place.
        """
        parts: dict[str, list[Token]] = {}
        with self._instrumented(), self.recorder:
            parts["forward"] = self.recorder.start_part()
            self.recorder.phase = "forward"
            given = self._inputs({"b": batch, "s": seq_len, "t": target_len or seq_len})
            with self._autocast():
                outputs = self.model(**given)
                loss = outputs.loss if hasattr(outputs, "loss") else outputs
                if not self.options.keep_outputs:
                    del outputs
            parts["backward"] = self.recorder.start_part()
            self.recorder.phase = "backward"
            (self.scaler.scale(loss) if self.scaler else loss).backward()
            parts["end"] = self.recorder.start_part()
            self.recorder.phase = "end"
            if before_end is not None:
                before_end()
            if self.options.keep_outputs:
                del outputs
            del loss, given
            self.recorder.start_part()
        return parts

    def _inputs(self, dims: Dims) -> dict[str, Any]:
        if self.options.config:
            return micro_batch_of(self.model, dims, self.device)
        if self.options.factory:
            return own_inputs(self.options.factory, self.model, dims, self.device)
        return dict(batch_inputs(self.options.mask, dims["b"], dims["s"], self.device))

    def _make_scaler(self) -> torch.amp.GradScaler | None:
        """The scaler of fp16 training; its scale and its counter, two scalars, exist before the micro-batch."""
        if self.options.precision != "fp16_mixed":
            return None
        scaler = torch.amp.GradScaler(self.device.type)
        scaler.scale(torch.empty((), device=self.device))
        for state in (scaler._scale, scaler._growth_tracker):
            assert state is not None
            self.recorder.ignore(state)
        return scaler

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = AUTOCAST_DTYPES.get(self.options.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    @contextmanager
    def _instrumented(self) -> Iterator[None]:
        handles = [
            p.register_post_accumulate_grad_hook(self._gradient_ready)
            for p in self.model.parameters()
            if p.requires_grad
        ]
        causal: Any = causal_model(self.model)
        original: Any = getattr(causal, "loss_function", None)

        def loss_function(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.recorder.phase = "loss"
            self.tracker.enter("loss")
            try:
                result: torch.Tensor = original(*args, **kwargs)
            finally:
                self.tracker.leave()
            return result

        if original is not None:
            causal.loss_function = loss_function
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            with self.semantics(), self.tracker.follow(self._enter, self._exit):
                yield
        finally:
            if was_enabled:
                gc.enable()
            if original is not None:
                causal.loss_function = original
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> None:
        if name in self.layer_names:
            self.recorder.mark("layer_enter", name)

    def _exit(self, name: str) -> None:
        if name in self.layer_names:
            self.recorder.mark("layer_exit", name)

    def _gradient_ready(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        block = self.recorder.block_of(parameter.grad)
        name = self.names[id(parameter)]
        self.recorder.mark("gradient_ready", name, -1 if block is None else block)
        if self.on_ready is not None:
            self.on_ready(name, parameter)


def trace_micro_batch(dims: Dims, options: StepOptions) -> Trace:
    """Trace the first micro-batch of a step, gradients kept, and decide each allocation's category."""
    model = build_model(dims, options)
    tracer = MicroBatchTracer(model, options)
    tracer.recorder.keep_empty, tracer.recorder.keep_possible = True, bool(options.config or options.factory)
    parts = tracer.micro_batch(dims["b"], dims["s"], target_len=dims.get("t"))
    assign_categories(parts, head_name(model))
    return Trace(
        parts=parts,
        parameters=traced_parameters(model),
        buffers=tuple((n, b.untyped_storage().nbytes()) for n, b in model.named_buffers()),
    )


def assign_categories(parts: dict[str, list[Token]], head: str) -> None:
    """Name what each allocation is for.

    gradients: the storage behind a parameter's gradient; logits_and_loss: the head, the loss and their backward;
    activations: made by forward (or by recompute) and alive when that forward ends; temporaries: the rest.
    """
    gradients = {
        t.block for p in parts.values() for t in p if isinstance(t, Mark) and t.kind == "gradient_ready"
    }
    freed_in = {t.block: part for part, tokens in parts.items() for t in tokens if isinstance(t, Free)}
    for part, tokens in parts.items():
        for token in tokens:
            if not isinstance(token, Alloc):
                continue
            if token.block in gradients:
                token.category = "gradients"
            elif token.module in (head, "loss"):
                token.category = "logits_and_loss"
            elif token.recompute or (part == "forward" and freed_in.get(token.block) != "forward"):
                token.category = "activations"
            else:
                token.category = "temporaries"
