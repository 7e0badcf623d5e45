"""Training steps of Hugging Face causal language models under the recorder: every precision, kernel and optimizer.

The loop: token ids and labels as two int64 tensors, forward, backward, optimizer step, gradients set to None, then the
loss and the inputs dropped. Only the loss is kept from the output.
"""

import contextlib
import gc
import math
from typing import Any

import torch
import transformers
from recorder import DEVICE, ON_GPU, Run, Stopwatch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"L": 3, "h": 512, "i": 1376, "a": 8, "kv": 8, "V": 32000},
    "tiny-gqa": {"L": 3, "h": 512, "i": 1376, "a": 8, "kv": 2, "V": 32000},
    "tiny-tied": {"L": 3, "h": 512, "i": 1376, "a": 8, "kv": 8, "V": 32000, "tied": True},
    "tiny-d128": {"L": 3, "h": 1024, "i": 2752, "a": 8, "kv": 4, "V": 32000},
    "llama-60m": {"L": 8, "h": 512, "i": 1376, "a": 8, "kv": 8, "V": 32000},
    "llama-130m": {"L": 12, "h": 768, "i": 2048, "a": 12, "kv": 12, "V": 32000},
    "llama-350m": {"L": 24, "h": 1024, "i": 2736, "a": 16, "kv": 16, "V": 32000},
    "llama-1b": {"L": 24, "h": 2048, "i": 5461, "a": 32, "kv": 32, "V": 32000},
    "llama-7b": {"L": 32, "h": 4096, "i": 11008, "a": 32, "kv": 32, "V": 32000},
    "llama-3.2-1b": {"L": 16, "h": 2048, "i": 8192, "a": 32, "kv": 8, "V": 128256, "d": 64, "tied": True},
    "llama-3.2-3b": {"L": 28, "h": 3072, "i": 8192, "a": 24, "kv": 8, "V": 128256, "d": 128, "tied": True},
    "llama-3.1-8b": {"L": 32, "h": 4096, "i": 14336, "a": 32, "kv": 8, "V": 128256, "d": 128},
    "qwen2.5-1.5b": {
        "L": 28,
        "h": 1536,
        "i": 8960,
        "a": 12,
        "kv": 2,
        "V": 151936,
        "tied": True,
        "type": "qwen2",
    },
}


def config(spec: dict[str, Any]) -> Any:
    """The model's configuration."""
    m = MODELS[spec["model"]]
    kind = Qwen2Config if m.get("type") == "qwen2" else LlamaConfig
    extra = {} if "d" not in m else {"head_dim": m["d"]}
    if kind is LlamaConfig:
        extra["attention_dropout"] = spec.get("attention_dropout", 0.0)
    made = kind(
        num_hidden_layers=spec.get("layers", m["L"]),
        hidden_size=m["h"],
        intermediate_size=m["i"],
        num_attention_heads=m["a"],
        num_key_value_heads=m["kv"],
        vocab_size=m["V"],
        max_position_embeddings=max(4096, spec["s"]),
        tie_word_embeddings=m.get("tied", False),
        use_cache=False,
        **extra,
    )
    made._attn_implementation = spec.get("attention", "sdpa")
    return made


def build(spec: dict[str, Any]) -> nn.Module:
    """The model with random weights on the device, placed tensor by tensor in the order of `Module.to`."""
    precision = spec["precision"]
    dtype = torch.bfloat16 if precision in ("bf16", "bf16_master") else torch.float32
    if spec.get("lora"):
        dtype = torch.float32 if precision == "fp32" or spec.get("base") == "fp32" else torch.bfloat16
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(spec), dtype=dtype)
    rotary = {n: b for n, b in model.named_buffers()}
    if spec.get("lora"):
        from peft import LoraConfig, get_peft_model

        targets = spec.get("targets", ["q_proj", "k_proj", "v_proj", "o_proj"])
        cfg = LoraConfig(
            r=spec["lora"],
            lora_alpha=16,
            lora_dropout=spec.get("lora_dropout", 0.0),
            target_modules=targets,
            use_dora=spec.get("dora", False),
            bias="none",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(
            model, cfg, **({} if "cast" not in spec else {"autocast_adapter_dtype": spec["cast"]})
        )
    if spec.get("checkpointing"):
        model.config.use_cache = False
        kwargs = {"use_reentrant": spec["checkpointing"] == "reentrant"}
        if spec.get("lora"):
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    model.train()
    model._apply(lambda t: torch.empty_like(t, device=DEVICE))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1.0)
        for name, b in model.named_buffers():
            if "inv_freq" in name:
                d = 2 * b.numel()
                b.copy_(1.0 / 10000.0 ** (torch.arange(0, d, 2, dtype=torch.float32, device=DEVICE) / d))
            del b
    del rotary
    if MODELS[spec["model"]].get("tied"):  # `_apply` made two tensors of one
        inner = model.get_base_model() if spec.get("lora") else model
        inner.lm_head.weight = inner.model.embed_tokens.weight
    if spec.get("tied_check") and hasattr(model, "tie_weights"):
        model.tie_weights()
    return model


