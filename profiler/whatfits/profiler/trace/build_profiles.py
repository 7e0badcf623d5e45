"""Compile and verify the shipped profiles: `python -m whatfits.profiler.trace.build_profiles [FOLDER]`.

`--python /path/to/venv/bin/python` traces with the libraries of another environment, in which torch and transformers
are installed and nothing else is needed; the profiles go to that stack's folder.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from whatfits.estimator.profile.store import save_class, stack_folder
from whatfits.profiler.trace.child_process import TraceChild, TraceFailedError
from whatfits.profiler.trace.classes import StructureClass, shipped_structures
from whatfits.profiler.trace.compile import StructureError
from whatfits.profiler.trace.config_classes import shipped_config_classes
from whatfits.profiler.trace.produce import compile_and_verify
from whatfits.profiler.trace.sizes import SizeFitError
from whatfits.profiler.trace.stack import running_stack

SHIPPED = Path(__file__).parents[4] / "estimator/whatfits/estimator/profile/data"


def main(arguments: list[str] | None = None) -> int:
    """Build every class; returns 1 if one does not compile or differs from a direct trace."""
    parser = argparse.ArgumentParser(description="compile and verify the shipped profiles")
    parser.add_argument("folder", nargs="?", type=Path, default=SHIPPED)
    parser.add_argument("--python", default=sys.executable, help="interpreter whose libraries are traced")
    parser.add_argument("--only", default="", metavar="TEXT", help="only classes whose name contains this")
    parser.add_argument("--missing", action="store_true", help="only classes that this stack has no file of")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    of_configs = () if options.python != sys.executable else shipped_config_classes()
    structures = [x for x in (*shipped_structures(), *of_configs) if options.only in x.key.slug]
    if options.missing:
        folder = options.folder / stack_folder(running_stack())
        structures = [x for x in structures if not (folder / f"{x.key.slug}.table.json.gz").is_file()]
    shares = [structures[j :: options.processes] for j in range(options.processes)]
    with ProcessPoolExecutor(options.processes) as pool:
        failed = sum(pool.map(partial(_build, python=options.python, folder=options.folder), shares))
    print(f"{len(structures)} classes, {failed} failed, {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


def _build(structures: Sequence[StructureClass], *, python: str, folder: Path) -> int:
    """Build some classes with one child; returns how many failed."""
    with TraceChild(python) as child:
        return sum(not _build_one(structure, child, folder) for structure in structures)


def _build_one(structure: StructureClass, child: TraceChild, folder: Path) -> bool:
    started = time.perf_counter()
    path = folder / stack_folder(child.stack)
    name = f"{path.name} {structure.key.slug}"
    try:
        trace = partial(child.trace, options=structure.options)
        compiled = compile_and_verify(structure, child.stack, trace)
    except (StructureError, SizeFitError, TraceFailedError, ValueError) as error:
        print(f"{name}: FAILED: {str(error)[:500]}", flush=True)
        return False
    different = [point.dims for one in compiled for point in one.different]
    if different:
        print(f"{name}: DIFFERS at {different[0]}", flush=True)
        return False
    tables = save_class([one.program for one in compiled], path)
    rows = " + ".join(str(len(table.row_label)) for table in tables)
    print(f"{name}: {rows} rows, {time.perf_counter() - started:.1f} s, exact", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
