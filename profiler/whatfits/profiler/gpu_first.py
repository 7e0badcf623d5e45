r"""Hold the model of memory against real training steps, event by event: `python -m whatfits.profiler.gpu_first`.

On a machine with a CUDA device a 60M LLaMA is trained for three steps per case (optimizers, accumulation,
checkpointing, layer-wise update, batch, sequence), each in a process of its own. The caching allocator's history and
counters are compared with the timeline the estimator writes from a program compiled with this machine's libraries;
that program is compared with the shipped one. `--device cpu` does the same without a GPU, for a tiny model: real
steps recorded through the tracer's dispatch mode against a trace with the CPU's kernels.

Written to `--out` (default benchmarks/gpu_first/<gpu>_<date>): report.json, and events.jsonl.gz with the event lists.
Exit status: 0 written, also when cases failed or differ; 2 when there is nothing to measure on or a package is missing.

A machine without the project's environment needs the five source folders and wheels of pydantic beside its own torch,
transformers and numpy. Make the wheels where there is a network (here for Python 3.12 on x86-64):

    echo /.whl/ >> .git/info/exclude
    python3 -m pip download --only-binary=:all: --no-deps --python-version 3.12 --implementation cp \
        --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 -d .whl \
        pydantic==2.14.3 pydantic-core==2.50.4 annotated-types typing-inspection typing-extensions

Carry the folder .whl
(3 MiB) and run there, in the root of the checkout, in one call:

    python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target /tmp/site .whl/*.whl &&
    PYTHONPATH=/tmp/site:estimator:optim_impls:profiler:service:web \
        python3 -m whatfits.profiler.gpu_first --commit COMMIT --out "$OUT/gpu_first"
"""

import argparse
import importlib.util
import sys
import warnings
from pathlib import Path

__all__ = ["main"]

_NEEDED = ("torch", "transformers", "numpy", "pydantic")


def main(arguments: list[str] | None = None) -> int:
    """Measure, compare, write, print."""
    options = _parse(arguments)
    problem = _missing(options.device)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=FutureWarning)
    from whatfits.profiler.measure import campaign, report  # noqa: PLC0415  (only where their packages are)

    chosen = campaign.build_campaign(options.model, options.device, options.cases)
    measured, lines = campaign.run_campaign(chosen, options.commit)
    out = options.out or Path("benchmarks/gpu_first") / report.folder_name(measured)
    report.write_report(out, measured, lines)
    print(report.format_table(measured["cases"]))
    for slug, difference in measured["programs"].items():
        print(f"{slug}: {report.format_difference(difference)}")
    print(f"written to {out}")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="compare real training steps with the model, event by event")
    parser.add_argument("--out", type=Path, help="folder for the report")
    parser.add_argument("--model", help="a catalog name (default llama-60m), or tiny (default on cpu)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--cases", default="", help="only cases whose name contains this")
    parser.add_argument("--commit", help="commit to name in the report where there is no git")
    return parser.parse_args(arguments)


def _missing(device: str) -> str | None:
    """Why this machine cannot run the comparison, in one sentence."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"gpu_first needs {', '.join(missing)}, which this Python lacks: carry wheels and install them as the "
            f"docstring of {Path(__file__).name} says."
        )
    import torch  # noqa: PLC0415  (only where it is installed)

    if device == "cuda" and not torch.cuda.is_available():
        return "gpu_first found no CUDA device: run it on a machine with one, or with --device cpu."
    return None


if __name__ == "__main__":
    sys.exit(main())
