"""Every error the estimator raises on purpose.

    WhatfitsError
    `-- InputError            a field has a value that cannot be used; names field, value and what is accepted
        |-- UnknownNameError  a name that is in no list; carries the near matches
        `-- UnsupportedError  a valid question that is not modelled yet; says what is

Anything else that escapes is a defect.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["InputError", "UnknownNameError", "UnsupportedError", "WhatfitsError", "near_matches"]

_SHOWN_VALUE_LENGTH = 80


class WhatfitsError(Exception):
    """Base of all errors raised on purpose."""


class InputError(WhatfitsError):
    """A field whose value cannot be used.

    Args:
        field: Path of the field in the input, such as `training.seq_len`.
        value: What was given.
        accepted: What the field takes, as a phrase.
        reason: Why the value is refused, with the numbers; a plain phrase is made when it is left out.
        suggestions: Accepted values close to the one given.
    """

    def __init__(
        self,
        field: str,
        value: object,
        accepted: str,
        *,
        reason: str | None = None,
        suggestions: Iterable[str] = (),
    ) -> None:
        self.field = field
        self.value = value
        self.accepted = accepted
        self.reason = reason if reason is not None else f"{_shown(value)} is not accepted"
        self.suggestions = tuple(suggestions)
        super().__init__(self._sentence())

    def at(self, field: str, *, where: str = "") -> "InputError":
        """The same of a field with another name, as where what was read is part of something larger; `where` in words."""
        kind = UnsupportedError if isinstance(self, UnsupportedError) else InputError
        reason = f"{self.reason} ({where})" if where else self.reason
        return kind(field, self.value, self.accepted, reason=reason, suggestions=self.suggestions)

    def _sentence(self) -> str:
        sentence = f"{self.field}: {self.reason}; accepted: {self.accepted}"
        if self.suggestions:
            sentence += f"; did you mean {' or '.join(self.suggestions)}?"
        return sentence


class UnknownNameError(InputError):
    """A name that is in no list."""


class UnsupportedError(InputError):
    """A valid question that is not modelled yet."""


def near_matches(name: str, known: Iterable[str], *, limit: int = 3) -> tuple[str, ...]:
    """The known names that look most like `name`, best first, without regard to case."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = get_close_matches(name.casefold(), by_folded, n=limit, cutoff=0.6)
    return tuple(by_folded[match] for match in found)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_VALUE_LENGTH else text[: _SHOWN_VALUE_LENGTH - 3] + "..."
