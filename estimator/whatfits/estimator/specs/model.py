"""What is trained: the architecture facts of a model."""

from typing import Annotated

from pydantic import Field

from whatfits.estimator.specs.base import PositiveInt, Spec
from whatfits.estimator.specs.enums import Inputs

__all__ = ["ModelSpec"]


class ModelSpec(Spec):
    """A model resolved to the facts that decide its memory and work."""

    name: str
    """Catalog name, or the name found in the config."""
    architecture: str
    """The Hugging Face class whose code is modelled, such as `LlamaForCausalLM`."""
    num_layers: PositiveInt
    """Decoder layers."""
    hidden_size: PositiveInt
    """Width of the residual stream."""
    intermediate_size: PositiveInt | None
    """Width inside the feed-forward block."""
    num_attention_heads: PositiveInt | None
    """Query heads."""
    num_key_value_heads: PositiveInt | None
    """Key and value heads; equal to the query heads, a divisor of them, or 1."""
    head_dim: PositiveInt | None
    """Width of one head."""
    vocab_size: PositiveInt | None
    """Rows of the embedding."""
    tie_embeddings: bool
    """Whether the output head is the embedding itself."""
    max_position_embeddings: PositiveInt | None
    """The longest sequence the config states."""
    num_parameters: Annotated[int, Field(ge=1)]
    """All parameters, each shared tensor counted once."""
    num_active_parameters: Annotated[int, Field(ge=1)] | None = None
    """Those a token passes through, of a mixture of experts."""
    inputs: Inputs = Inputs.TOKENS
    """What a micro-batch holds."""
    matrices_only: bool = True
    """Whether no parameter has more than two dims, as convolutions and experts in one tensor have."""
    windows: tuple[PositiveInt, ...] = ()
    """Sequence lengths above which attention is cut, or there is more than one chunk."""
    chunks: tuple[PositiveInt, ...] = ()
    """Lengths that sequences are padded to multiples of."""
    config: str | None = None
    """Canonical text of the Hugging Face config, of a model whose profiles are of this config alone."""
    source: str
    """Where the facts come from."""
    aliases: tuple[str, ...] = ()
    """Other names it answers to."""
    default_for: tuple[str, ...] = ()
    """Looser names that resolve to it although another model could be meant; recorded as an assumption."""
    hf_id: str | None = None
    """Repository on the Hugging Face hub."""
    note: str | None = None
    """What a reader should know about the figures."""

    @property
    def dims(self) -> dict[str, int]:
        """The architecture dims under the symbols that memory profiles are written in, as far as it has them."""
        found = {
            "L": self.num_layers,
            "h": self.hidden_size,
            "i": self.intermediate_size,
            "a": self.num_attention_heads,
            "k": self.num_key_value_heads,
            "d": self.head_dim,
            "V": self.vocab_size,
        }
        return {symbol: value for symbol, value in found.items() if value is not None}

    @property
    def takes_tokens(self) -> bool:
        """Whether sequences of tokens are what it is trained on."""
        return self.inputs is not Inputs.IMAGES
