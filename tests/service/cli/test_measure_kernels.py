"""`whatfits measure --micro`, with a stand-in for the process that measures."""

import sys
from pathlib import Path

import pytest

from tests.service.cli.measuring import run


def test_kernels_are_timed_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "python"
    path.write_text(
        f"""#!{sys.executable}
import json
environment = {{"device_name": "a CPU", "packages": {{"torch": "2.13"}}, "python": "3", "platform": "Linux"}}
kernel = {{"kernel": "mm", "shape": {{"m": 4}}, "dtype": "bf16", "samples_seconds": [2.0, 1.0, 4.0], "flops": 4e12,
          "bytes": None}}
for line in (
    {{"event": "environment", "environment": environment}}, {{"event": "kernel", "kernel": kernel}}, {{"event": "done"}}
):
    print(json.dumps(line))
"""
    )
    path.chmod(0o755)

    code, out, err = run(capsys, "--micro", "--device", "cpu", "--python", str(path))

    assert (code, err) == (0, "")
    assert "a CPU, torch 2.13" in out
    assert out.splitlines()[-1].split() == ["mm", "m=4", "bf16", "2", "s", "2", "-"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--device", "cpu"], "error: SPEC: not given; accepted: a file, - for standard input, or --micro"),
        (["run.json", "--micro", "--device", "cpu"], "error: SPEC: kernels are timed without a run"),
        (
            ["--micro", "--device", "cpu", "--find", "max-micro-batch"],
            "error: --find: kernels are timed without a run",
        ),
        (["--micro", "--layers", "2"], "error: --layers: kernels are timed without a run"),
        (["--micro", "--steps", "5"], "error: --steps: kernels are timed without a run"),
        (["--micro", "--warmup", "1"], "error: --warmup: kernels are timed without a run"),
        (["--micro", "--cap", "2GiB"], "error: --cap: kernels are timed without a run"),
        (["--micro", "--snapshot"], "error: --snapshot: kernels are timed without a run"),
    ],
)
def test_either_a_run_or_kernels(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, _, err = run(capsys, *arguments)

    assert code == 2
    assert err.startswith(said)
