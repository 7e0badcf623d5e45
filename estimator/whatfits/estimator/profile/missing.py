"""The error about a profile that nobody has traced yet: it names the command that makes one."""

import shlex
from collections.abc import Mapping, Sequence

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile.program import ProfileKey

__all__ = ["MissingProfileError", "trace_command"]


class MissingProfileError(UnsupportedError):
    """No profile of a structure class, or of any class, was traced with the libraries asked for."""

    def __init__(
        self,
        key: ProfileKey | None,
        stack: Mapping[str, str],
        available: Sequence[Mapping[str, str]],
        model: str = "MODEL",
    ) -> None:
        """What is missing and what there is.

        Args:
            key: the class; none when the stack has no profiles at all.
            stack: the library versions asked for.
            available: stacks that have the class.
            model: the model as `whatfits trace` takes it.
        """
        self.key = key
        self.stack = dict(stack)
        self._available = available
        accepted = "; ".join(_words(s) for s in available) or "no stack yet"
        subject = "no profile" if key is None else f"no profile of {key.slug}"
        command = trace_command(key, model)
        reason = (
            f"{subject} was traced with {_words(stack)}; `{command}` in an environment that has them makes it"
        )
        super().__init__("stack", dict(stack), accepted, reason=reason)

    def for_model(self, model: object) -> "MissingProfileError":
        """The same with the model in the command; one given inline has no name there, and is called config.json."""
        name = model if isinstance(model, str) else "config.json"
        return MissingProfileError(self.key, self.stack, self._available, name)


def trace_command(key: ProfileKey | None, model: str, python: str = "/path/to/python") -> str:
    """The command line that makes a profile of a class."""
    words = ["whatfits", "trace", model, "--python", python]
    if key is not None:
        words += ["--precision", key.precision, "--attention", key.attention]
        words += ["--checkpointing", key.checkpointing]
        words += ["--micro-batch-size", "1" if key.micro_batch == "one" else "2"]
        for flag, value, default in (
            ("--loss", key.loss, "standard"),
            ("--mask", key.mask, "none"),
            ("--first-kernel", key.first_kernel, "flash"),
        ):
            words += [flag, value] if value != default else []
        words += ["--seq-len", str(_length_in(key.sequence))] if key.sequence != "eights" else []
        words += ["--dropout", "0.1"] if key.dropout else []
        method, _, targets = key.adapter.partition(":")
        words += ["--adapter", method, "--lora-targets", targets] if method != "none" else []
    return shlex.join(words)


def _length_in(sequence: str) -> int:
    """A length of a class of lengths: above a window, or 2048 and less; a multiple of 8, or not."""
    kind, _, window = sequence.partition("_above_")
    eights = (int(window) // 16 + 2) * 16 if window else 2048
    return eights - {"eights": 0, "odd_eights": 8}.get(kind, 1)


def _words(stack: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(stack.items()))
