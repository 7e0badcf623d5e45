"""Fill in what building each catalog model finds out: `python -m whatfits.profiler.trace.catalog_facts`.

Models of architectures whose classes ship need nothing; of every other row of the catalog the facts are written beside
its config, and its number of parameters is held against them.
"""

import json
import sys
from pathlib import Path
from typing import Any

from whatfits.estimator.catalog.llama import is_modelled
from whatfits.estimator.profile import canonical_config
from whatfits.profiler.trace.configs import describe

__all__ = ["main"]

_CATALOG = Path(__file__).parents[4] / "estimator/whatfits/estimator/catalog/models.json"


def main() -> int:
    """Rewrite the catalog; returns 1 if a count of parameters differs."""
    catalog = json.loads(_CATALOG.read_text(encoding="utf-8"))
    different = 0
    for row in catalog["models"]:
        if is_modelled(row["config"]):
            continue
        facts = describe(canonical_config(row["config"])).to_json()
        row["facts"] = {name: value for name, value in facts.items() if value not in (None, [], ())}
        if facts["num_parameters"] != row["num_parameters"]:
            print(  # noqa: T201  (a command)
                f"{row['name']}: {facts['num_parameters']} parameters, the catalog says {row['num_parameters']}"
            )
            different += 1
    _CATALOG.write_text(_format(catalog), encoding="utf-8")
    return 1 if different else 0


def _format(catalog: dict[str, Any]) -> str:
    """One line for each row, so that a change shows as one."""
    head = json.dumps({key: value for key, value in catalog.items() if key != "models"}, ensure_ascii=False)
    rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in catalog["models"])
    return f'{head[:-1]}, "models": [\n{rows}\n]}}\n'


if __name__ == "__main__":
    sys.exit(main())
