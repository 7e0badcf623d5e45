"""Our own recordings on an H100 as rows: which of them are compared, the question each is, and what was measured."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from whatfits.profiler.measure.recordings import RecordedCase, read_recording

__all__ = [
    "GPU",
    "PARTS",
    "Measured",
    "RecordedRow",
    "load_caps",
    "load_recordings",
    "measured",
    "recorded_reason",
    "run_of_recording",
]

FOLDER = Path(__file__).parents[1] / "gpu_recordings" / "h100-80gb_torch-2.11_2026-11-24"
GPU = "h100-80gb-sxm"
PARTS: dict[str, tuple[str, dict[str, str]]] = {
    "published": (
        "the published vramcalc runs in a loop of our own",
        {"torch": "2.11", "transformers": "4.57"},
    ),
    "speed": ("LLaMA 60M to 7B", {"torch": "2.11", "transformers": "5.17"}),
    "older": ("small models, older transformers", {"torch": "2.11", "transformers": "4.57"}),
    "tied": ("small models, tied embeddings and optimizers", {"torch": "2.11", "transformers": "5.17"}),
    "steps": ("small models, every option", {"torch": "2.11", "transformers": "5.17"}),
}
"""Parts of the recordings with what they are and the libraries they ran with."""
TIED_BY_MISTAKE_UNTIED = ("steps", "older")
"""Parts whose tied configurations were built with two tensors (gpu_recordings/README.md)."""
PHASES = {
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "optimizer": "optimizer_step",
    "update": "optimizer_step",
}
"""The recorder's phases in the product's words."""
_OPTIMIZERS = {
    "sgd_for_loop": ("sgd", "for_loop"), "sgd_foreach": ("sgd", "foreach"), "sgdm_foreach": ("sgdm", "foreach"), "sgdm_fused": ("sgdm", "fused"),
    "adamw_for_loop": ("adamw", "for_loop"), "adamw_foreach": ("adamw", "foreach"), "adamw_fused": ("adamw", "fused"),
    "bnb:AdamW8bit": ("adamw_8bit", None), "bnb:PagedAdamW8bit": ("paged_adamw_8bit", None), "bnb:PagedAdamW": ("paged_adamw", None),
    "ao:AdamW4bit": ("adamw_4bit", None), "ao:AdamWFp8": ("adamw_fp8", None), "schedulefree": ("schedule_free_adamw", None),
    "torch:Adafactor": ("adafactor", None), "po:Lion": ("lion", None), "po:Adan": ("adan", None), "po:Lamb": ("lamb", None),
    "po:CAME": ("came", None), "po:SOAP": ("soap", None), "po:AdamMini": ("adam_mini", None),
    "galore:GaLoreAdamW": ("galore_adamw", None), "galore:GaLoreAdamW8bit": ("galore_adamw_8bit", None), "galore:GaLoreAdafactor": ("galore_adafactor", None),
}  # fmt: skip
"""The product's name of each recorded implementation; others are implementations it does not model."""
_DEFAULT_RANK = 128
_SUPPORTED_SPEC = {
    "model", "layers", "b", "s", "precision", "optimizer", "steps", "rank", "checkpointing", "attention", "kernel", "mask",
    "attention_dropout", "clip", "accum", "zero_to_zero", "keep_outputs", "empty_cache", "layerwise", "lora", "dora", "targets", "base",
}  # fmt: skip
_ATTENTION_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the device's counters said in the steps after the first."""

    peak_allocated: int
    peak_reserved: int
    requested_by_phase: dict[str, int]
    """Peak of requested bytes in each phase of a step; with an adapter `forward` includes the loss."""
    step_seconds: float | None
    """Median of the steps after the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRow:
    """One recorded case."""

    id: str
    part: str
    spec: dict[str, Any]
    case: RecordedCase

    @property
    def stack(self) -> dict[str, str]:
        return PARTS[self.part][1]


@lru_cache(maxsize=1)
def recorder_models() -> dict[str, dict[str, Any]]:
    """The models of the recorder's table, read from its source, which only runs where torch and a GPU are."""
    module = ast.parse((FOLDER.parent / "steps.py").read_text())
    for statement in module.body:
        if isinstance(statement, ast.AnnAssign) and getattr(statement.target, "id", None) == "MODELS":
            assert statement.value is not None
            models: dict[str, dict[str, Any]] = ast.literal_eval(statement.value)
            return models
    raise LookupError("steps.py has no table MODELS")


@lru_cache(maxsize=1)
def load_recordings() -> tuple[RecordedRow, ...]:
    """All cases of the parts that are training steps."""
    return tuple(_rows())


def _rows() -> Iterator[RecordedRow]:
    for part in PARTS:
        for case in read_recording(FOLDER / f"{part}.jsonl.gz"):
            words = [
                f"{k}={v}"
                for k, v in sorted(case.spec.items())
                if k not in ("model", "b", "s") and v is not False
            ]
            name = f"{part}: {case.spec['model']} b={case.spec['b']} s={case.spec['s']} {' '.join(words)}"
            yield RecordedRow(id=name, part=part, spec=case.spec, case=case)


