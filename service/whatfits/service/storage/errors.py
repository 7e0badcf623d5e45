"""Every error that the store raises on purpose.

WhatfitsError
|-- StorageError               the database cannot do what was asked now
|   |-- StorageUnavailableError    it cannot be reached, opened or locked in time
|   |-- StorageFullError           its disk is full
|   |-- UnmigratedError            it lacks tables, or has those of another version
|   `-- StoredDataError            what it holds cannot be read by this version
|-- ConflictError              what was asked contradicts what is stored
`-- NotFoundError              there is nothing with this id
"""

from whatfits.estimator.errors import WhatfitsError

__all__ = [
    "ConflictError",
    "NotFoundError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "StoredDataError",
    "UnmigratedError",
]


class StorageError(WhatfitsError):
    """The database cannot do what was asked now."""


class StorageUnavailableError(StorageError):
    """The database cannot be reached or opened, or others hold its lock; trying again may help."""


class StorageFullError(StorageError):
    """The disk of the database is full."""


class UnmigratedError(StorageError):
    """The database lacks tables that this version needs."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what} is not ready for this version ({reason}): run `whatfits migrate` on it")


class StoredDataError(StorageError):
    """What is stored cannot be read by this version."""


class ConflictError(WhatfitsError):
    """What was asked contradicts what is stored."""


class NotFoundError(WhatfitsError):
    """There is nothing with this id."""

    def __init__(self, kind: str, id: str) -> None:  # noqa: A002 - the name that all records use
        self.kind = kind
        self.id = id
        super().__init__(f"there is no {kind} {id!r}")
