"""What the exit status of every command means."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit status of `whatfits`, for scripts and CI jobs."""

    OK = 0
    DOES_NOT_FIT = 1
    """The run does not fit; for `plan`: nothing does."""
    BAD_INPUT = 2
    """The question cannot be asked like this; standard error says which field and what is accepted."""
    FAILED = 3
    """Internal or service error, or a part of whatfits is not installed."""
    UNCERTAIN = 4
    """Only under `--strict`: the interval of the answer straddles the limit."""
