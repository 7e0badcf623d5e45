"""Compile and verify all shipped profiles: `python -m whatfits.profiler.trace.build_profiles [FOLDER]`."""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers

from whatfits.estimator.profile import save_profile
from whatfits.estimator.profile.store import stack_folder
from whatfits.profiler.trace.classes import StructureClass, llama_classes
from whatfits.profiler.trace.compile import compile_program
from whatfits.profiler.trace.options import Dims
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace

SHIPPED = Path(__file__).parents[4] / "estimator/whatfits/estimator/profile/data"
_HELD_OUT = ((7, 3, 640, 2048), (9, 4, 777, 1376))
"""Depth, batch, sequence and intermediate size of the points each fresh profile must reproduce."""


def running_stack() -> dict[str, str]:
    """Versions that decide the events, as major.minor."""
    return {
        name: ".".join(module.__version__.split("+")[0].split(".")[:2])
        for name, module in (("torch", torch), ("transformers", transformers))
    }


def held_out_points(structure: StructureClass) -> list[Dims]:
    """Points no size was fitted at."""
    k = {"one": 1, "grouped": 4, "full": 8}[structure.key.kv_heads]
    return [
        {
            "L": L,
            "b": 1 if structure.key.micro_batch == "one" else b,
            "s": s,
            "h": 512,
            "i": i,
            "a": 8,
            "k": k,
            "d": 64,
            "V": 32000,
        }
        for L, b, s, i in _HELD_OUT
    ]


def main(arguments: list[str] | None = None) -> int:
    """Build every class; returns 1 if a profile differs from a direct trace."""
    parser = argparse.ArgumentParser(description="compile and verify the shipped profiles")
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED)
    folder: Path = parser.parse_args(arguments).folder
    warnings.filterwarnings("ignore", category=FutureWarning)
    stack, failures = running_stack(), 0
    for structure in llama_classes():
        started = time.perf_counter()
        program = compile_program(
            structure.key, structure.options, structure.points, structure.symbols, stack
        )
        table = save_profile(program, folder / stack_folder(stack))
        exact = all(
            compare_with_trace(program, table, trace_micro_batch(dims, structure.options), dims).exact
            for dims in held_out_points(structure)
        )
        failures += not exact
        seconds = time.perf_counter() - started
        print(
            f"{structure.key.slug}: {len(table.row_label)} rows, {seconds:.1f} s, {'exact' if exact else 'DIFFERS'}"
        )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
