"""Traces from a child process are the traces made here; what goes wrong there is said here."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet.processes import eventually
from tests.profiler.processes import wait_until_gone
from whatfits.profiler.trace.child_process import (
    InterpreterError,
    TraceChild,
    TraceFailedError,
    TraceTimeoutError,
)
from whatfits.profiler.trace.options import AdapterOptions, StepOptions
from whatfits.profiler.trace.protocol import (
    options_from_json,
    options_to_json,
    trace_from_json,
    trace_to_json,
)
from whatfits.profiler.trace.stack import running_stack
from whatfits.profiler.trace.training_step import trace_micro_batch

DIMS = {"L": 3, "b": 2, "s": 130, "h": 96, "i": 296, "a": 4, "k": 2, "d": 24, "V": 701}


@pytest.fixture(scope="module")
def child() -> Iterator[TraceChild]:
    with TraceChild() as started:
        yield started


def write_program(path: Path, text: str) -> Path:
    """A program that stands where a Python interpreter is expected."""
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_trace_from_the_child_is_the_one_made_here(child: TraceChild, checkpointing: str) -> None:
    options = StepOptions(checkpointing=checkpointing)

    assert child.trace(DIMS, options) == trace_micro_batch(DIMS, options)


def test_a_trace_survives_its_columns() -> None:
    trace = trace_micro_batch(DIMS, StepOptions(checkpointing="full"))

    assert trace_from_json(trace_to_json(trace)) == trace


@pytest.mark.parametrize(
    "options",
    [
        StepOptions(),
        StepOptions(precision="fp32", kernels=("math",), dropout=0.1, tie_embeddings=True),
        StepOptions(adapter=AdapterOptions(targets=("q_proj",), dora=True)),
    ],
)
def test_options_survive_json(options: StepOptions) -> None:
    assert options_from_json(options_to_json(options)) == options


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="prescision; accepted: adapter"):
        options_from_json({"prescision": "bf16"})


def test_the_child_says_its_versions(child: TraceChild) -> None:
    assert child.stack == running_stack()
    assert child.versions["torch"].startswith(child.stack["torch"])


def test_after_code_that_raises_the_child_traces_on(child: TraceChild) -> None:
    with pytest.raises(TraceFailedError, match="KeyError: 'h'"):
        child.trace({name: value for name, value in DIMS.items() if name != "h"}, StepOptions())

    assert child.trace(DIMS, StepOptions()).parts["forward"]


def test_the_parent_needs_no_torch() -> None:
    program = (
        "import sys, whatfits.profiler.trace.build_profiles\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)

    assert done.stdout == "[]\n", done.stderr


def test_the_child_needs_no_pydantic_and_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers finds first on the path and in the working folder is broken on purpose."""
    for place, name in (("path", "pydantic"), ("cwd", "torch"), ("cwd", "whatfits")):
        (tmp_path / place / name).mkdir(parents=True)
        (tmp_path / place / name / "__init__.py").write_text(f"raise ImportError('{name} must not be used')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    monkeypatch.chdir(tmp_path / "cwd")

    with TraceChild(sys.executable) as child:
        assert child.trace(DIMS, StepOptions()).parts["backward"]


def test_an_interpreter_without_torch_is_named_with_the_package(tmp_path: Path) -> None:
    # -S: no site-packages; a bare interpreter.
    bare = write_program(tmp_path / "python", f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')

    with pytest.raises(InterpreterError, match="torch is not installed") as raised:
        TraceChild(bare)
    assert raised.value.package == "torch"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho hello\n", "answered b'hello'"),
        ("#!/bin/sh\necho 5\n", "answered b'5'"),
        ("#!/bin/sh\necho broken >&2; exit 7\n", "ended with status 7: broken"),
        ("#!/no/such/shell\n", "cannot be started"),
    ],
)
def test_what_is_no_such_python_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InterpreterError, match=said):
        TraceChild(write_program(tmp_path / "python", text))


def test_a_child_that_hangs_is_killed_with_what_it_started(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    text = f"#!/bin/sh\nsleep 600 &\necho $$ $! > {noted}\nwait\n"

    with pytest.raises(TraceTimeoutError, match="within 1 s"):
        TraceChild(write_program(tmp_path / "python", text), timeout_seconds=1)

    pids = [int(word) for word in noted.read_text().split()]
    assert len(pids) == 2
    assert all(wait_until_gone(pid) for pid in pids)


def test_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    stand_in = write_program(tmp_path / "python", f"#!/bin/sh\necho $$ > {noted}\nsleep 600\n")
    program = (
        "import sys\nfrom whatfits.profiler.trace.child_process import TraceChild\nTraceChild(sys.argv[1])"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(stand_in)], stderr=subprocess.PIPE, start_new_session=True
    )
    eventually(lambda: noted.exists() and noted.read_text())
    os.kill(parent.pid, signal.SIGINT)

    _, said = parent.communicate(timeout=60)
    assert b"KeyboardInterrupt" in said
    assert wait_until_gone(int(noted.read_text()))
