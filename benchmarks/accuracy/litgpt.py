"""Rows of lit-gpt's resource tables: its own model code, at the commit of the table, is traced and replayed."""

import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.environments import Peer, PeerUnavailableError, interpreter
from whatfits.estimator.catalog import find_gpu
from whatfits.estimator.catalog.published import PublishedRow
from whatfits.estimator.memory.device import cublas_workspace_bytes
from whatfits.estimator.memory.replay import replay
from whatfits.estimator.memory.replay_events import ALLOC, FREE, ReplayEvents
from whatfits.profiler.trace.events import Alloc, Free, Token, Trace
from whatfits.profiler.trace.protocol import trace_from_json

__all__ = ["LitgptError", "litgpt_allocated"]

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENT = Peer(name="litgpt", title="lit-gpt", licence="Apache-2.0", answers="")
NAMES = {
    "phi-1.5 1.3 B": "phi-1_5",
    "StableLM Alpha 3 B": "stablelm-base-alpha-3b",
    "Llama-2-7B": "Llama-2-7b-hf",
    "Llama-2-13B": "Llama-2-13b-hf",
    "Falcon 40 B": "falcon-40b",
}
"""lit-gpt's names of the models in its tables."""
_PRODUCTS = frozenset({"mm", "bmm", "addmm", "baddbmm"})
_SECONDS = 600


class LitgptError(Exception):
    """The rows cannot be traced here."""


def litgpt_allocated(row: PublishedRow, checkout: Path) -> int:
    """Peak allocated bytes of the first iteration, which has the longest sample and no optimizer states yet.

    Later iterations have states, small ones of adapters, and shorter samples.

    Raises:
        LitgptError: there is no environment with lightning, or lit-gpt's code raised.
    """
    try:
        python = interpreter(ENVIRONMENT, REQUIREMENTS)
    except PeerUnavailableError as error:
        raise LitgptError(str(error)) from error
    question = {
        "name": NAMES[row.model.name],
        "method": row.method,
        "batch": row.micro_batch_size,
        "seq_len": row.seq_len,
    }
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("trace_litgpt.py")), str(checkout)],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if done.returncode:
        raise LitgptError((done.stderr.strip().splitlines() or ["it said nothing"])[-1][:200])
    answer: dict[str, Any] = json.loads(done.stdout)
    assert row.gpu_catalog is not None, "the rule lets no row without a GPU through"
    workspace = cublas_workspace_bytes(find_gpu(row.gpu_catalog))
    return replay(
        _events(trace_from_json(answer["trace"]), answer["kept_bytes"], workspace)
    ).peak_allocated_bytes


@dataclass(slots=True)
class _Writer:
    kinds: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, kind: int, block: int, nbytes: int) -> None:
        self.kinds.append(kind)
        self.blocks.append(block)
        self.sizes.append(nbytes)


def _events(trace: Trace, kept_bytes: int, workspace: int) -> ReplayEvents:
    """Weights, buffers, what validation left, then the iteration; a cuBLAS workspace with each thread's first product."""
    out = _Writer()
    resident = [int(np.prod(shape, dtype=np.int64)) * size for _, shape, size, _, _ in trace.parameters]
    resident += [nbytes for _, nbytes in trace.buffers]
    if kept_bytes:
        resident.append(kept_bytes)
    for number, nbytes in enumerate([*resident, workspace]):
        out.add(ALLOC, -1 - number, nbytes)
    first = _first_product(trace.parts["backward"])
    for part, tokens in trace.parts.items():
        for number, token in enumerate(tokens):
            if isinstance(token, Alloc):
                out.add(ALLOC, token.block, token.nbytes)
            elif isinstance(token, Free):
                out.add(FREE, token.block, 0)
            if part == "backward" and number == first:
                out.add(ALLOC, -2 - len(resident), workspace)
    return ReplayEvents(
        kinds=np.array(out.kinds, dtype=np.int8),
        blocks=np.array(out.blocks, dtype=np.int64),
        sizes=np.array(out.sizes, dtype=np.int64),
    )


def _first_product(tokens: list[Token]) -> int:
    return next(n for n, token in enumerate(tokens) if isinstance(token, Alloc) and token.op in _PRODUCTS)