def make_optimizer(name: str, model: nn.Module, spec: dict[str, Any]) -> Any:
    """One optimizer over the trainable parameters."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [
        p
        for n, p in model.named_parameters()
        if p.requires_grad and p.ndim == 2 and "embed" not in n and "lm_head" not in n
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in parameters if id(p) not in chosen]
    lr, O = 1e-4, torch.optim
    rank = spec.get("rank", 128)
    if name == "none":
        return None
    if name.startswith("sgd"):
        flags = (
            {"foreach": True}
            if "foreach" in name
            else {"fused": True}
            if "fused" in name
            else {"foreach": False}
            if "for_loop" in name
            else {}
        )
        return O.SGD(parameters, lr=lr, momentum=0.9 if "sgdm" in name else 0.0, **flags)
    if name in ("adamw_for_loop", "adamw_foreach", "adamw_fused"):
        flags = {
            "adamw_for_loop": {"foreach": False, "fused": False},
            "adamw_foreach": {"foreach": True},
            "adamw_fused": {"fused": True},
        }[name]
        return O.AdamW(parameters, lr=lr, **flags)
    if name.startswith("torch:"):
        cls = getattr(O, name[6:])
        return cls(matrices if name == "torch:Muon" else parameters, lr=lr)
    if name.startswith("bnb:"):
        import bitsandbytes as bnb

        return getattr(bnb.optim, name[4:])(parameters, lr=lr)
    if name.startswith("ao:"):
        import torchao.optim as ao

        return getattr(ao, name[3:])(parameters, lr=lr)
    if name.startswith("galore:"):
        import galore_torch as g

        groups = [
            {"params": others},
            {"params": matrices, "rank": rank, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"},
        ]
        flags = {"relative_step": False, "scale_parameter": False} if "factor" in name else {}
        return getattr(g, name[7:])(groups, lr=lr, **flags)
    if name.startswith("po:"):
        import pytorch_optimizer as po

        cls = getattr(po, name[3:])
        if name[3:] in ("GaLore", "APOLLO", "Fira"):
            groups = [
                {"params": others},
                {
                    "params": matrices,
                    "rank": rank,
                    "update_proj_gap": 2,
                    "scale": 0.25,
                    "projection_type": "std",
                },
            ]
            return cls(groups, lr=lr)
        if name[3:] == "AdamMini":
            return cls(
                model, lr=lr, num_embeds=model.config.hidden_size, num_heads=model.config.num_attention_heads
            )
        if name[3:] in ("LOMO", "AdaLOMO"):
            return cls(model, lr=lr)
        if name[3:] == "Muon":
            return cls([{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}], lr=lr)
        return cls(parameters, lr=lr)
    if name == "schedulefree":
        import schedulefree

        made = schedulefree.AdamWScheduleFree(parameters, lr=lr)
        made.train()
        return made
    raise ValueError(name)


_KERNELS = {
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
}


def _inputs(spec: dict[str, Any], vocab: int) -> dict[str, Any]:
    b, s = spec["b"], spec["s"]
    given: dict[str, Any] = {
        "input_ids": torch.randint(vocab, (b, s), device=DEVICE),
        "labels": torch.randint(vocab, (b, s), device=DEVICE),
    }
    mask = spec.get("mask")
    if mask == "ones":
        given["attention_mask"] = torch.ones((b, s), dtype=torch.int64, device=DEVICE)
    elif mask == "padded":
        attention_mask = torch.ones((b, s), dtype=torch.int64, device=DEVICE)
        attention_mask[0, s // 2 :] = 0
        given["attention_mask"] = attention_mask
    elif mask == "packed":
        positions = torch.arange(s, device=DEVICE).remainder(s // 2)
        given["position_ids"] = positions.expand(b, s).contiguous()
    return given


def train(spec: dict[str, Any]) -> Any:
    """A case function for some steps of training."""

    def run_case(run: Run) -> None:
        torch.manual_seed(0)
        run.mark("setup", -1)
        model = build(spec)
        vocab = MODELS[spec["model"]]["V"]
        optimizer = make_optimizer(spec.get("optimizer", "adamw_foreach"), model, spec)
        run.notes["num_params"] = sum(p.numel() for p in model.parameters())
        gc.collect()
        gc.disable()
        try:
            _steps(spec, run, model, optimizer, vocab)
        finally:
            gc.enable()
            for p in model.parameters():  # hooks hold the parameters in a cycle
                p._post_accumulate_grad_hooks = None
        run.mark("teardown", spec.get("steps", 3))

    return run_case


def _steps(spec: dict[str, Any], run: Run, model: nn.Module, optimizer: Any, vocab: int) -> None:
    precision = spec["precision"]
    autocast = {"bf16_mixed": torch.bfloat16, "fp16_mixed": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler(DEVICE) if precision == "fp16_mixed" else None
    master = _Master(model) if precision == "bf16_master" else None
    if master is not None:
        optimizer = torch.optim.AdamW(master.copies, lr=1e-4, foreach=True)
    kernel = spec.get("kernel")
    accum = spec.get("accum", 1)
    empty_cache = spec.get("empty_cache", False)
    losses = []
    original = model.loss_function if hasattr(model, "loss_function") else None
    layerwise = spec.get("layerwise", False)
    if layerwise:
        _layerwise(spec, model)
        optimizer = None
    if original is not None and not spec.get("lora"):

        def marked(*args: Any, **kwargs: Any) -> Any:
            run.mark("loss", step)
            return original(*args, **kwargs)

        model.loss_function = marked
    for step in range(spec.get("steps", 3)):
        if empty_cache and ON_GPU:
            torch.cuda.empty_cache()
        watch = Stopwatch()
        for micro in range(accum):
            run.mark("forward", step)
            watch.point("forward")
            given = _inputs(spec, vocab)
            context = torch.autocast(DEVICE, dtype=autocast) if autocast else contextlib.nullcontext()
            chosen = sdpa_kernel(_KERNELS[kernel]) if kernel else contextlib.nullcontext()
            with chosen:
                if spec.get("backward_in_autocast"):
                    with context:
                        loss = model(**given).loss
                        run.mark("backward", step)
                        watch.point("backward")
                        loss.backward()
                else:
                    with context:
                        if spec.get("keep_outputs"):
                            outputs = model(**given)
                            loss = outputs.loss
                        else:
                            loss = model(**given).loss
                    run.mark("backward", step)
                    watch.point("backward")
                    (scaler.scale(loss) if scaler else loss).backward()
            if micro < accum - 1:
                del loss, given
        run.mark("optimizer", step)
        watch.point("optimizer")
        losses.append(float(loss.detach()))
        if spec.get("clip"):
            if scaler:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(
                model.parameters(),
                1.0,
                **({} if spec["clip"] == "default" else {"foreach": spec["clip"] == "foreach"}),
            )
            run.mark("update", step)
            watch.point("update")
        if master is not None:
            master.step(optimizer, model)
        elif scaler:
            scaler.step(optimizer)
            scaler.update()
        elif optimizer is not None and spec.get("optimizer", "").split(":")[-1] not in ("LOMO", "AdaLOMO"):
            optimizer.step()
        if optimizer is not None and hasattr(optimizer, "zero_grad"):
            try:
                optimizer.zero_grad(set_to_none=not spec.get("zero_to_zero", False))
            except TypeError:
                optimizer.zero_grad()
        elif optimizer is None and not layerwise:
            model.zero_grad()
        watch.point("end")
        if spec.get("keep_outputs"):
            del outputs
        del loss, given
        run.times.append(watch.read())
    run.notes["losses"] = [round(x, 4) if math.isfinite(x) else None for x in losses]
    run.notes["transformers"] = transformers.__version__
    if optimizer is not None and hasattr(optimizer, "state"):
        run.notes["state_bytes"] = _state_bytes(optimizer)


def _state_bytes(optimizer: Any) -> int:
    seen: dict[int, int] = {}

    def visit(x: Any) -> None:
        if isinstance(x, torch.Tensor):
            if hasattr(x, "__tensor_flatten__"):
                for name in x.__tensor_flatten__()[0]:
                    visit(getattr(x, name))
            elif x.device.type == DEVICE:
                seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, dict):
            for y in x.values():
                visit(y)
        elif isinstance(x, list | tuple):
            for y in x:
                visit(y)
        elif hasattr(x, "__dict__") and not isinstance(x, type):
            for y in vars(x).values():
                if isinstance(y, torch.Tensor | list | tuple | dict):
                    visit(y)

    visit(dict(optimizer.state))
    return sum(seen.values())


class _Master:
    """fp32 master weights of a bf16 model: gradients are cast, the update runs in fp32 and is copied back."""

    def __init__(self, model: nn.Module) -> None:
        self.copies = [nn.Parameter(p.detach().float()) for p in model.parameters()]

    def step(self, optimizer: Any, model: nn.Module) -> None:
        for copy, p in zip(self.copies, model.parameters(), strict=True):
            copy.grad = p.grad.float()
            p.grad = None
        optimizer.step()
        with torch.no_grad():
            for copy, p in zip(self.copies, model.parameters(), strict=True):
                p.copy_(copy)
        optimizer.zero_grad()


def _layerwise(spec: dict[str, Any], model: nn.Module) -> None:
    flags = {"adamw_foreach": {"foreach": True}, "adamw_fused": {"fused": True}}[spec["optimizer"]]
    made = {p: torch.optim.AdamW([p], lr=1e-4, **flags) for p in model.parameters()}

    def update(p: torch.Tensor) -> None:
        made[p].step()
        made[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(update)
