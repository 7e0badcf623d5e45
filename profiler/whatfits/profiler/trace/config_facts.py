"""What a config says about its model, found by building it on `meta`; plain data that travels between processes."""

from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["ConfigFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFacts:
    """Facts of one config's model.

    Attributes:
        architecture: class of transformers whose loss is trained.
        inputs: tokens | tokens_and_targets | images | images_and_tokens | features: what a micro-batch holds.
        num_layers: layers of the stack whose depth can be varied, else all layers.
        depths: layers of the traces that show how the stack repeats; empty where it does not.
        num_parameters: each shared one counted once.
        num_active_parameters: those a token passes through, of a mixture of experts.
        hidden_size: width of the residual stream.
        longest: tokens of a sequence that its positions allow.
        windows: sequence lengths above which attention is cut, or there is more than one chunk; each changes what happens.
        chunks: lengths that the sequence is padded to a multiple of.
        matrices_only: whether no parameter has more than two dims.
        checkpoints: whether transformers can compute its layers' activations again.
        intermediate_size: and all that follow: none where the model has no such number.
    """

    architecture: str
    inputs: str
    num_layers: int
    depths: tuple[int, ...]
    num_parameters: int
    num_active_parameters: int | None
    hidden_size: int
    longest: int | None
    windows: tuple[int, ...]
    chunks: tuple[int, ...]
    tied: bool
    matrices_only: bool
    checkpoints: bool
    intermediate_size: int | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_dim: int | None
    vocab_size: int | None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ConfigFacts":
        """Inverse of `to_json`; what is left out is none, or there is none of it."""
        empty = {f.name: () if str(f.type).startswith("tuple") else None for f in fields(cls)}
        data = {**empty, **data}
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in data.items()}
        return cls(**values)
