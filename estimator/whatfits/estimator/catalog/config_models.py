"""Models known by their config alone: what building one with transformers found out, shipped or kept by the user."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from whatfits.estimator.catalog.config_checks import check_num_parameters
from whatfits.estimator.catalog.rows import catalog_rows
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.profile.config_text import canonical_config, config_id
from whatfits.estimator.profile.store import user_profiles
from whatfits.estimator.specs.model import ModelSpec

__all__ = ["UntracedModelError", "keep_facts", "known_facts", "model_from_any_config", "model_from_facts"]

_FACTS_FOLDER = "configs"
_FACT_KEYS = (
    "num_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "num_parameters",
    "num_active_parameters",
    "inputs",
    "architecture",
)


class UntracedModelError(UnsupportedError):
    """A config of a model nobody has built yet; `config` is its canonical text."""

    def __init__(self, field: str, config: str, model_type: str) -> None:
        self.config = config
        reason = (
            f"no {model_type} model with this config was traced yet; `whatfits trace config.json` in an environment "
            "with torch and transformers does so, and the answer is kept"
        )
        super().__init__(
            field, model_type, "a model of the catalog, or a config that was traced", reason=reason
        )


def model_from_any_config(
    config: Mapping[str, Any], *, name: str | None, source: str, field: str
) -> ModelSpec:
    """The model of a config of any architecture, as far as it was built once.

    Raises:
        InputError: the config names no model type, asks for code of its own, or describes a model of absurd size.
        UntracedModelError: it was not.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        reason = "the config has no model_type"
        raise InputError(f"{field}.model_type", model_type, "a model type of transformers", reason=reason)
    if config.get("trust_remote_code"):
        reason = "code that comes with a model is never run"
        accepted = "nothing; a model type that transformers ships"
        raise InputError(f"{field}.trust_remote_code", config["trust_remote_code"], accepted, reason=reason)
    if config.get("quantization_config") is not None:
        reason = "quantization_config is not modelled yet"
        raise UnsupportedError(
            f"{field}.quantization_config", config["quantization_config"], "weights that are not quantised", reason=reason
        )  # fmt: skip
    text = canonical_config(config)
    facts = known_facts(text)
    if facts is None:
        raise UntracedModelError(field, text, model_type)
    check_num_parameters(facts["num_parameters"], field)
    found = name or str(config.get("_name_or_path") or model_type)
    return model_from_facts(text, facts, name=found, source=source)


def known_facts(text: str) -> Mapping[str, Any] | None:
    """What building a config's model found out, shipped or kept; none if nobody built it."""
    return _shipped_facts().get(config_id(text)) or _kept_facts(config_id(text))


def model_from_facts(text: str, facts: Mapping[str, Any], *, name: str, source: str) -> ModelSpec:
    """The model of a config, from what building it found out."""
    return ModelSpec.model_validate(
        {
            **{key: facts.get(key) for key in _FACT_KEYS},
            "matrices_only": facts["matrices_only"],
            "windows": tuple(facts.get("windows") or ()),
            "chunks": tuple(facts.get("chunks") or ()),
            "name": name,
            "source": source,
            "config": text,
            "tie_embeddings": facts["tied"],
            "max_position_embeddings": facts.get("longest"),
        }
    )


def keep_facts(text: str, facts: Mapping[str, Any]) -> None:
    """Keep what building a config's model found out, for later answers."""
    path = _facts_file(config_id(text))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(
        json.dumps({"config": text, "facts": dict(facts)}, sort_keys=True), encoding="utf-8"
    )
    unfinished.replace(path)


def _facts_file(name: str) -> Path:
    return user_profiles() / _FACTS_FOLDER / f"{name}.json"


def _kept_facts(name: str) -> dict[str, Any] | None:
    path = _facts_file(name)
    if not path.is_file():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["facts"]
    return facts


@lru_cache(maxsize=1)
def _shipped_facts() -> Mapping[str, Mapping[str, Any]]:
    rows = (row for row in catalog_rows() if "facts" in row)
    return MappingProxyType({config_id(canonical_config(row["config"])): row["facts"] for row in rows})