def load_caps() -> tuple[tuple[RecordedRow, int, int], ...]:
    """Runs whose smallest sufficient cap was searched, each with a cap that fails and one that completes."""
    rows = []
    for case in read_recording(FOLDER / "caps.jsonl.gz"):
        words = [f"{k}={v}" for k, v in sorted(case.spec.items()) if k not in ("model", "b", "s")]
        name = f"caps: {case.spec['model']} b={case.spec['b']} s={case.spec['s']} {' '.join(words)}"
        row = RecordedRow(id=name, part="speed", spec=case.spec, case=case)
        rows.append((row, int(case.notes["fails_at"]), int(case.notes["completes_at"])))
    return tuple(rows)


def recorded_reason(row: RecordedRow) -> str | None:
    """Why a case is not compared; None when it is. Like the rule for published rows, it looks at the question alone."""
    spec = row.spec
    if row.case.error is not None:
        return "ended with an error on the device"
    if row.case.allocated_before:
        return "began with blocks of an earlier case alive"
    unknown = sorted(k for k in set(spec) - _SUPPORTED_SPEC if spec[k] is not None)
    if unknown:
        return f"option not modelled: {', '.join(unknown)}"
    if spec["optimizer"] not in _OPTIMIZERS:
        return f"implementation not modelled: {spec['optimizer']}"
    for key, allowed in (
        ("checkpointing", (None, "non_reentrant")),
        ("kernel", (None, "flash")),
        ("mask", (None, "packed")),
        ("clip", (None, "default", "foreach")),
    ):
        if spec.get(key) not in allowed:
            return f"option not modelled: {key} {spec[key]}"
    return _adapter_reason(spec)


def _adapter_reason(spec: dict[str, Any]) -> str | None:
    if not spec.get("lora"):
        return None
    wanted = "fp32" if spec["precision"] in ("fp32", "bf16_mixed", "fp16_mixed") else None
    given = "fp32" if spec["precision"] == "fp32" else spec.get("base")
    return (
        None if given == wanted else f"base weights not modelled: {given or 'bf16'} under {spec['precision']}"
    )


def run_of_recording(row: RecordedRow) -> dict[str, Any]:
    """A recorded case as a RunSpec."""
    spec = row.spec
    name, implementation = _OPTIMIZERS[spec["optimizer"]]
    optimizer: dict[str, Any] = {"name": name}
    if implementation:
        optimizer["implementation"] = implementation
    if name.startswith("galore"):
        optimizer |= {"rank": spec.get("rank", _DEFAULT_RANK), "projection_update_interval": 2}
    method = "full" if not spec.get("lora") else "dora" if spec.get("dora") else "lora"
    training: dict[str, Any] = {
        "method": method,
        "precision": spec["precision"],
        "micro_batch_size": spec["b"],
        "seq_len": spec["s"],
        "grad_accum_steps": spec.get("accum", 1),
        "optimizer": optimizer,
        "layerwise_update": bool(spec.get("layerwise")),
        "gradient_clipping": bool(spec.get("clip")),
        "activation_checkpointing": "full" if spec.get("checkpointing") else "none",
        "attention": spec.get("attention", "sdpa"),
        "dropout": spec.get("attention_dropout", 0.0),
        "packed_sequences": spec.get("mask") == "packed",
        "loop": {
            "set_grads_to_none": not spec.get("zero_to_zero", False),
            "keep_outputs": "step" if spec.get("keep_outputs") else "no",
            "empty_cache_each_step": bool(spec.get("empty_cache")),
        },
    }
    if method != "full":
        targets = spec.get("targets", _ATTENTION_TARGETS)
        training["adapter"] = {
            "rank": spec["lora"],
            "targets": [targets] if isinstance(targets, str) else list(targets),
        }
    return {
        "model": _config(row, recorder_models()[spec["model"]]),
        "training": training,
        "hardware": {"gpu": GPU, "num_gpus": 1},
    }


def _config(row: RecordedRow, m: dict[str, Any]) -> dict[str, Any]:
    kind, architecture = (
        ("qwen2", "Qwen2ForCausalLM") if m.get("type") == "qwen2" else ("llama", "LlamaForCausalLM")
    )
    return {
        "model_type": kind,
        "architectures": [architecture],
        "num_hidden_layers": row.spec.get("layers", m["L"]),
        "hidden_size": m["h"],
        "intermediate_size": m["i"],
        "num_attention_heads": m["a"],
        "num_key_value_heads": m["kv"],
        "head_dim": m.get("d", m["h"] // m["a"]),
        "vocab_size": m["V"],
        "tie_word_embeddings": bool(m.get("tied")) and row.part not in TIED_BY_MISTAKE_UNTIED,
        "max_position_embeddings": max(4096, row.spec["s"]),
    }


def measured(row: RecordedRow) -> Measured:
    """Peaks over the steps after the first, whose states exist from the start."""
    allocated = reserved = 0
    by_phase: dict[str, int] = {}
    for phase in row.case.phases:
        if phase["step"] < 1 or phase["phase"] not in PHASES:
            continue
        name = PHASES[phase["phase"]]
        allocated = max(allocated, phase["peak_allocated"])
        reserved = max(reserved, phase["peak_reserved"])
        by_phase[name] = max(by_phase.get(name, 0), phase["peak_requested"])
    times = sorted(sum(step.values()) / 1e3 for step in row.case.times[2:])
    timed = row.part == "speed" and times
    return Measured(
        peak_allocated=allocated,
        peak_reserved=reserved,
        requested_by_phase=by_phase,
        step_seconds=times[len(times) // 2] if timed else None,
    )
