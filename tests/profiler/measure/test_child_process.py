"""A measuring process answers, fails or is ended; of it and of what it started nothing is left."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.factories import make_measure_request, make_measurement_result
from tests.profiler.processes import is_running, until, wait_until_gone
from whatfits.estimator.specs.measurement import (
    FailureKind,
    MeasurementFailure,
    MeasurementResult,
    MeasureRequest,
    Progress,
)
from whatfits.profiler.measure.child_process import Answer, measure_command, run_command

RESULT = make_measurement_result().model_dump_json()
NOTE = """
import json, os, signal, subprocess, sys, time
def note(*pids):
    with open(os.environ["NOTED"], "a") as file:
        file.write("".join(f"{pid}\\n" for pid in pids))
def answer(event, content):
    print(json.dumps({"event": event, event: content}), flush=True)
note(os.getpid())
"""


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pids"
    path.touch()
    monkeypatch.setenv("NOTED", str(path))
    return path


def run(
    program: str,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], object] = lambda _: None,
    visible_devices: tuple[str, ...] | None = None,
    **changes: Any,
) -> Answer | None:
    return run_command(
        make_measure_request(**changes),
        [sys.executable, "-c", NOTE + textwrap.dedent(program)],
        visible_devices=visible_devices,
        on_progress=on_progress,
        should_stop=should_stop,
    )


def noted_pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def stop_once_noted(path: Path, count: int) -> Callable[[], bool]:
    return lambda: len(noted_pids(path)) >= count


def test_progress_is_told_and_the_result_returned(noted: Path) -> None:
    told: list[Progress] = []

    answer = run(
        f"""
        answer("progress", {{"stage": "building"}})
        print("a model that talks")
        print("[1, 2]")
        answer("progress", {{"stage": "warmup", "done": 1, "total": 3}})
        answer("result", json.loads({RESULT!r}))
        """,
        on_progress=told.append,
    )

    assert answer == make_measurement_result()
    assert told == [Progress(stage="building"), Progress(stage="warmup", done=1, total=3)]


def test_a_failure_is_returned_as_it_is(noted: Path) -> None:
    answer = run('answer("failure", {"kind": "raised", "message": "KeyError: 1", "field": "spec.model"})')

    assert answer == MeasurementFailure(kind=FailureKind.RAISED, message="KeyError: 1", field="spec.model")


def test_the_child_reads_the_request_and_sees_its_devices_alone(noted: Path) -> None:
    program = """
        request = json.load(sys.stdin)
        seen = f"{request['num_layers']} {os.environ['CUDA_VISIBLE_DEVICES']} {os.environ['HF_HUB_OFFLINE']}"
        answer("failure", {"kind": "raised", "message": seen})
        """

    on_gpu = run(program, num_layers=7, visible_devices=("GPU-a", "GPU-b"), device="gpu")
    on_cpu = run(program, num_layers=7, visible_devices=("GPU-a", "GPU-b"))

    assert isinstance(on_gpu, MeasurementFailure)
    assert isinstance(on_cpu, MeasurementFailure)
    assert (on_gpu.message, on_cpu.message) == ("7 GPU-a,GPU-b 1", "7  1")


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("sys.exit(7)", "ended with status 7, without an answer: it said nothing"),
        ("sys.exit('a reason')", "ended with status 1, without an answer: a reason"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV, without an answer"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, as the system's out-of-memory killer does"),
        ("print('garbage'); print('{')", "ended with status 0, without an answer"),
        ("print('[' * 100000)", "ended with status 0, without an answer"),
        ("""answer("result", {"outcome": "great"})""", "gave an answer that is none: "),
        ("""print('{"event": "result"}')""", "gave an empty answer: result"),
        ("""print('{"event": "result", "more": 1}')""", "gave an answer that is none: "),
        ("while True: sys.stdout.write('x' * 65536)", "killed as it printed without end"),
        ("while True: print('x' * 65536)", "killed as it printed without end"),
    ],
)  # fmt: skip
def test_no_answer_is_a_failure_that_says_what_happened(noted: Path, program: str, said: str) -> None:
    answer = run(program)

    assert isinstance(answer, MeasurementFailure)
    assert answer.kind is FailureKind.DIED
    assert said in answer.message
    assert len(answer.message) < 5000
    assert not any(is_running(pid) for pid in noted_pids(noted))


def test_only_the_end_of_what_it_says_on_standard_error_is_kept(noted: Path) -> None:
    answer = run("sys.stderr.write('x' * 10**6); sys.exit('the reason')")

    assert isinstance(answer, MeasurementFailure)
    assert answer.message.endswith("the reason")
    assert len(answer.message) < 2200


def test_a_program_that_is_not_there_is_said() -> None:
    answer = run_command(
        make_measure_request(),
        ["/no/such/python"],
        visible_devices=None,
        on_progress=lambda _: None,
        should_stop=lambda: False,
    )

    assert isinstance(answer, MeasurementFailure)
    assert "/no/such/python cannot be started (No such file or directory)" in answer.message


def test_one_that_never_answers_is_killed_in_time(noted: Path) -> None:
    answer = run(
        """
        answer("progress", {"stage": "measuring", "done": 2, "total": 10})
        while True: pass
        """,
        timeout_seconds=2.0,
    )

    assert answer == MeasurementFailure(
        kind=FailureKind.TIMED_OUT,
        message="no result within 2 s; it was measuring, 2 of 10 done",
        field="timeout_seconds",
    )
    assert not any(is_running(pid) for pid in noted_pids(noted))


@pytest.mark.parametrize(
    ("program", "count"),
    [
        ("while True: pass", 1),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nnote(0)\nwhile True: time.sleep(1)", 2),
        ("os.kill(os.getpid(), signal.SIGSTOP)", 1),
        ("note(subprocess.Popen(['sleep', '600']).pid)\ntime.sleep(600)", 2),
        ("note(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)\ntime.sleep(600)", 2),
        (
            # Its own parent ends at once: only the mark says whose it is.
            "subprocess.run(['sh', '-c', 'setsid sleep 600 & echo $! >> \"$NOTED\"'])\ntime.sleep(600)",
            2,
        ),
        ("while True: print('x' * 1000, flush=True)", 1),
        ("while True: sys.stderr.write('x' * 1000)", 1),
    ],
    ids=["loops", "ignores SIGTERM", "stopped", "starts another", "new session", "daemon", "floods stdout", "stderr"],
)  # fmt: skip
def test_one_that_is_stopped_is_gone_with_all_it_started(noted: Path, program: str, count: int) -> None:
    assert run(program, should_stop=stop_once_noted(noted, count)) is None

    pids = [pid for pid in noted_pids(noted) if pid]
    assert pids
    assert not any(is_running(pid) for pid in pids)


def test_what_a_child_that_answered_left_running_is_ended(noted: Path) -> None:
    answer = run(
        f"""
        note(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
        answer("result", json.loads({RESULT!r}))
        """
    )

    assert isinstance(answer, MeasurementResult)
    assert len(noted_pids(noted)) == 2
    assert not any(is_running(pid) for pid in noted_pids(noted))


def test_an_error_of_whoever_is_told_ends_the_child(noted: Path) -> None:
    def refuse(_: Progress) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        run('answer("progress", {"stage": "building"})\nwhile True: pass', on_progress=refuse)

    assert not any(is_running(pid) for pid in noted_pids(noted))


def test_a_parent_that_is_killed_takes_its_child_along(noted: Path) -> None:
    script = """
import sys
from tests.profiler.measure.test_child_process import run
run("note(0)\\nwhile True: time.sleep(1)")
"""
    parent = subprocess.Popen([sys.executable, "-c", script])
    assert until(lambda: len(noted_pids(noted)) == 2)
    (child, _) = noted_pids(noted)
    parent.kill()
    parent.wait()

    assert wait_until_gone(child)


def test_several_gpus_are_measured_by_a_process_each_that_reads_the_whole_request(noted: Path) -> None:
    """Under the real torchrun: its workers have sessions of their own and one standard input."""
    request = make_measure_request(
        device="gpu",
        spec={"hardware": {"gpu": "h100", "num_gpus": 2}, "parallelism": {"dp_replicate_degree": 2}},
    )
    command = measure_command(request)
    at = command.index("whatfits.profiler.run")
    program = """
layers = json.load(sys.stdin)["num_layers"]
if os.environ["RANK"] == "1":
    note(layers)
while True: time.sleep(1)
"""
    assert command[at - 1] == "-m"
    stand_in = [*command[: at - 1], "-c", NOTE + program]

    answer = run_command(
        MeasureRequest.model_validate({**json.loads(request.model_dump_json()), "num_layers": 10**9}),
        stand_in,
        visible_devices=None,
        on_progress=lambda _: None,
        should_stop=lambda: len(noted_pids(noted)) == 3,
    )

    assert answer is None
    pids = [pid for pid in noted_pids(noted) if pid != 10**9]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)


def test_one_gpu_and_a_cpu_are_measured_by_one_process() -> None:
    one = make_measure_request(device="gpu")
    on_cpu = make_measure_request(spec={"hardware": {"gpu": "h100", "num_gpus": 8}})

    assert (
        measure_command(one, "py") == measure_command(on_cpu, "py") == ["py", "-m", "whatfits.profiler.run"]
    )
