"""Loading a library when its optimizer is built, with an error that says how to get it."""

import importlib
from typing import Any

__all__ = ["load_library"]


def load_library(module: str, extra: str) -> Any:  # a module of a library, whose types are its own
    """Import a library.

    Raises:
        ImportError: it is not installed; the message names the extra of whatfits that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is not installed or does not load ({error}); pip install 'whatfits[{extra}]' brings it"
        ) from error
