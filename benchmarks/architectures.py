"""Compiles a small model of every architecture of transformers that has a loss and notes what came of it.

    python benchmarks/architectures.py            # tries what benchmarks/architectures.jsonl lacks
    python benchmarks/architectures.py OPTForCausalLM ViTForImageClassification    # tries these classes again
    python benchmarks/architectures.py --page     # docs/architectures.md from the results alone

Run by `make docs-architectures`. Each model type is its default config with few layers, traced in bf16 without a value in
memory, in a child process with a time limit.
"""

import json
import logging
import multiprocessing
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from whatfits.estimator.profile import canonical_config
from whatfits.profiler.trace.config_classes import config_class
from whatfits.profiler.trace.config_facts import ConfigFacts
from whatfits.profiler.trace.configs import describe
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.produce import compile_and_verify
from whatfits.profiler.trace.stack import installed_versions, running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch

__all__ = ["PAGE", "RESULTS", "candidates", "load_results", "page", "small_config", "try_class"]

RESULTS = Path(__file__).parent / "architectures.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
FAMILIES = {
    "speech seq2seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "zero-shot image classification": "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "image-text-to-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "masked LM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal LM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "image classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
}
"""transformers' table of each family; the first in which a model type has a class says what is tried first."""
SECONDS = 300
"""A model type may take."""
_MEMORY_BYTES = 12 * 2**30
_DEPTH_NAMES = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers",
    "num_encoder_layers", "num_decoder_layers", "depth",
)  # fmt: skip
_NAMES_OF_STAGES = ("stage_names", "out_features", "out_indices")
"""Of a backbone: follow from its depth."""
_OF_LAYERS = "per_layer_config"
"""What single layers have of their own, by their numbers."""
_COMPLETED: dict[str, dict[str, Any]] = {
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "ministral": {"head_dim": 128},
    "nemotron": {"num_key_value_heads": 8},
    "reformer": {"is_decoder": True},
}
"""Numbers a model type has no defaults for. Assumes: as published checkpoints have them (recalled, unverified)."""
_DEPTHS = (6, 12, 18)
"""Layers tried: of a stack that repeats after one, after as many as three, after more."""
_STACK_DEPTH = 2
"""Layers of each stack where two hang together, and of a vision tower."""
_LONGEST = 1024
_BATCH = 2
_SHOWN = 200


def candidates() -> dict[str, tuple[str, str]]:
    """Model type and family of each class; every model type's first class before any second one."""
    rows: list[tuple[int, str, str, str]] = []
    seen: Counter[str] = Counter()
    for family, table in FAMILIES.items():
        for model_type, names in getattr(modeling_auto, table).items():
            name = names if isinstance(names, str) else names[0]
            rows.append((seen[model_type], name, model_type, family))
            seen[model_type] += 1
    found: dict[str, tuple[str, str]] = {}
    for _, name, model_type, family in sorted(rows):
        found.setdefault(name, (model_type, family))
    return found


def small_config(model_type: str, depth: int) -> dict[str, Any]:
    """The default config of a model type with few layers, as the JSON of a checkpoint has it."""
    config: Any = transformers.AutoConfig.for_model(model_type)
    given: dict[str, Any] = config.to_dict()
    text = config.get_text_config().model_type
    _shrink(given, _STACK_DEPTH if config.is_encoder_decoder else depth, text)
    return {**given, **_COMPLETED.get(model_type, {}), "model_type": model_type}


def _shrink(given: dict[str, Any], depth: int, deep: str) -> None:
    """Cut every number of layers, and the lists with one entry per layer; other parts than the text are cut to two."""
    for name in _DEPTH_NAMES:
        layers = given.get(name)
        if not isinstance(layers, int) or layers <= depth:
            continue
        given[name] = depth
        for key, value in given.items():
            if isinstance(value, list) and len(value) == layers:
                given[key] = value[:depth]
        if isinstance(given.get(_OF_LAYERS), dict):
            given[_OF_LAYERS] = {key: value for key, value in given[_OF_LAYERS].items() if int(key) < depth}
    for name in _NAMES_OF_STAGES:
        given.pop(name, None)
    for part in given.values():
        if isinstance(part, dict) and "model_type" in part:
            _shrink(part, depth if part["model_type"] == deep else _STACK_DEPTH, deep)


def _describe_small(model_type: str, architecture: str) -> tuple[str, ConfigFacts]:
    """The shallowest small model whose stack shows how it repeats, else the shallowest."""
    tried = []
    for depth in _DEPTHS:
        text = canonical_config(small_config(model_type, depth))
        tried.append((text, describe(text, architecture)))
        if tried[-1][1].depths or tried[-1][1].num_layers < depth:
            break
    return tried[-1] if tried[-1][1].depths else tried[0]


