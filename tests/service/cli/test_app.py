"""The program as a whole: its surface, what it loads, how it fails."""

import subprocess
import sys

import pytest
from syrupy.assertion import SnapshotAssertion

from whatfits.service.cli import main

COMMANDS = (
    "plan",
    "estimate",
    "models",
    "gpus",
    "optimizers",
    "trace",
    "measure",
    "agent",
    "agents",
    "campaigns",
    "measurements",
    "migrate",
    "serve",
)
HEAVY = ("fastapi", "numpy", "numba", "rich", "sqlalchemy", "starlette", "torch", "transformers", "uvicorn")


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS)], ids=lambda command: " ".join(command) or "top"
)
def test_help_is_the_documented_surface(
    command: tuple[str, ...],
    snapshot: SnapshotAssertion,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == snapshot


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_typer_alone(command: str) -> None:
    code = (
        "import sys\n"
        "from whatfits.service.cli import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_estimating_commands_never_load_torch_or_the_server() -> None:
    code = (
        "import sys\n"
        "from whatfits.service.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([name for name in ('torch', 'transformers', 'fastapi') if name in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "plan", "llama-7b", "--gpus", "8xa100-80gb"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plna"], "Did you mean 'plan'?"),
        (["plan"], "MODEL"),
        (["plan", "llama-7b"], "--gpus"),
        (["plan", "llama-7b", "--gpus", "h100", "--seq-len", "many"], "--seq-len"),
        (["plan", "llama-7b", "--gpus", "h100", "--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage_exits_2_and_says_what(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    captured = capsys.readouterr()
    assert (exit_.value.code, captured.out) == (2, "")
    assert said in captured.err


def test_version_is_the_distribution_s(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"whatfits {version('whatfits')}\n"
