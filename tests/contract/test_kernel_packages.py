"""The estimator's list of kernels that transformers prefers to its own code is what transformers says."""

import re
from pathlib import Path

import transformers

from whatfits.estimator.specs.config_assumptions import KERNEL_PACKAGES

_PREFERRED = re.compile(r'@use_kernel_func_from_hub_with_fallback\(\s*"\w+",\s*"(\w+)"')


def test_packages_are_those_of_each_model() -> None:
    folder = Path(transformers.__file__).parent / "models"
    found = {
        file.parent.name: tuple(sorted(set(_PREFERRED.findall(file.read_text(encoding="utf-8")))))
        for file in folder.glob("*/modeling_*.py")
    }

    assert {name: packages for name, packages in found.items() if packages} == KERNEL_PACKAGES
