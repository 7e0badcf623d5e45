"""How the child that traces is started: with its limits, and with modules of whatfits alone from outside its Python."""

from importlib.util import find_spec
from pathlib import Path

__all__ = ["child_command"]

_BOOTSTRAP = """
import sys
if sys.version_info < (3, 11):
    print('{"error": {"kind": "unusable_package", "package": "python", "message": "Python %d.%d is older than 3.11"}}'
          % sys.version_info[:2])
    sys.exit(2)
import resource, types
for limit, most in ((resource.RLIMIT_DATA, int(sys.argv[1])), (resource.RLIMIT_FSIZE, int(sys.argv[2]))):
    if most:
        resource.setrlimit(limit, (most, most))
sys.path[:] = [folder for folder in sys.path if folder]
for place in sys.argv[3:]:
    name, _, folder = place.partition("=")
    package = types.ModuleType(name)
    package.__path__ = [folder] if folder else []
    sys.modules[name] = package
from whatfits.profiler.trace.child import main
sys.exit(main())
"""
"""Packages come from folders named one by one, and without running what they import themselves: with this
environment's site-packages on its path the child would load our numpy or torch, made for another interpreter perhaps,
in place of its own; and the estimator's package needs pydantic, which few environments that train have."""
_PACKAGES = ("whatfits.profiler", "whatfits.estimator", "whatfits.estimator.profile")
"""The tracer, and of the estimator the formulas that both use."""
_LARGEST_FILE = 2**28
"""What the child may write into one file, the one that holds what libraries print included."""


def child_command(python: Path | str, memory_bytes: int) -> list[str]:
    """The command line of a child that may allocate so many bytes; 0 for no limit."""
    limits = [str(memory_bytes), str(_LARGEST_FILE)]
    return [str(python), "-c", _BOOTSTRAP, *limits, "whatfits=", *_list_folders()]


def _list_folders() -> list[str]:
    """Where this process has the packages that the child gets, as NAME=FOLDER."""
    folders = []
    for name in _PACKAGES:
        spec = find_spec(name)
        assert spec is not None, name
        assert spec.submodule_search_locations is not None, name
        folders.append(f"{name}={next(iter(spec.submodule_search_locations))}")
    return folders
