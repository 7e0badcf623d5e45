"""What may be asked over the network."""

from typing import Any

from whatfits.estimator.errors import InputError

__all__ = ["check_remote_model"]

_PATH_STARTS = ("/", "./", "../", "~", "file:")
_ACCEPTED = (
    "the name of a model of the catalog, or the content of a Hugging Face config.json; "
    "files and Python modules are for the command line only"
)


# A Hugging Face config holds arbitrary JSON.
def check_remote_model(model: str | dict[str, Any]) -> None:
    """Refuse a model that names code or a file on the server.

    Raises:
        InputError: `model` is `python:...` or a path.
    """
    if not isinstance(model, str):
        return
    text = model.strip().casefold()
    if text.startswith("python:"):
        raise InputError("model", model, _ACCEPTED, reason="code is never loaded for a request")
    if text.startswith(_PATH_STARTS) or text.endswith(".json") or "\\" in text:
        raise InputError("model", model, _ACCEPTED, reason="files are never read for a request")
