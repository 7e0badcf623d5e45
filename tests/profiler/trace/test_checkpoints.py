"""Checkpointing policies: what is computed again, that gradients stay the same, and what an H100 allocated."""

from collections import Counter
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
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import AdapterOptions, StepOptions, checkpointing_period
from whatfits.profiler.trace.training_step import trace_micro_batch

SMALL = {"L": 5, "b": 2, "s": 64, "h": 128, "i": 320, "a": 4, "k": 2, "d": 32, "V": 512, "r": 4}
PRODUCTS_OF_A_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("precision", "policy", "spec", "changes"),
    [
        ("bf16", "every_2", {"layers": 5}, {}),
        ("fp32", "every_2", {"layers": 4, "b": 1, "s": 500}, {}),
        ("bf16_mixed", "every_2", {"layers": 5}, {}),
        ("bf16", "ops", {"layers": 5}, {}),
        ("fp32", "ops", {"layers": 4, "b": 1, "s": 500}, {}),
        ("bf16_mixed", "ops", {"layers": 5}, {}),
        (
            "bf16",
            "ops",
            {"layers": 5, "loss": "fused_linear", "lora": 8},
            {"loss": "fused_linear", "adapter": AdapterOptions()},
        ),
        (
            "bf16",
            "ops",
            {"model": "tiny-qwen", "checkpointing": "non_reentrant"},
            {"architecture": "Qwen2ForCausalLM"},
        ),
    ],
)
def test_a_step_allocates_what_an_h100_recorded(
    precision: str, policy: str, spec: dict[str, Any], changes: dict[str, Any]
) -> None:
    options = StepOptions(checkpointing=policy, precision=precision, kernels=KERNELS, **changes)
    dims = {**TINY, "L": spec.get("layers", 3), "b": spec.get("b", 2), "s": spec.get("s", 256)}
    dims["k"] = 2 if spec.get("model") == "tiny-qwen" else 8

    assert_same_events(
        traced_events(dims, options),
        recorded_events("variants", precision=precision, policy=policy, **spec),
        ordered_frees=precision != "bf16_mixed",
    )


def recomputed(checkpointing: str) -> Counter[tuple[int, str]]:
    """How often each layer's matrix products, and its attention, run again."""
    trace = trace_micro_batch(SMALL, StepOptions(checkpointing=checkpointing))
    found: Counter[tuple[int, str]] = Counter()
    for token in trace.parts["backward"]:
        if isinstance(token, Alloc) and token.recompute and token.op in ("mm", "cat"):
            layer, _, module = token.module.partition("layers.")[2].partition(".")
            found[int(layer), module.rpartition(".")[2] if token.op == "mm" else "rotary"] += 1
    return found


def test_nothing_is_computed_again_without_checkpointing() -> None:
    assert not recomputed("none")


@pytest.mark.parametrize(
    ("checkpointing", "layers"), [("full", {0, 1, 2, 3, 4}), ("every_2", {0, 2, 4}), ("every_3", {0, 3})]
)
def test_whole_layers_are_computed_again_up_to_what_backward_needs(
    checkpointing: str, layers: set[int]
) -> None:
    """The last product's output is not needed, so recompute stops before it."""
    again = recomputed(checkpointing)

    products = {key: count for key, count in again.items() if key[1] != "rotary"}
    assert products == {(layer, name): 1 for layer in layers for name in PRODUCTS_OF_A_LAYER[:-1]}


def test_every_second_product_is_kept() -> None:
    again = recomputed("ops")

    products = {key: count for key, count in again.items() if key[1] != "rotary"}
    assert products == {(layer, name): 1 for layer in range(5) for name in PRODUCTS_OF_A_LAYER[1::2]}
    assert {key[0] for key in again if key[1] == "rotary"} == set(range(5))


def gradients(checkpointing: str, adapter: AdapterOptions | None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    options = StepOptions(precision="fp32", checkpointing=checkpointing, adapter=adapter)
    model: Any = build_model(SMALL, options, "cpu")
    with (
        torch.no_grad()
    ):  # peft starts with one factor at zero, which would leave the other without a gradient
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    torch.manual_seed(1)
    input_ids = torch.randint(SMALL["V"], (2, 64))
    model(input_ids=input_ids, labels=input_ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("adapter", [None, AdapterOptions()], ids=["all", "adapter"])
@pytest.mark.parametrize("checkpointing", ["full", "every_2", "ops"])
def test_gradients_do_not_depend_on_what_is_computed_again(
    checkpointing: str, adapter: AdapterOptions | None
) -> None:
    found, expected = gradients(checkpointing, adapter), gradients("none", adapter)

    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize(
    ("name", "period"), [("none", 1), ("full", 1), ("ops", 1), ("every_2", 2), ("every_12", 12)]
)
def test_period_of_a_policy(name: str, period: int) -> None:
    assert checkpointing_period(name) == period


@pytest.mark.parametrize("name", ["every_1", "every_0", "every_", "half", "selective", "layer:2"])
def test_an_unknown_policy_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown checkpointing"):
        build_model(SMALL, StepOptions(checkpointing=name))
