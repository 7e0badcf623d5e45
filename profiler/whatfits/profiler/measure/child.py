"""One measured run in a process of its own: `python -m whatfits.profiler.measure.child`, a request on stdin.

The request is JSON: case, model, device, out. The result goes to `out` as gzipped JSON; a run that fails, for
want of memory or otherwise, is a result with an error.
"""

import gzip
import json
import sys
import traceback
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whatfits.estimator.specs import ModelSpec
from whatfits.profiler.measure.cases import NUM_STEPS, Case
from whatfits.profiler.measure.driver import describe_environment
from whatfits.profiler.measure.probes import CpuProbe, CudaProbe
from whatfits.profiler.measure.recipe import build_recipe
from whatfits.profiler.measure.training_run import train

__all__ = ["main", "measure"]


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Run one case and return everything recorded."""
    device = request["device"]
    result: dict[str, Any] = {"case": request["case"], "error": None}
    probe = CudaProbe() if device == "cuda" else CpuProbe()
    try:
        recipe = build_recipe(ModelSpec.model_validate(request["model"]), Case(**request["case"]).training)
        train(recipe, device, probe, num_steps=NUM_STEPS)
        result["events"] = asdict(probe.events())
    except Exception as error:  # noqa: BLE001  (whatever stops one run is that run's result)
        result["error"] = {
            "type": type(error).__name__,
            "message": str(error)[:2000],
            "traceback": traceback.format_exc()[-4000:],
        }
    result["phases"] = [asdict(phase) for phase in probe.phases]
    if isinstance(probe, CudaProbe):
        result["driver"] = probe.driver
        result["trace"] = probe.trace.to_json()
    result["environment"] = describe_environment(device)
    return result


def main() -> int:
    """Read the request, write the result."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    request = json.load(sys.stdin)
    text = json.dumps(measure(request), separators=(",", ":")).encode()
    Path(request["out"]).write_bytes(gzip.compress(text, 6, mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
