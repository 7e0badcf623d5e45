"""The bare install (numpy, pydantic, typer, rich) answers; what it lacks it names."""

import subprocess
import sys

import pytest

# None in sys.modules is how Python marks a module as not there: an import raises ModuleNotFoundError.
ABSENT = (
    "fastapi", "starlette", "uvicorn", "pydantic_settings", "jinja2", "plotly", "httpx2", "structlog", "numba", "torch", "transformers",
)  # fmt: skip
PROGRAM = f"""
import sys
for name in {ABSENT!r}:
    sys.modules[name] = None
from whatfits.service.cli import main
main(sys.argv[1:])
"""


def run_bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ("gpus",),
        ("models",),
        ("optimizers",),
        ("plan", "llama-7b", "--gpus", "8xa100-80gb"),
        ("estimate", "--model", "llama-60m", "--gpus", "1xa100-80gb-sxm", "--seq-len", "256"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_answer_without_server_torch_and_numba(arguments: tuple[str, ...]) -> None:
    done = run_bare(*arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_names_the_missing_extra() -> None:
    done = run_bare("serve")
    assert done.returncode == 3
    assert done.stderr == (
        "error: serve needs the server, which is not installed: pip install 'whatfits[service]'\n"
    )


def test_trace_names_the_missing_extra_and_the_other_way() -> None:
    done = run_bare("trace", "llama-60m")
    assert done.returncode == 3
    assert done.stderr == (
        "error: trace needs torch and transformers, which are not installed here: pip install 'whatfits[agent]', "
        "or name an environment that has them with --python\n"
    )