def try_class(architecture: str) -> dict[str, Any]:
    """What came of compiling the small model of a class."""
    row = _named(architecture)
    try:
        text, facts = _describe_small(row["model_type"], architecture)
        if facts.architecture != architecture:
            return {**row, "reason": "its forward has no loss"}
        row["layers"] = facts.num_layers
        options = StepOptions(config=text, architecture=architecture)
        length = min(_LONGEST, facts.longest or _LONGEST)
        structure = config_class(options, facts, {"b": _BATCH, "s": max(length - length % 8, 1)})
        trace = partial(trace_micro_batch, options=options)
        compiled = compile_and_verify(structure, running_stack(), trace)
    except Exception as error:  # noqa: BLE001  (whatever a model raises is its row)
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
        return {**row, "reason": f"{reason} ({Path(where.filename).name}:{where.lineno})"}
    different = [point.dims for one in compiled for point in one.different]
    row |= {
        "status": "differs" if different else "exact",
        "period": max(one.shallow.period if one.shallow else 0 for one in compiled),
        "held_out": sum(len(one.held_out) for one in compiled),
        "events": max(point.comparison.num_events for one in compiled for point in one.held_out),
    }
    return {**row, "reason": f"differs at {different[:2]}"} if different else row


def _named(architecture: str) -> dict[str, Any]:
    model_type, family = candidates()[architecture]
    return {"architecture": architecture, "model_type": model_type, "family": family, "status": "failed"}


def _child(architecture: str, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
    answer.send(try_class(architecture))


def try_in_child(architecture: str) -> dict[str, Any]:
    """The same with a time limit, in a process that is forked from this one."""
    started = time.perf_counter()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(architecture, sender))
    child.start()
    sender.close()
    row = _named(architecture)
    try:
        row = receiver.recv() if receiver.poll(SECONDS) else {**row, "reason": f"takes more than {SECONDS} s"}
    except EOFError:
        row["reason"] = "its process died"
    child.kill()
    child.join()
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def load_results() -> dict[str, dict[str, Any]]:
    """The row of each class that was tried."""
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {row["architecture"]: row for row in rows}


def save_results(rows: dict[str, dict[str, Any]]) -> None:
    """One line a class, by name."""
    RESULTS.write_text("".join(json.dumps(rows[name], sort_keys=True) + "\n" for name in sorted(rows)))


def try_all(names: list[str]) -> None:
    """Try classes and keep what came of each at once."""
    for name in names:
        row = try_in_child(name) | {"date": f"{datetime.now(UTC):%Y-%m-%d}", "versions": installed_versions()}
        save_results(load_results() | {name: row})
        print(row["status"], name, row.get("reason", ""), f"{row['seconds']} s", flush=True)


_HEAD = """# Architectures

Written by `make docs-architectures` from benchmarks/architectures.jsonl; do not edit.

Every class of transformers that has a loss, of the families below: the default config of its model type with few layers
(six of a decoder, or more where layers differ by turns; two of each stack of an encoder-decoder and of a vision tower), traced in
bf16 with batch and sequence lengths as variables, compiled, and held against direct traces at points from which nothing
was fitted. *exact* means that no allocation and no free differs in place or size, 0 bytes, at any of them. What is not
exact is not refused: the planner then traces the one model and micro-batch asked for. *period*: layers after which the
stack repeats; 0 where it is compiled at its own depth alone.
"""


def page() -> str:
    """The page's text."""
    rows = sorted(load_results().values(), key=lambda row: str(row["architecture"]).lower())
    left = len(candidates().keys() - {row["architecture"] for row in rows})
    dates = sorted({row["date"] for row in rows})
    versions = sorted({", ".join(f"{k} {v}" for k, v in sorted(row["versions"].items())) for row in rows})
    lines = [
        _HEAD,
        f"Traced {' to '.join(dict.fromkeys((dates[0], dates[-1])))} with {'; '.join(versions)}.",
        "",
    ]
    lines += ["| family | exact | differs | failed |", "|---|--:|--:|--:|"]
    statuses = ("exact", "differs", "failed")
    for family in (*FAMILIES, "all"):
        count = Counter(row["status"] for row in rows if family in (row["family"], "all"))
        lines.append(f"| {family} | {' | '.join(str(count[status]) for status in statuses)} |")
    few = sum(row["status"] == "exact" and row["held_out"] < 6 for row in rows)
    held_out = sum(row["held_out"] for row in rows if row["status"] == "exact")
    lines += [
        "",
        f"{held_out} held-out points are exact; {few} classes have fewer than six; {left} were not tried.",
        "",
    ]
    lines += ["## Exact", "", "| class | model type | family | layers | period | held-out points | events |"]
    lines += ["|---|---|---|--:|--:|--:|--:|"]
    columns: tuple[str, ...] = (
        "architecture",
        "model_type",
        "family",
        "layers",
        "period",
        "held_out",
        "events",
    )
    lines += [_cells(row, columns) for row in rows if row["status"] == "exact"]
    lines += [
        "",
        "## Traced directly",
        "",
        "| class | model type | family | status | why |",
        "|---|---|---|---|---|",
    ]
    reasons = ("architecture", "model_type", "family", "status", "reason")
    lines += [_cells(row, reasons) for row in rows if row["status"] != "exact"]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], columns: tuple[str, ...]) -> str:
    cells = [str(row[column]).replace("|", "\\|").replace("<", "&lt;") for column in columns]
    return f"| `{cells[0]}` | {' | '.join(cells[1:])} |"


def main(arguments: list[str]) -> None:
    """Try what is asked for, else what was not tried, and write the page."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    if "--page" not in arguments:
        known = load_results()
        try_all(arguments or [name for name in candidates() if name not in known])
    PAGE.write_text(page())


if __name__ == "__main__":
    main(sys.argv[1:])
