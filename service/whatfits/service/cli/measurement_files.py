"""Files of measurements: JSON lines, gzipped where the name ends in .gz."""

import gzip
import sys
import tempfile
from pathlib import Path

from sqlalchemy import Engine

from whatfits.estimator.specs import Measurement
from whatfits.service.cli.failures import SpecFileError
from whatfits.service.storage.exchange import export_lines, read_lines
from whatfits.service.storage.measurements import MeasurementFilters, MeasurementStore

_STANDARD = Path("-")


def read_measurements(file: Path) -> tuple[Measurement, ...]:
    """The measurements of a file; their source is its name where they came from a store's own agents.

    Raises:
        SpecFileError: It cannot be read as text.
        InputError: A line holds no measurement.
    """
    name = "standard input" if file == _STANDARD else file.name
    try:
        data = sys.stdin.buffer.read() if file == _STANDARD else file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8-sig")
    except (EOFError, OSError) as error:
        raise SpecFileError(
            f"{file}: cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    except UnicodeDecodeError as error:
        raise SpecFileError(f"{file}: not UTF-8 text (byte {error.start})") from error
    # Not splitlines(): JSON strings may hold the other characters that end lines.
    return read_lines(text.split("\n"), source=name)


def write_measurements(engine: Engine, file: Path, filters: MeasurementFilters) -> None:
    """Write what the filters leave; the file is replaced when all of it is written.

    Raises:
        SpecFileError: It cannot be written.
    """
    lines = export_lines(MeasurementStore(engine), filters)
    if file == _STANDARD:
        sys.stdout.writelines(lines)
        return
    data = "".join(lines).encode()
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}-", delete=False) as part:
            part.write(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
        Path(part.name).replace(file)
    except OSError as error:
        raise SpecFileError(f"{file}: cannot be written ({error.strerror})") from error
