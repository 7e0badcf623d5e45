"""Measure the standing campaign on whatever GPU is present: `python -m whatfits.profiler.gpu_campaign --minutes 8`.

Every optimizer once on a 350M LLaMA, then ranks, batches, precisions, checkpointing, sequence lengths and a 1B shape by
turns, as far as the minutes reach; each run in a process of its own, `--jobs` of them at a time. Each measurement is
appended at once to `--out` (default benchmarks/measurements/<gpu>/<date>.jsonl); a point whose result is in that file is
not measured again. Beside it, at the end: `.summary.json`, with each point's difference from its estimate, and
`.events.json`, which holds the device's events of a few points against those of their program. `--dry-run` prints the
schedule with predicted time and bytes and needs no GPU; `--device cpu` runs a tiny twin. What is carried to a machine
without the project's environment stands in the docstring of gpu_first.py.

Exit status: 0 measured, also where points failed or differ; 2 nothing to measure on, or a package is missing.
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from whatfits.profiler.measure.campaign_run import CampaignRun

__all__ = ["main"]

_NEEDED = ("torch", "transformers", "numpy", "pydantic")
_DRY_GPU = "h100-80gb-sxm"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or print what would be measured."""
    options = _parse(arguments)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return _refuse(f"gpu_campaign needs {', '.join(missing)}, which this Python lacks: see gpu_first.py")
    warnings.filterwarnings("ignore", category=FutureWarning)
    gpu = options.gpu or (_DRY_GPU if options.dry_run or options.device == "cpu" else None) or _find_gpu()
    if gpu is None:
        return _refuse(
            "gpu_campaign found no GPU of the catalog: name it with --gpu, or use --dry-run or --device cpu"
        )
    run = _prepare(options, gpu)
    if options.dry_run:
        run.print_schedule()
        return 0
    run.carry_out()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure the standing campaign on the GPU that is present")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all points (default 8)")
    parser.add_argument("--dry-run", action="store_true", help="print the schedule, measure nothing")
    parser.add_argument("--out", type=Path, help="file of JSON lines that results are appended to")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--gpu", help="the GPU's name in the catalog, where it is not found out")
    parser.add_argument("--jobs", type=int, help="points at a time (default 3 on a GPU, 1 on a CPU)")
    parser.add_argument("--only", default="", help="only points whose name contains this")
    parser.add_argument("--commit", help="commit to name in the results where there is no git")
    options = parser.parse_args(arguments)
    if not 0 < options.minutes <= 24 * 60:
        parser.error(f"--minutes: {options.minutes:g} is not accepted; accepted: above 0, at most 1440")
    if options.jobs is not None and not 1 <= options.jobs <= 16:
        parser.error(f"--jobs: {options.jobs} is not accepted; accepted: 1 to 16")
    return options


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def _find_gpu() -> str | None:
    """The catalog's name of the first GPU, as the driver names it."""
    from whatfits.estimator.catalog import resolve_gpu
    from whatfits.estimator.errors import InputError
    from whatfits.profiler.measure.driver import nvidia_smi
    from whatfits.profiler.measure.nvml import NvmlUnavailableError, open_nvml

    try:
        with open_nvml() as nvml:
            names = [gpu.name for gpu in nvml.gpus()]
    except NvmlUnavailableError:
        names = nvidia_smi("name") or []
    try:
        return resolve_gpu(names[0])[0].id if names else None
    except InputError:
        return None


def _prepare(options: argparse.Namespace, gpu: str) -> "CampaignRun":
    from whatfits.estimator.specs.measurement import MeasureDevice
    from whatfits.profiler.measure.campaign_run import CampaignRun

    device = MeasureDevice(options.device)
    folder = Path("benchmarks/measurements") / ("cpu" if device is MeasureDevice.CPU else gpu)
    return CampaignRun(
        device=device,
        gpu=gpu,
        out=options.out or folder / f"{datetime.now(UTC):%Y-%m-%d}.jsonl",
        minutes=options.minutes,
        jobs=options.jobs or (1 if device is MeasureDevice.CPU else 3),
        only=options.only,
        commit=options.commit,
    )


if __name__ == "__main__":
    sys.exit(main())
