"""Whatever the description of the API allows, and what it forbids, is answered as it says.

That all it allows is accepted is not asked: which names exist and which numbers go together is more than a JSON schema
can say.
"""

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tests.fakes import FakePlanner
from whatfits.service.app import create_app
from whatfits.service.settings import Settings

_folder = tempfile.TemporaryDirectory(prefix="whatfits-fuzz-")
app = create_app(Settings(database_url=f"sqlite:///{_folder.name}/api.db"), planner=FakePlanner())
schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app)
# Values that every question needs; without them few generated ones come past the first name.
VALID: dict[str, dict[str, Any]] = {
    "/api/v1/plans": {"model": "llama-13b", "hardware": "8xa100-80gb"},
    "/api/v1/estimates": {"model": "llama-13b", "hardware": {"gpu": "h100", "num_gpus": 8}},
    "/api/v1/measurements": {"spec": {"model": "llama-13b", "hardware": {"gpu": "h100"}}},
    "/api/v1/campaigns": {"matrix": {"base": {"spec": {"model": "llama-13b", "hardware": {"gpu": "h100"}}}}},
}


@pytest.fixture(scope="module", autouse=True)
def _closed_in_the_end() -> Iterator[None]:
    yield
    app.state.backend.stop()
    _folder.cleanup()


@schema.parametrize()
@settings(max_examples=40, deadline=None)
def test_no_request_breaks_the_api(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@schema.include(path=list(VALID)).parametrize()
@settings(max_examples=40, deadline=None)
def test_no_question_about_a_known_model_and_gpu_breaks_the_api(case: schemathesis.Case[Any]) -> None:
    if isinstance(case.body, dict) and case.path in VALID:
        case.body |= VALID[case.path]
    case.call_and_validate(excluded_checks=[positive_data_acceptance, negative_data_rejection])
