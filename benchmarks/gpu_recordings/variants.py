"""Training steps with other losses, selective checkpointing, 4-bit base weights and Qwen2, through the libraries people use for them.

fused_linear: liger_kernel's patch of the model. chunked: torchtune's chunked cross-entropy as a plain loop. every_<k>, ops:
torch's selective checkpointing with the rules of transformers and torchtitan. qlora: bitsandbytes' Linear4bit (NF4, nested
statistics) under peft.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import steps
import torch
import torch.nn.functional as F
from recorder import DEVICE, Run
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import AutoModelForCausalLM

steps.MODELS |= {
    "tiny-qwen": {"L": 3, "h": 512, "i": 1376, "a": 8, "kv": 2, "V": 32000, "type": "qwen2"},
}
LINEAR = "all-linear"


def specs() -> Iterator[dict[str, Any]]:
    """Every case; `record.BASE` holds what is not named."""
    for p in ("bf16", "bf16_mixed", "fp32"):
        yield {"model": "tiny-qwen", "precision": p}
        yield {"model": "tiny-qwen", "precision": p, "lora": 8}
        for loss in ("fused_linear", "chunked"):
            yield {"precision": p, "loss": loss}
            yield {"precision": p, "loss": loss, "b": 1, "s": 500}
            yield {"precision": p, "loss": loss, "b": 3, "s": 1000, "checkpointing": "non_reentrant"}
        for policy in ("every_2", "ops"):
            yield {"precision": p, "policy": policy, "layers": 5}
            yield {"precision": p, "policy": policy, "layers": 4, "b": 1, "s": 500}
        yield {"precision": p, "qlora": 8, "b": 2, "s": 1000}
        yield {"precision": p, "qlora": 8, "b": 2, "s": 1000, "targets": LINEAR, "policy": "every_1"}
    for policy in ("every_2", "ops"):
        yield {"policy": policy, "layers": 5, "loss": "fused_linear", "lora": 8}
    yield {"loss": "fused_linear", "model": "tiny-d128", "b": 3, "s": 1777}
    yield {"loss": "fused_linear", "keep_outputs": True}
    yield {"loss": "chunked", "keep_outputs": True}
    yield {"loss": "fused_linear", "lora": 8}
    yield {"loss": "chunked", "lora": 8, "checkpointing": "non_reentrant"}
    yield {"qlora": 8, "b": 2, "s": 256}
    yield {"qlora": 8, "b": 2, "s": 1000, "lora_dropout": 0.1}
    yield {"qlora": 8, "b": 2, "s": 1000, "model": "tiny-qwen"}
    yield {"model": "tiny-qwen", "checkpointing": "non_reentrant", "policy": "ops"}


def train(spec: dict[str, Any]) -> Any:
    """A case function: `steps.train` with this module's way to build the model."""

    def run_case(run: Run) -> None:
        plain, steps.build = steps.build, functools.partial(build, steps.build)
        try:
            steps.train({**spec, **({"lora": spec["qlora"]} if "qlora" in spec else {})})(run)
        finally:
            steps.build = plain

    return run_case


def build(plain: Any, spec: dict[str, Any]) -> nn.Module:
    """The model of `steps`, changed as the spec says."""
    model = quantized(spec) if "qlora" in spec else plain(spec)
    if spec.get("policy"):
        checkpoint(model, spec["policy"], adapter="lora" in spec)
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    if spec.get("loss") == "fused_linear":
        import liger_kernel.transformers as liger

        patch = {"llama": liger.apply_liger_kernel_to_llama, "qwen2": liger.apply_liger_kernel_to_qwen2}[
            inner.config.model_type
        ]
        patch(
            rope=False,
            cross_entropy=False,
            fused_linear_cross_entropy=True,
            rms_norm=False,
            swiglu=False,
            model=inner,
        )
    elif spec.get("loss") == "chunked":
        head = inner.lm_head.forward
        inner.lm_head.forward = lambda hidden: [head(part) for part in hidden.tensor_split(8, dim=1)]
        inner.loss_function = chunked
    return model


def chunked(logits: list[torch.Tensor], labels: torch.Tensor, **_: Any) -> torch.Tensor:
    """Cross-entropy of one chunk of logits after the other."""
    labels = F.pad(labels, (0, 1), value=-100)[..., 1:].contiguous()
    total_elements = (labels != -100).sum()
    targets = [part.reshape(-1) for part in labels.tensor_split(len(logits), dim=1)]
    logits = [part.reshape(-1, part.size(-1)) for part in logits]
    total = 0.0
    for part, target in zip(logits, targets, strict=True):
        total += F.cross_entropy(part.float(), target, ignore_index=-100, reduction="sum")
    return total / total_elements


SAVED = (
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_attention_math.default,
)


def contexts() -> Any:
    """torchtitan's op-level rule: attention and every second product are kept."""
    count: Counter[bool] = Counter()

    def policy(ctx: Any, func: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        if func == torch.ops.aten.mm.default:
            count[ctx.is_recompute] += 1
        kept = func in SAVED or (func == torch.ops.aten.mm.default and count[ctx.is_recompute] % 2 == 1)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def checkpoint(model: Any, policy: str, *, adapter: bool) -> None:
    """Checkpoint layers 0, k, 2 k, ... or all of them but for some operations."""
    if adapter:
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(
        gradient_checkpointing_kwargs={
            "use_reentrant": False,
            **({"context_fn": contexts} if policy == "ops" else {}),
        }
    )
    period = 1 if policy == "ops" else int(policy[6:])
    for name, module in model.named_modules():
        parent, _, last = name.rpartition(".")
        if parent.endswith("layers"):
            module.gradient_checkpointing = int(last) % period == 0


def quantized(spec: dict[str, Any]) -> nn.Module:
    """A model with 4-bit linear layers and adapters, as transformers, bitsandbytes and peft make it."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    half = torch.float32 if spec["precision"] == "fp32" else torch.bfloat16
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(steps.config(spec), dtype=half)
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name != "lm_head":
            parent, _, last = name.rpartition(".")
            layer = bnb.nn.Linear4bit(
                module.in_features, module.out_features, module.bias is not None,
                compute_dtype=half, compress_statistics=True, quant_type="nf4", device="meta",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(
                module.weight.data,
                requires_grad=False,
                compress_statistics=True,
                quant_type="nf4",
                module=layer,
            )._quantize(DEVICE)
            layer.bias = module.bias
            setattr(model.get_submodule(parent), last, layer)
    model.is_loaded_in_4bit = True
    if spec["precision"] == "bf16_mixed":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    cfg = LoraConfig(
        r=spec["qlora"], lora_alpha=16, lora_dropout=spec.get("lora_dropout", 0.0), bias="none", task_type="CAUSAL_LM",
        target_modules=spec.get("targets", ["q_proj", "k_proj", "v_proj", "o_proj"]),
    )  # fmt: skip
    model = get_peft_model(model, cfg)
    model.train()
    return model
