"""Pages by position in an order, so that rows that come in between move nothing."""

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from whatfits.estimator.errors import InputError

__all__ = ["DEFAULT_LIMIT", "MAX_LIMIT", "Page", "Position", "check_limit"]

DEFAULT_LIMIT = 50
MAX_LIMIT = 200

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """Some items, and where the next page begins; null on the last one."""

    items: tuple[Item, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The place of a row in the order by time and id."""

    created_at: datetime
    id: str

    def to_cursor(self) -> str:
        """Text that a client gives back as it is."""
        content = json.dumps([self.created_at.isoformat(), self.id])
        return base64.urlsafe_b64encode(content.encode()).decode("ascii")

    @classmethod
    def from_cursor(cls, cursor: str) -> "Position":
        """The position that a cursor stands for.

        Raises:
            InputError: It did not come from `to_cursor`.
        """
        try:
            moment, id_ = json.loads(base64.b64decode(cursor, altchars=b"-_", validate=True))
            position = cls(created_at=datetime.fromisoformat(moment), id=id_)
        except (binascii.Error, ValueError, TypeError) as error:
            raise _bad_cursor(cursor) from error
        if position.created_at.tzinfo is None or not isinstance(id_, str):
            raise _bad_cursor(cursor)
        return position


def check_limit(limit: int) -> int:
    """Return a number of items that a page may have.

    Raises:
        InputError: It is none.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise InputError("limit", limit, f"an integer from 1 to {MAX_LIMIT}")
    return limit


def _bad_cursor(cursor: str) -> InputError:
    return InputError("cursor", cursor, "the next_cursor of the page before")
