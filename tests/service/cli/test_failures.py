"""Every failure is a sentence that names field, value and what is accepted, and the right exit status."""

from collections.abc import Mapping

import pytest
from pydantic import BaseModel, ValidationError

from whatfits.estimator.errors import InputError
from whatfits.estimator.specs import PlanRequest, RunSpec
from whatfits.service.cli.exit_codes import ExitCode
from whatfits.service.cli.failures import (
    MissingExtraError,
    ServiceStartError,
    SpecFileError,
    describe_failure,
)
from whatfits.service.storage.errors import ConflictError, NotFoundError, StorageUnavailableError

HARDWARE = {"gpu": "h100-80gb-sxm"}


def describe(model: type[BaseModel], question: Mapping[str, object]) -> tuple[str, ...]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(question)
    failure = describe_failure(caught.value)
    assert failure.exit_code is ExitCode.BAD_INPUT
    return failure.lines


def test_unknown_key_is_placed_and_the_nearest_named() -> None:
    question = {"model": "m", "hardware": HARDWARE, "training": {"optimizer": {"name": "adamw", "rnk": 4}}}
    (line,) = describe(RunSpec, question)
    assert line.startswith(
        "training.optimizer.rnk: there is no key 'rnk' here; accepted: the keys name, rank, "
    )
    assert line.endswith("; did you mean rank?")


def test_wrong_value_is_shown_with_what_is_accepted() -> None:
    (line,) = describe(PlanRequest, {"model": "m", "hardware": "h100", "seq_len": 0})
    assert line == "seq_len: 0 is not accepted; accepted: greater than or equal to 1"


def test_a_wrong_item_is_one_fault_and_not_a_second_one_of_its_list() -> None:
    (line,) = describe(PlanRequest, {"model": "m", "hardware": "h100", "optimizers": ["galor_adamw"]})
    assert line.startswith("optimizers[0]: 'galor_adamw' is not accepted; accepted: sgd, sgdm, adamw, ")
    assert "did you mean galore_adamw" in line


def test_two_faults_are_two_lines() -> None:
    lines = describe(RunSpec, {"model": "m", "hardware": {"gpu": "h100", "num_gpus": 0}, "oops": 1})
    assert [line.split(":")[0] for line in lines] == ["hardware.num_gpus", "oops"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("gpus", "8xa100", "a size"), ExitCode.BAD_INPUT),
        (SpecFileError("run.json: cannot be read."), ExitCode.BAD_INPUT),
        (MissingExtraError("not installed"), ExitCode.FAILED),
        (ServiceStartError("port taken"), ExitCode.FAILED),
        (StorageUnavailableError("database is locked"), ExitCode.FAILED),
        (ConflictError("taken"), ExitCode.BAD_INPUT),
        (NotFoundError("measurement", "m-1"), ExitCode.BAD_INPUT),
        (ZeroDivisionError("division by zero"), ExitCode.FAILED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_exit_status_tells_bad_input_from_our_own_failure(error: Exception, code: ExitCode) -> None:
    failure = describe_failure(error)
    assert failure.exit_code is code
    assert str(error) in failure.lines[0]
