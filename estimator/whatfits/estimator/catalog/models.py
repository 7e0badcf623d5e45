"""The model catalog: names people type, and Hugging Face configs of their own."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from whatfits.estimator.catalog.config_checks import check_config
from whatfits.estimator.catalog.config_models import model_from_any_config
from whatfits.estimator.catalog.llama import is_modelled, model_from_config
from whatfits.estimator.catalog.names import model_name_key
from whatfits.estimator.catalog.rows import catalog_rows
from whatfits.estimator.errors import InputError, UnknownNameError, UnsupportedError, near_matches
from whatfits.estimator.specs.model import ModelSpec

__all__ = [
    "catalog_config",
    "find_model",
    "load_models",
    "model_argument",
    "read_model_config",
    "resolve_model",
]

_ACCEPTED = "a model of the catalog (`whatfits models` lists them), or a Hugging Face config.json"
_LARGEST_CONFIG_BYTES = 4 * 2**20

# A Hugging Face config holds arbitrary JSON.
Config = dict[str, Any]


@lru_cache(maxsize=1)
def load_models() -> Mapping[str, ModelSpec]:
    """All models by name, in the order of the data file."""
    return MappingProxyType({row["name"]: _model_from_row(row) for row in catalog_rows()})


def catalog_config(name: str) -> Config:
    """The keys of the Hugging Face config that decide the shapes of a catalog model."""
    model = find_model(name)
    return next(dict(row["config"]) for row in catalog_rows() if row["name"] == model.name)


def find_model(model: str | Path | Mapping[str, Any], *, field: str = "model") -> ModelSpec:
    """The model a name, a config, or a file with a config means.

    Text is always a name: files are read only where a `Path` says so, so that a question that came over the network
    cannot name one.

    Raises:
        UnknownNameError: No model has that name.
        UnsupportedError: The architecture is not modelled yet.
        InputError: The config is not usable.
    """
    return resolve_model(model, field=field)[0]


def resolve_model(
    model: str | Path | Mapping[str, Any], *, field: str = "model"
) -> tuple[ModelSpec, tuple[str, ...]]:
    """The model that is meant, and what had to be assumed to say so."""
    if isinstance(model, Path):
        config = read_model_config(model, field=field)
        check_config(config, field)
        return _read_model(config, source=str(model), field=field), ()
    if not isinstance(model, str):
        check_config(model, field)
        return _read_model(model, field=field), ()
    if model.startswith("python:"):
        raise UnsupportedError(
            field, model, _ACCEPTED, reason="a module of your own is for `whatfits trace` alone"
        )
    key = model_name_key(model)
    exact = _exact_names().get(key)
    if exact is not None:
        return exact, ()
    default = _default_names().get(key)
    if default is not None:
        return default, (f"{model} is read as {default.name} ({default.source}).",)
    spellings = {spelling: known.name for known in load_models().values() for spelling in _spellings(known)}
    close = dict.fromkeys(spellings[match] for match in near_matches(model, spellings, limit=8))
    reason = f"no model is called {model!r}"
    raise UnknownNameError(field, model, _ACCEPTED, reason=reason, suggestions=list(close)[:3])


def _read_model(
    config: Mapping[str, Any], *, name: str | None = None, source: str = "config.json", field: str = "model"
) -> ModelSpec:
    """By the shipped classes of an architecture where they cover the config, else by a trace of it alone."""
    read = model_from_config if is_modelled(config) else model_from_any_config
    return read(config, name=name, source=source, field=field)


def model_argument(text: str) -> str | Config:
    """What a person on a command line means: a catalog name, or the content of the file or folder at that path."""
    if model_name_key(text) in _exact_names() or model_name_key(text) in _default_names():
        return text
    path = Path(text).expanduser()
    if path.is_file() or path.is_dir() or path.suffix == ".json":
        return read_model_config(path)
    return text


def read_model_config(path: Path, *, field: str = "model") -> Config:
    """The content of a config.json, or of the one in a folder.

    Raises:
        InputError: There is no such file, or it does not hold a JSON object.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        if file.stat().st_size > _LARGEST_CONFIG_BYTES:
            raise InputError(field, str(path), _ACCEPTED, reason=f"{file} is too large to be a config")
        config = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise InputError(field, str(path), _ACCEPTED, reason=f"{file} is nested too deeply") from error
    except OSError as error:
        raise InputError(
            field, str(path), _ACCEPTED, reason=f"{file} cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise InputError(field, str(path), _ACCEPTED, reason=f"{file} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(field, str(path), _ACCEPTED, reason=f"{file} does not hold a JSON object")
    return config


def _model_from_row(row: Config) -> ModelSpec:
    model = _read_model(row["config"], name=row["name"], source=row["source"], field=row["name"])
    if model.num_parameters != row["num_parameters"]:
        raise AssertionError(
            f"{model.name}: {model.num_parameters} parameters, the data says {row['num_parameters']}"
        )
    names = {key: tuple(row.get(key, ())) for key in ("aliases", "default_for")}
    return model.model_copy(update={**names, "hf_id": row.get("hf_id"), "note": row.get("note")})


def _spellings(model: ModelSpec) -> tuple[str, ...]:
    hub_names = (model.hf_id, model.hf_id.rpartition("/")[2]) if model.hf_id else ()
    return (model.name, *model.aliases, *hub_names)


@lru_cache(maxsize=1)
def _exact_names() -> Mapping[str, ModelSpec]:
    return {model_name_key(name): model for model in load_models().values() for name in _spellings(model)}


@lru_cache(maxsize=1)
def _default_names() -> Mapping[str, ModelSpec]:
    return {model_name_key(name): model for model in load_models().values() for name in model.default_for}
