"""What cannot be measured here is refused before a process is started."""

import json
import subprocess
import sys
from pathlib import Path

from tests.factories import make_measure_request
from whatfits.estimator.specs.measurement import FailureKind, MeasurementFailure
from whatfits.service.measure_child import missing_extra, run_child


def test_more_gpus_than_a_machine_has_are_refused_by_field() -> None:
    request = make_measure_request(
        device="gpu", spec={"hardware": {"gpu": "h100", "num_gpus": 16, "gpus_per_node": 8}}
    )

    answer = run_child(request, visible_devices=None, on_progress=lambda _: None, should_stop=lambda: False)

    assert answer == MeasurementFailure(
        kind=FailureKind.REFUSED,
        message="16 GPUs are more than the 8 of one machine",
        field="spec.hardware.num_gpus",
    )


def test_where_torch_is_there_nothing_is_missing() -> None:
    assert missing_extra() is None


def test_where_torch_is_missing_the_command_names_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"model": "llama-60m", "hardware": {"gpu": "h100"}}))
    program = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from whatfits.service.cli import main\n"
        "main(['measure', sys.argv[1], '--device', 'cpu'])"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=False, capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "error: measuring needs torch, not installed here: pip install 'whatfits[agent]'\n"
    )
