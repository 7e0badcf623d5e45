"""Calibrations and traced profiles, on SQLite and on PostgreSQL."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from tests.measurements import NOON
from whatfits.service.storage.errors import ConflictError
from whatfits.service.storage.records import (
    Calibration,
    CalibrationStore,
    TracedProfileStore,
)


def make_calibration(id: str, *, device: str = "h100-80gb-sxm", hours: int = 0) -> Calibration:  # noqa: A002
    content = {"context_bytes": 812_646_400, "note": "\0"}
    return Calibration(id=id, device=device, content=content, created_at=NOON + timedelta(hours=hours))


def test_the_newest_calibration_of_a_device_counts(engine: Engine) -> None:
    store = CalibrationStore(engine)
    newest = make_calibration("a", hours=2)
    for calibration in (newest, make_calibration("b"), make_calibration("c", device="b200", hours=3)):
        store.add(calibration)
    assert store.newest("h100-80gb-sxm") == newest
    assert store.newest("a100-80gb-sxm") is None
    with pytest.raises(ConflictError, match="calibration 'a' already"):
        store.add(newest)


def test_a_traced_profile_is_kept_by_stack_and_name_and_replaced(engine: Engine) -> None:
    store = TracedProfileStore(engine)
    store.put("torch-2.13", "b.table.json.gz", b"\0\xff")
    store.put("torch-2.13", "a.table.json.gz", b"1")
    store.put("torch-2.11", "a.table.json.gz", b"2")
    store.put("torch-2.13", "a.table.json.gz", b"3")
    assert store.get("torch-2.13", "b.table.json.gz") == b"\0\xff"
    assert store.get("torch-2.13", "a.table.json.gz") == b"3"
    assert store.get("torch-2.12", "a.table.json.gz") is None
    assert store.names("torch-2.13") == ("a.table.json.gz", "b.table.json.gz")
