"""Whole training steps against what a GPU's allocator did in them: every allocation and free, in order.

The decoder and its optimizer are written from a public description (see `decoder`); the histories were published by
people who recorded their own code for it (see tests/golden/device_steps).
"""

import gzip
import json
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.profiler.trace.decoder import AdamW, Decoder, DecoderDims, cross_entropy
from whatfits.profiler.trace.events import Alloc, Free, Phase
from whatfits.profiler.trace.memory_steps import Gpu
from whatfits.profiler.trace.record import Recording, record_events

HISTORIES = Path(__file__).parents[2] / "golden/device_steps"
MEDIUM = DecoderDims(vocab=10000, width=1024, layers=24, heads=16, hidden=4096, context=1024)
SMALL = DecoderDims(vocab=10000, width=768, layers=12, heads=12, hidden=3072, context=256)


BEFORE_HOPPER = Gpu(sms=108, threads_per_sm=2048, capability=8)
"""The histories do not name their GPU. Their workspaces of cuBLAS, 8,519,680 bytes, are those of GPUs before Hopper."""


class Event(NamedTuple):
    """Bytes of an allocation, negated for a free, and the block's number in order of appearance."""

    nbytes: int
    block: int


def recorded(name: str) -> tuple[dict[str, Any], list[Event]]:
    history = json.loads(gzip.decompress((HISTORIES / f"{name}.json.gz").read_bytes()))
    return history, [Event(*pair) for pair in zip(history["bytes"], history["blocks"], strict=True)]


def traced(recording: Recording) -> list[Event]:
    numbers: dict[int, int] = {}
    blocks = [t.block for t in recording.tokens if isinstance(t, Alloc | Free)]
    pairs = zip(recording.signed_bytes(), blocks, strict=True)
    return [Event(nbytes, numbers.setdefault(block, len(numbers))) for nbytes, block in pairs]


class Run:
    """A training run on `meta` whose steps can be recorded."""

    def __init__(self, dims: DecoderDims, size: tuple[int, int], autocast: torch.dtype | None = None) -> None:
        with torch.device("meta"):
            self.model = Decoder(dims)
            self.token_ids, self.targets = (torch.empty(size, dtype=torch.int64) for _ in range(2))
        self.optimizer = AdamW(self.model.parameters())
        self.autocast = autocast
        self.kept: dict[str, torch.Tensor] = {}

    def make_states(self) -> None:
        """What the optimizer has after a step."""
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {name: torch.empty_like(parameter) for name in ("m", "v")}

    def make_gradients(self) -> None:
        """What a backward pass leaves, with the logits and the loss of its forward pass."""
        for parameter in self.model.parameters():
            parameter.grad = torch.empty_like(parameter)
        logits = torch.empty(self.token_ids.numel(), self.model.dims.vocab, device="meta")
        self.kept = {"logits": logits, "loss": torch.empty((), device="meta")}

    def existing(self) -> Iterator[torch.Tensor]:
        """Every tensor that the next step meets."""
        yield from self.model.buffers()
        yield from (self.token_ids, self.targets)
        for parameter in self.model.parameters():
            yield parameter
            yield from (
                value for value in self.optimizer.state[parameter].values() if isinstance(value, torch.Tensor)
            )
            if parameter.grad is not None:
                yield parameter.grad
        yield from self.kept.values()

    def logits(self) -> torch.Tensor:
        """Forward."""
        flat: torch.Tensor = self.model(self.token_ids).flatten(0, 1)
        return flat

    def training_step(self, enter: Callable[[Phase], None]) -> object:
        """Forward, loss, backward, update; logits and loss are kept."""
        enter("forward")
        with torch.autocast("cuda", dtype=self.autocast, enabled=self.autocast is not None):
            logits = self.logits()
            loss = cross_entropy(logits, self.targets.flatten())
        enter("backward")
        loss.backward()
        enter("end")
        self.optimizer.step()
        return logits, loss

    def gradients(self, enter: Callable[[Phase], None]) -> None:
        """Forward, loss, backward into the gradients there are; logits and loss are kept until the next ones."""
        enter("forward")
        self.kept["logits"] = self.logits()
        self.kept["loss"] = cross_entropy(self.kept["logits"], self.targets.flatten())
        enter("backward")
        self.kept["loss"].backward()


@pytest.mark.parametrize(
    ("seq_len", "autocast"),
    [(128, None), (256, None), (512, torch.bfloat16), (1024, torch.bfloat16)],
)
def test_every_event_of_a_training_step(seq_len: int, autocast: torch.dtype | None) -> None:
    _, expected = recorded(f"wedsonlin_medium_{seq_len}")
    run = Run(MEDIUM, (4, seq_len), autocast)

    run.make_states()

    assert traced(record_events(run.training_step, existing=run.existing(), gpu=BEFORE_HOPPER)) == expected


def test_the_peak_of_forward_and_backward_with_all_gradients_kept() -> None:
    history, expected = recorded("magma27")
    run = Run(SMALL, (32, 256))

    run.make_gradients()
    events = traced(record_events(run.gradients, existing=run.existing(), gpu=BEFORE_HOPPER))

    over_start = history["peak_requested_bytes"] - history["initial_requested_bytes"]
    assert max(accumulate(event.nbytes for event in events)) == over_start == 12_550_078_464
    assert events == expected
