"""The libraries whose versions decide the events of a trace, read without importing them."""

import re
from importlib.metadata import PackageNotFoundError, version

__all__ = ["OLDEST", "STACK_PACKAGES", "installed_versions", "outdated", "running_stack", "short_version"]

STACK_PACKAGES = ("torch", "transformers")
"""What a stack is named by."""
_REPORTED = (*STACK_PACKAGES, "peft", "accelerate")
OLDEST = {"torch": (2, 9), "transformers": (4, 53)}
"""Oldest versions the tracer knows; transformers 4.53 is the first with `masking_utils`."""


def installed_versions() -> dict[str, str]:
    """Full versions of the libraries that are installed."""
    found = {}
    for name in _REPORTED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def short_version(text: str) -> str:
    """Major and minor number: `2.13` of `2.13.0+cpu`, of `2.13` and of `2.13.0a0+git1`."""
    match = re.match(r"\d+(\.\d+)?", text)
    return match.group() if match else text


def running_stack() -> dict[str, str]:
    """Versions that decide the events, as major.minor, of the running interpreter."""
    versions = installed_versions()
    return {name: short_version(versions[name]) for name in STACK_PACKAGES if name in versions}


def outdated(versions: dict[str, str]) -> str | None:
    """A sentence about the first library that is older than the tracer knows."""
    for name, oldest in OLDEST.items():
        numbers = tuple(int(x) for x in short_version(versions[name]).split("."))
        if numbers < oldest:
            least = ".".join(str(x) for x in oldest)
            return f"{name} {versions[name]} is older than {least}, the oldest the tracer knows"
    return None
