"""The events of a memory pass in a file, for whoever wants to see more than its peaks."""

import gzip
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from whatfits.profiler.measure.probes import CpuProbe, CudaProbe

__all__ = ["write_snapshot"]


def write_snapshot(probe: CpuProbe | CudaProbe) -> str:
    """Write the events of a step of each kind as gzipped JSON into a new file; returns its path.

    Columns of `EventList`; from a GPU also the allocator's own history, as `AllocatorTrace` has it.
    """
    content = {"events": asdict(probe.events())}
    if isinstance(probe, CudaProbe):
        content["trace"] = probe.trace.to_json()
    text = json.dumps(content, separators=(",", ":")).encode()
    with tempfile.NamedTemporaryFile(prefix="whatfits-snapshot-", suffix=".json.gz", delete=False) as file:
        file.write(gzip.compress(text, 6, mtime=0))
    return str(Path(file.name))
