"""Device histories, published figures, parameter counts, and what is analytical only."""

import os
from pathlib import Path

from tests.golden.published_runs import allocated_gb, load_cases
from tests.golden.replay_histories import SNAPSHOTS, HistoryReplay, load_history
from tests.verify.report import ROOT, Section
from whatfits.estimator.catalog import catalog_config, load_models
from whatfits.estimator.profile import canonical_config
from whatfits.estimator.units import GIB
from whatfits.profiler.trace.configs import describe

__all__ = ["verify_fsdp", "verify_histories", "verify_parameter_counts", "verify_published"]


def history_folders() -> list[Path]:
    """The shipped histories, and those of the folder that WHATFITS_HISTORIES names."""
    more = os.environ.get("WHATFITS_HISTORIES")
    return [SNAPSHOTS, *([Path(more)] if more else [])]


def _label(folder: Path) -> str:
    return str(folder.relative_to(ROOT)) if folder.is_relative_to(ROOT) else "WHATFITS_HISTORIES"


def verify_histories() -> Section:
    """Every placement, new segment and release of recorded histories."""
    rows: list[tuple[object, ...]] = []
    failures = []
    for folder in history_folders():
        paths = sorted(folder.glob("*.jsonl.gz"))
        for mode, expandable in (("classic", False), ("expandable", True)):
            placements = exact = segments = releases = files = 0
            for path in paths:
                history = load_history(path)
                if history.header["expandable"] is not expandable:
                    continue
                found = HistoryReplay(history).run()
                files += 1
                placements += found.placements
                exact += found.placements_exact
                segments += found.segments
                releases += found.releases
                if not found.is_exact:
                    failures.append(f"{path.name}: {found.misses[:1]}")
            rows.append(
                (
                    _label(folder),
                    mode,
                    files,
                    exact,
                    placements,
                    segments,
                    releases,
                )
            )
    return Section(
        title="The replay reproduces recorded device histories",
        summary="; ".join(f"{r[2]} {r[1]} histories of {r[0]}: {r[3]:,} of {r[4]:,} placements" for r in rows)
        + f"; {len(failures)} histories differ. Folders: "
        + ", ".join(_label(f) for f in history_folders()),
        columns=("folder", "mode", "histories", "placements exact", "placements", "new segments", "releases"),
        rows=rows,
        failures=failures,
    )


def verify_published() -> Section:
    """Both numbers of every published case."""
    rows: list[tuple[object, ...]] = []
    failures = []
    for case in load_cases():
        answer = case.estimate()
        ours = allocated_gb(answer)
        errors = ", ".join(f"{ours / published - 1:+.1%}" for published in case.published_gb) or "-"
        published = ", ".join(str(x) for x in case.published_gb) or "-"
        headroom = f"{answer.memory.headroom_bytes / GIB:.2f}"
        rows.append((case.id, published, f"{ours:.2f}", errors, answer.fits, headroom, case.source))
        failures += [f"{case.id}: {failure}" for failure in case.failures(answer)]
    return Section(
        title="Published cases",
        summary=f"{len(rows)} cases in decimal GB of allocated memory; {len(failures)} bounds broken",
        columns=("case", "published GB", "estimate GB", "error", "verdict", "headroom GiB", "source"),
        rows=rows,
        failures=failures,
    )


def verify_parameter_counts() -> Section:
    """Parameter counts against the model code on the meta device."""
    rows: list[tuple[object, ...]] = []
    for name, model in load_models().items():
        real = describe(canonical_config(catalog_config(name))).num_parameters
        rows.append((name, model.num_parameters, real, model.num_parameters - real))
    failures = [f"{row[0]}: off by {row[3]}" for row in rows if row[3]]
    return Section(
        title="Parameter counts",
        summary=f"{len(rows)} catalog models against transformers; {len(failures)} differ",
        columns=("model", "catalog", "transformers", "difference"),
        rows=rows,
        failures=failures,
    )


def verify_fsdp() -> Section:
    """Says what no trace stands behind yet."""
    return Section(
        title="FSDP columns",
        summary="analytical: not compared with a trace of a sharded step here; estimates under FSDP carry a wider interval",
        columns=("term", "basis"),
        rows=[("gathered weights and reduce buffers", "analytical")],
        is_compared=False,
    )
