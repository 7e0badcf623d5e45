"""All cases on one device: each measured in a process of its own, each predicted here, each pair compared."""

import gzip
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog.models import resolve_model
from whatfits.estimator.profile import EventProgram
from whatfits.estimator.specs import ModelSpec
from whatfits.profiler.measure.cases import CPU_CASES, CUDA_CASES, Case
from whatfits.profiler.measure.prediction import Prediction, predict, recipe_key
from whatfits.profiler.measure.programs import LocalProgram, compile_here, difference_from_shipped, trace_here
from whatfits.profiler.measure.recipe import build_recipe
from whatfits.profiler.measure.report import case_report, event_lines
from whatfits.profiler.measure.tiny import TINY

__all__ = ["Campaign", "build_campaign", "run_campaign"]

_CHILD_TIMEOUT_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What is measured, on what."""

    model: ModelSpec
    device: str
    cases: tuple[Case, ...]


def build_campaign(model: str | None, device: str, name_contains: str = "") -> Campaign:
    """The cases of a device whose name contains a text, for a catalog model, `tiny`, or the device's default."""
    name = model or ("llama-60m" if device == "cuda" else "tiny")
    resolved, _ = resolve_model(TINY if name == "tiny" else name)
    cases = CUDA_CASES if device == "cuda" else CPU_CASES
    return Campaign(model=resolved, device=device, cases=tuple(c for c in cases if name_contains in c.name))


def run_campaign(campaign: Campaign, commit: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Measure one case after the other while programs are compiled here; returns the report and the event lists."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=1) as one_at_a_time:
        waiting = [one_at_a_time.submit(_measure, campaign, case, Path(folder)) for case in campaign.cases]
        programs = _Programs(campaign)
        results = [future.result() for future in waiting]
    environment = next((dict(r["environment"]) for r in results if "environment" in r), {})
    environment["commit"] = commit or environment.get("commit")
    reports, lines = [], []
    for case, result in zip(campaign.cases, results, strict=True):
        prediction, problem = _predict(campaign, case, programs, environment.get("compute_capability"))
        reports.append(case_report(case.name, result, prediction, problem))
        lines.append(event_lines(case.name, result, prediction))
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment,
        "model": campaign.model.model_dump(mode="json"),
        "programs": programs.report(),
        "cases": reports,
    }
    return report, lines


def _measure(campaign: Campaign, case: Case, folder: Path) -> dict[str, Any]:
    """Run one case in a process of its own; a process that dies is a result with an error."""
    out = folder / f"{case.name}.json.gz"
    request = {
        "case": case.to_json(),
        "model": campaign.model.model_dump(mode="json"),
        "device": campaign.device,
        "out": str(out),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "whatfits.profiler.measure.child"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=_CHILD_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(case, "TimeoutExpired", f"no result after {_CHILD_TIMEOUT_SECONDS} s")
    if not out.is_file():
        return _failed(case, f"exit status {done.returncode}", done.stderr[-2000:].strip() or "no message")
    result: dict[str, Any] = json.loads(gzip.decompress(out.read_bytes()))
    return result


def _failed(case: Case, kind: str, message: str) -> dict[str, Any]:
    return {"case": case.to_json(), "error": {"type": kind, "message": message}, "phases": []}


class _Programs:
    """An event program per structure class on CUDA; on a CPU every case traces its own shape."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._local: dict[str, LocalProgram] = {}
        self._problems: dict[str, str] = {}
        if campaign.device == "cuda":
            for case in campaign.cases:
                self._compile(case)

    def program(self, case: Case) -> EventProgram:
        """The program that answers a case."""
        key = recipe_key(build_recipe(self._campaign.model, case.training))
        on_cpu = self._campaign.device == "cpu"
        local = self._local.get(key.slug)
        if local is None or local.fallback is not None:
            return trace_here(key, build_recipe(self._campaign.model, case.training), on_cpu=on_cpu)
        return local.program

    def report(self) -> dict[str, Any]:
        """Per compiled class, how it differs from the shipped one; or why it did not compile."""
        compared = {
            slug: {"fallback": local.fallback, **difference_from_shipped(local.program)}
            for slug, local in self._local.items()
        }
        return compared | {slug: {"same": None, "reason": text} for slug, text in self._problems.items()}

    def _compile(self, case: Case) -> None:
        key = recipe_key(build_recipe(self._campaign.model, case.training))
        if key.slug in self._local or key.slug in self._problems:
            return
        try:
            recipe = build_recipe(self._campaign.model, case.training)
            self._local[key.slug] = compile_here(key, recipe)
        except Exception as error:  # noqa: BLE001  (other classes may compile; the report says what failed)
            self._problems[key.slug] = f"{type(error).__name__}: {error}"


def _predict(
    campaign: Campaign, case: Case, programs: _Programs, compute_capability: str | None
) -> tuple[Prediction | None, str | None]:
    if campaign.device == "cuda" and compute_capability is None:
        return None, "no case ran, so the device is unknown"
    try:
        recipe = build_recipe(campaign.model, case.training)
        return predict(recipe, programs.program(case), compute_capability=compute_capability), None
    except Exception as error:  # noqa: BLE001  (the measurement is kept; the report says what failed)
        return None, f"{type(error).__name__}: {error}"
