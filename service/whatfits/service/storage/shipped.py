"""Measurements that come with the package: loaded once into each store, and again where a new version brings others."""

import gzip
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import resources
from importlib.resources.abc import Traversable

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from whatfits.service.storage.database import open_database, reading, writing
from whatfits.service.storage.exchange import read_lines
from whatfits.service.storage.migrate import migrate
from whatfits.service.storage.rows import insert_new, store_measurement
from whatfits.service.storage.tables import MeasurementRow, ShippedFileRow

__all__ = ["load_shipped", "prepare_database", "shipped_files"]

_SUFFIX = ".jsonl.gz"


def prepare_database(url: str) -> Engine:
    """Open a database with the tables of this version and the measurements that come with it.

    Raises:
        InputError: Not the URL of a database.
        StorageError: It cannot be reached or changed.
    """
    migrate(url)
    engine = open_database(url)
    load_shipped(engine, shipped_files())
    return engine


def shipped_files() -> tuple[Traversable, ...]:
    """Files of the package, by name."""
    folder = resources.files("whatfits.service.storage") / "data"
    found = (file for file in folder.iterdir() if file.name.endswith(_SUFFIX))
    return tuple(sorted(found, key=lambda file: file.name))


def load_shipped(engine: Engine, files: Iterable[Traversable]) -> int:
    """Store the measurements of files that this store does not have in this form; how many there were.

    A file that changed replaces what was loaded from it before, which is known by the sources it names.
    """
    with reading(engine) as session:
        known = {row.name: row.sha256 for row in session.scalars(select(ShippedFileRow))}
    count = 0
    for file in files:
        content = file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if known.get(file.name) != digest:
            with writing(engine) as session:
                count += _load(session, file.name, content, digest)
    return count


def _load(session: Session, name: str, content: bytes, digest: str) -> int:
    lines = gzip.decompress(content).decode().split("\n")
    measurements = read_lines(lines, source=name)
    sources = {measurement.source for measurement in measurements}
    session.execute(delete(MeasurementRow).where(MeasurementRow.source.in_(sources)))
    for measurement in measurements:
        store_measurement(session, measurement)
    session.execute(delete(ShippedFileRow).where(ShippedFileRow.name == name))
    insert_new(session, ShippedFileRow, {"name": name, "sha256": digest, "loaded_at": datetime.now(UTC)})
    return len(measurements)
