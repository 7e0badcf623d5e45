"""What a config is refused for, with the key at fault where one is known. Standard library only."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["ConfigError", "config_error"]

_CHECKED_FIELD = re.compile(r"Validation error for field '(\w+)'")
"""How huggingface_hub's StrictDataclassFieldValidationError begins, which transformers' configs raise."""


class ConfigError(ValueError):
    """A config that names no model which transformers can build; `field` is the key at fault, if it is one."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


# A Hugging Face config holds arbitrary JSON.
def config_error(what: str, error: Exception, config: Mapping[str, Any]) -> ConfigError:
    """What transformers raised over a config, in a sentence that begins with `what`."""
    return ConfigError(f"{what}: {type(error).__name__}: {error}", _field_of(error, config))


def _field_of(error: Exception, config: Mapping[str, Any]) -> str:
    """The key an error is about: one that transformers' checks name, or one whose value is in no table of names."""
    checked = _CHECKED_FIELD.match(str(error))
    if checked is not None:
        return checked[1] if checked[1] in config else ""
    looked_up = error.args[0] if isinstance(error, KeyError) and error.args else None
    return next((key for key, value in config.items() if _names(value, looked_up)), "")


def _names(value: Any, looked_up: object) -> bool:
    """Whether a value, or one inside it, is the name that was looked up."""
    if isinstance(value, dict):
        return any(_names(held, looked_up) for held in value.values())
    return isinstance(value, str) and value == looked_up
