"""Adapters against what an H100 allocated, against peft's own count and against bitsandbytes' stored tensors."""

from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

from tests.profiler.trace.recorded_steps import (
    KERNELS,
    TINY,
    assert_same_events,
    recorded_events,
    traced_events,
)
from whatfits.profiler.trace.adapters import FrozenLinear4bit
from whatfits.profiler.trace.events import Alloc, Mark, Trace
from whatfits.profiler.trace.model import build_model, traced_parameters
from whatfits.profiler.trace.options import AdapterOptions, StepOptions
from whatfits.profiler.trace.training_step import trace_micro_batch

SMALL = {"L": 2, "b": 2, "s": 64, "h": 128, "i": 320, "a": 4, "k": 2, "d": 32, "V": 512, "r": 4}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL = ("all-linear",)


@pytest.mark.parametrize(
    ("precision", "spec", "adapter"),
    [
        ("bf16", {}, AdapterOptions()),
        ("bf16", {"cast": False}, AdapterOptions(autocast_adapter=False)),
        ("bf16", {"lora_dropout": 0.1}, AdapterOptions(dropout=0.1)),
        ("bf16", {"dora": True}, AdapterOptions(dora=True)),
        ("fp32", {"targets": "all-linear"}, AdapterOptions(targets=ALL)),
        ("fp32", {"dora": True}, AdapterOptions(dora=True)),
        ("bf16_mixed", {}, AdapterOptions(frozen="bf16")),
        ("bf16_mixed", {"base": "fp32"}, AdapterOptions(frozen="fp32")),
        ("bf16", {"checkpointing": "non_reentrant"}, AdapterOptions()),
    ],
)
def test_a_step_with_adapters_allocates_what_an_h100_recorded(
    precision: str, spec: dict[str, Any], adapter: AdapterOptions
) -> None:
    options = StepOptions(
        precision=precision,
        kernels=KERNELS,
        adapter=adapter,
        checkpointing="full" if "checkpointing" in spec else "none",
    )

    assert_same_events(
        traced_events(TINY, options), recorded_events("steps", precision=precision, lora=8, **spec)
    )


@pytest.mark.parametrize(
    ("precision", "spec", "adapter", "checkpointing"),
    [
        ("bf16", {}, AdapterOptions(quantized=True), "none"),
        ("fp32", {}, AdapterOptions(quantized=True), "none"),
        ("bf16_mixed", {}, AdapterOptions(quantized=True), "none"),
        (
            "bf16_mixed",
            {"targets": "all-linear", "policy": "every_1"},
            AdapterOptions(quantized=True, targets=ALL),
            "full",
        ),
        ("bf16", {"lora_dropout": 0.1}, AdapterOptions(quantized=True, dropout=0.1), "none"),
    ],
)
def test_the_stand_in_for_4_bit_layers_allocates_what_bitsandbytes_allocated_on_an_h100(
    precision: str, spec: dict[str, Any], adapter: AdapterOptions, checkpointing: str
) -> None:
    options = StepOptions(precision=precision, kernels=KERNELS, adapter=adapter, checkpointing=checkpointing)

    assert_same_events(
        traced_events({**TINY, "s": 1000}, options),
        recorded_events("variants", precision=precision, qlora=8, s=1000, **spec),
        ordered_frees=checkpointing == "none",
    )


@pytest.mark.parametrize(
    "adapter",
    [
        AdapterOptions(),
        AdapterOptions(dora=True),
        AdapterOptions(targets=ALL),
        AdapterOptions(quantized=True),
    ],
)
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_trainable_parameters_are_those_peft_counts(architecture: str, adapter: AdapterOptions) -> None:
    model: Any = build_model(SMALL, StepOptions(architecture=architecture, adapter=adapter))

    trained = [(shape, element) for _, shape, element, _, trains in traced_parameters(model) if trains]

    assert sum(torch.Size(shape).numel() for shape, _ in trained) == model.get_nb_trainable_parameters()[0]
    assert {element for _, element in trained} == {4}


def test_an_adapters_parameters_have_roles_and_a_layer() -> None:
    trace = trace_micro_batch(SMALL, StepOptions(adapter=AdapterOptions(dora=True)))

    roles = {name.partition("layers.0.")[2]: role for name, _, _, role, _ in trace.parameters}
    assert roles["self_attn.q_proj.lora_A.default.weight"] == "linear"
    assert roles["self_attn.q_proj.lora_magnitude_vector.default.weight"] == "vector"
    assert [role for name, _, _, role, _ in trace.parameters if name.endswith("lm_head.weight")] == ["head"]
    marks = [t.name for t in trace.parts["forward"] if isinstance(t, Mark) and t.kind == "layer_enter"]
    assert [name.rpartition("layers.")[2] for name in marks] == ["0", "1"]


def test_the_loss_of_a_wrapped_model_is_found() -> None:
    plain = trace_micro_batch(SMALL, StepOptions())
    wrapped = trace_micro_batch(SMALL, StepOptions(adapter=AdapterOptions()))

    def loss_bytes(trace: Trace) -> list[int]:
        forward = (t for t in trace.parts["forward"] if isinstance(t, Alloc))
        return [t.nbytes for t in forward if t.category == "logits_and_loss"]

    assert loss_bytes(wrapped) == loss_bytes(plain) != []


@pytest.mark.parametrize(("out_features", "in_features"), [(96, 80), (1376, 512), (512, 1376), (70, 33)])
def test_a_4_bit_layer_stores_what_bitsandbytes_stores(out_features: int, in_features: int) -> None:
    packed, state = bitsandbytes.functional.quantize_4bit(
        torch.randn(out_features, in_features), compress_statistics=True, quant_type="nf4"
    )
    theirs = [packed, state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset]

    layer = FrozenLinear4bit(nn.Linear(in_features, out_features, bias=False, device="meta"), torch.bfloat16)

    assert [(p.shape, p.dtype) for p in layer.parameters()] == [(t.shape, t.dtype) for t in theirs]
    assert not any(p.requires_grad for p in layer.parameters())


def test_what_is_not_4_bit_is_cast_to_fp32_under_a_mixed_precision_only() -> None:
    adapter = AdapterOptions(quantized=True)

    sizes = {
        precision: {
            name.rpartition("model.")[2]: element
            for name, _, element, _, _ in traced_parameters(
                build_model(SMALL, StepOptions(precision=precision, adapter=adapter))
            )
        }
        for precision in ("bf16", "bf16_mixed")
    }

    assert sizes["bf16"]["embed_tokens.weight"] == sizes["bf16"]["norm.weight"] == 2
    assert sizes["bf16_mixed"]["embed_tokens.weight"] == sizes["bf16_mixed"]["norm.weight"] == 4
    assert sizes["bf16_mixed"]["layers.0.mlp.up_proj.weight"] == 1


def test_dora_over_4_bit_weights_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="DoRA over 4-bit"):
        build_model(SMALL, StepOptions(adapter=AdapterOptions(quantized=True, dora=True)))
