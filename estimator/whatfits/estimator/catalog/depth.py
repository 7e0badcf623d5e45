"""The same run with fewer layers, where the whole model would not fit or take too long."""

from typing import Any

from whatfits.estimator.catalog.models import catalog_config
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.specs.run import RunSpec

__all__ = ["run_at_depth"]

_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What the configs of transformers call the number of layers."""


def run_at_depth(run: RunSpec, num_layers: int, *, field: str = "num_layers") -> RunSpec:
    """The run of a model that has only its first layers.

    Raises:
        InputError: the model has fewer, or is not known.
        UnsupportedError: its config does not say how many it has.
    """
    # Any: a config holds arbitrary JSON. Of a config nobody has traced, nothing but the config is known.
    config: dict[str, Any] = catalog_config(run.model) if isinstance(run.model, str) else dict(run.model)
    name = run.model if isinstance(run.model, str) else str(config.get("model_type"))
    key = next((key for key in _DEPTH_KEYS if isinstance(config.get(key), int)), None)
    if key is None:
        reason = f"the config of {name} has none of {', '.join(_DEPTH_KEYS)}"
        accepted = "a model whose config states its number of layers"
        raise UnsupportedError(field, num_layers, accepted, reason=reason)
    if num_layers > config[key]:
        reason = f"{num_layers} is above the {config[key]} layers of {name}"
        raise InputError(field, num_layers, f"1 to {config[key]}", reason=reason)
    if num_layers == config[key]:
        return run
    return run.model_copy(update={"model": {**config, key: num_layers}})
