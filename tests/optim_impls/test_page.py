"""The generated page of the documentation is current."""

import importlib.util
from pathlib import Path
from typing import Any

from whatfits.optim_impls.registry import REGISTRY

ROOT = Path(__file__).parents[2]


def generator() -> Any:
    spec = importlib.util.spec_from_file_location(
        "optimizers_page", ROOT / "benchmarks" / "optimizers_page.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_make_docs_optimizers_writes() -> None:
    assert (ROOT / "docs" / "optimizers.md").read_text() == generator().page()


def test_the_page_has_every_optimizer() -> None:
    text = (ROOT / "docs" / "optimizers.md").read_text()

    assert [name for name in REGISTRY if f"(`{name}`)" not in text] == []
