"""Units: bytes, seconds and plain counts inside; GiB, ms and "13.0 B" only where a person reads.

GiB is 2**30 bytes and is what is shown. GB is 10**9 bytes and appears only in vendors' capacity text.
"""

import re
from typing import Final

from whatfits.estimator.errors import InputError

__all__ = [
    "ALLOCATION_GRANULARITY",
    "GB",
    "GIB",
    "KIB",
    "MIB",
    "TERA",
    "format_bytes",
    "format_count",
    "format_seconds",
    "parse_bytes",
    "round_allocation",
]

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
GB: Final = 10**9
TERA: Final = 10**12

ALLOCATION_GRANULARITY: Final = 512
"""Bytes to which the CUDA caching allocator rounds every request (`kMinBlockSize`, c10/cuda/CUDACachingAllocator)."""

_BYTE_UNITS: Final = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_BYTES_TEXT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_BYTES_ACCEPTED: Final = "a whole number of bytes, or a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"


def round_allocation(n: int) -> int:
    """Bytes the caching allocator hands out for a request of `n` bytes; 0 for an empty tensor."""
    # A power of two, whose negative is the mask of its multiples: plans round by the hundred thousand.
    return (n + ALLOCATION_GRANULARITY - 1) & -ALLOCATION_GRANULARITY


def parse_bytes(value: int | str, *, field: str = "bytes") -> int:
    """Bytes from a count or from text such as "80GiB" (2**30) or "80 GB" (10**9)."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value >= 0:
            return value
        raise InputError(field, value, _BYTES_ACCEPTED)
    match = _BYTES_TEXT.fullmatch(value) if isinstance(value, str) else None
    factor = _BYTE_UNITS.get(match[2].upper() or "B") if match else None
    if match is None or factor is None:
        raise InputError(field, value, _BYTES_ACCEPTED)
    if "." not in match[1]:
        return int(match[1]) * factor
    return round(float(match[1]) * factor)


def format_bytes(n: float) -> str:
    """`n` bytes for a reader: "75.35 GiB", "512 B"."""
    for unit, size in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n) >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration for a reader: "12.3 ms", "1.25 s", "2 min 5 s", "3 h 20 min"."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_count(n: float) -> str:
    """A count for a reader: "13.0 B" (10**9), "58.1 M", "950"."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(n) >= size:
            return f"{n / size:.1f} {unit}"
    return f"{n:.0f}"
