"""Losses against the standard one in real runs, and against what an H100 allocated with the libraries they come from."""

from typing import Any

import pytest
import torch

from tests.profiler.trace.recorded_steps import (
    KERNELS,
    TINY,
    assert_same_events,
    recorded_events,
    traced_events,
)
from whatfits.profiler.trace.events import Alloc
from whatfits.profiler.trace.losses import NUM_CHUNKS, fused_chunk_rows
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import AdapterOptions, StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch

SMALL = {"L": 2, "h": 48, "i": 96, "a": 4, "k": 2, "d": 12, "V": 331, "b": 3, "s": 41, "r": 4}


@pytest.mark.parametrize(
    ("loss", "precision", "spec", "changes"),
    [
        ("fused_linear", "bf16", {}, {}),
        ("fused_linear", "bf16", {"keep_outputs": True}, {"keep_outputs": True}),
        ("fused_linear", "bf16_mixed", {"b": 1, "s": 500}, {}),
        ("fused_linear", "fp32", {}, {}),
        ("fused_linear", "bf16", {"lora": 8}, {"adapter": AdapterOptions()}),
        ("chunked", "bf16", {"b": 1, "s": 500}, {}),
        ("chunked", "bf16_mixed", {}, {}),
        ("chunked", "fp32", {}, {}),
        (
            "chunked",
            "bf16",
            {"lora": 8, "checkpointing": "non_reentrant"},
            {"adapter": AdapterOptions(), "checkpointing": "full"},
        ),
    ],
)
def test_a_step_allocates_what_an_h100_recorded(
    loss: str, precision: str, spec: dict[str, Any], changes: dict[str, Any]
) -> None:
    options = StepOptions(loss=loss, precision=precision, kernels=KERNELS, **changes)
    dims = {**TINY, "b": spec.get("b", 2), "s": spec.get("s", 256)}

    assert_same_events(
        traced_events(dims, options), recorded_events("variants", loss=loss, precision=precision, **spec)
    )


def run(loss: str, *, tied: bool, ignored: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a real step."""
    torch.manual_seed(0)
    model: Any = build_model(SMALL, StepOptions(precision="fp32", loss=loss, tie_embeddings=tied), "cpu")
    torch.manual_seed(1)
    input_ids = torch.randint(SMALL["V"], (SMALL["b"], SMALL["s"]))
    labels = input_ids.clone()
    labels[:, :ignored] = -100
    value: torch.Tensor = model(input_ids=input_ids, labels=labels).loss
    (2 * value).backward()
    return value, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("ignored", [0, 7])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loss", ["chunked", "fused_linear"])
def test_loss_and_gradients_are_those_of_the_standard_loss(loss: str, tied: bool, ignored: int) -> None:
    value, gradients = run(loss, tied=tied, ignored=ignored)
    expected_value, expected = run("standard", tied=tied, ignored=ignored)

    assert torch.allclose(value, expected_value)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-6), name
        assert gradient.abs().max() > 1e-4, name


def test_the_published_example_of_chunk_sizes() -> None:
    """16,384 tokens, a vocabulary of 32,000 and 4,096 hidden: chunks of 2,048, says Liger's source."""
    assert fused_chunk_rows(4 * 4096, 4096, 32000) == 2048


@pytest.mark.parametrize(
    ("num_tokens", "hidden_size", "vocab_size"),
    [(1, 8, 8), (100, 64, 64), (123, 48, 331), (5331, 1024, 32000)],
)
def test_chunks_are_powers_of_two_and_no_larger_than_needed(
    num_tokens: int, hidden_size: int, vocab_size: int
) -> None:
    rows = fused_chunk_rows(num_tokens, hidden_size, vocab_size)

    assert rows == num_tokens or rows.bit_count() == 1
    assert rows * vocab_size <= 2 * (num_tokens + vocab_size / hidden_size) * (hidden_size + vocab_size)
    assert rows * -(-vocab_size // hidden_size) >= num_tokens


def test_fused_logits_stand_in_one_buffer_and_nothing_is_kept_for_backward() -> None:
    dims = {**SMALL, "h": 64, "d": 16, "V": 4096, "s": 128}
    trace = trace_micro_batch(dims, StepOptions(loss="fused_linear"))

    made = [t.nbytes for t in trace.parts["forward"] if isinstance(t, Alloc) and t.module == "loss"]
    rows = fused_chunk_rows(3 * 128, 64, 4096)
    assert made.count(2 * rows * 4096) == 1
    assert max(made) == 2 * 64 * 4096  # the weight's gradient


def test_chunked_logits_are_cast_one_chunk_at_a_time() -> None:
    dims = {**SMALL, "s": 8 * NUM_CHUNKS}
    trace = trace_micro_batch(dims, StepOptions(loss="chunked"))

    forward = [t for t in trace.parts["forward"] if isinstance(t, Alloc) and t.module == "loss"]
    casts = [t.nbytes for t in forward if t.op == "_to_copy"]
    assert casts == [4 * 3 * 8 * 331] * NUM_CHUNKS


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss 'focal'; known: standard, chunked, fused_linear"):
        build_model(SMALL, StepOptions(loss="focal"))
