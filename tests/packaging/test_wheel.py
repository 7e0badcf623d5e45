"""The built wheel holds every file of the five portions and nothing else."""

import os
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORTIONS = ("estimator", "optim_impls", "profiler", "service", "web")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that pip would call, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> frozenset[str]:
    with zipfile.ZipFile(wheel) as archive:
        return frozenset(archive.namelist())


def list_portion_files() -> frozenset[str]:
    """Every file of the five source roots under the name it has when installed."""
    files = (
        path.relative_to(ROOT / portion)
        for portion in PORTIONS
        for path in (ROOT / portion / "whatfits").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    return frozenset(path.as_posix() for path in files)


def test_holds_the_files_of_the_portions_and_its_own_metadata(names: frozenset[str]) -> None:
    assert {name for name in names if not name.startswith("whatfits-")} == list_portion_files()


def test_top_level_is_the_namespace_and_the_metadata(names: frozenset[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {name.split("/")[0] for name in names} == {"whatfits", f"whatfits-{version}.dist-info"}


def test_the_namespace_folder_stays_free_for_all_portions(names: frozenset[str]) -> None:
    """A file there would hide the other portions from imports and type checkers."""
    assert {name for name in names if name.startswith("whatfits/") and name.count("/") == 1} == set()


def test_every_portion_says_that_it_is_typed(names: frozenset[str]) -> None:
    assert {f"whatfits/{portion}/py.typed" for portion in PORTIONS} <= names


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [
        ("whatfits/estimator/catalog/", "gpus.json"),
        ("whatfits/estimator/catalog/", "models.json"),
        ("whatfits/estimator/profile/", ".json.gz"),
        ("whatfits/service/storage/data/", ".jsonl.gz"),
        ("whatfits/service/storage/migrations/versions/", "_first_tables.py"),
        ("whatfits/web/templates/", ".html"),
    ],
)
def test_data_comes_along(names: frozenset[str], folder: str, suffix: str) -> None:
    assert [name for name in names if name.startswith(folder) and name.endswith(suffix)]


def test_metadata_names_licence_command_and_bare_requirements(wheel: Path, names: frozenset[str]) -> None:
    (metadata_name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    (entry_points_name,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_bytes(archive.read(metadata_name))
        entry_points = archive.read(entry_points_name).decode()
    requirements = metadata.get_all("Requires-Dist", [])
    bare = {text.split(">")[0].strip() for text in requirements if "extra ==" not in text}
    assert bare == {"numpy", "pydantic", "typer", "rich"}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "whatfits = whatfits.service.cli:main" in entry_points


def test_the_command_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    """Python modules and data come from the unpacked wheel; the sources are not on the path before it."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import sys, whatfits.estimator, whatfits.service.cli as cli\n"
        "print(whatfits.estimator.__file__, cli.__file__, file=sys.stderr)\n"
        "cli.main(['gpus', 'a100-80gb-sxm', '--json'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(tmp_path)) for path in done.stderr.split())
    assert '"a100-80gb-sxm"' in done.stdout
