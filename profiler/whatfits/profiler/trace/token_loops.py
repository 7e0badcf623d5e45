"""Models whose code computes one token of a sequence after the other: they have as many events as there are tokens.

Such a model has no class: its program would be a loop inside of each layer. A direct trace answers one length.
"""

from dataclasses import dataclass

from whatfits.profiler.trace.compile import Tracer
from whatfits.profiler.trace.options import Dims

__all__ = ["TOKEN_BY_TOKEN", "TokenLoop", "token_loop"]

TOKEN_BY_TOKEN = frozenset(
    {
        "FalconMambaForCausalLM",
        "JambaForCausalLM",
        "MambaForCausalLM",
        "RecurrentGemmaForCausalLM",
        "RwkvForCausalLM",
        "ZambaForCausalLM",
    }
)
"""Classes of transformers with a loop over tokens, those of Mamba where mamba_ssm is not used."""
_LENGTHS = (16, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoop:
    """Events of a step: some, and as many for each token."""

    fixed: int
    per_token: int

    def events(self, seq_len: int) -> int:
        """Of a step of sequences of a length."""
        return self.fixed + self.per_token * seq_len

    def longest(self, events: int) -> int:
        """Tokens of the longest sequence with so many events."""
        return max((events - self.fixed) // self.per_token, 0)


def token_loop(trace: Tracer, dims: Dims) -> TokenLoop:
    """How events grow with tokens, from direct traces of short sequences."""
    few, more = (
        sum(len(tokens) for tokens in trace({**dims, "s": length}).parts.values()) for length in _LENGTHS
    )
    per_token = (more - few) // (_LENGTHS[1] - _LENGTHS[0])
    return TokenLoop(fixed=few - per_token * _LENGTHS[0], per_token=per_token)
