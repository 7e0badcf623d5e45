"""Which structure class, and so which profile, a question falls into."""

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.profile import DEFAULT_STACK, ProfileKey
from whatfits.estimator.profile.store import shipped_stacks
from whatfits.estimator.specs import ActivationCheckpointing, ModelSpec, Precision

__all__ = ["MIN_LAYERS", "choose_stack", "profile_key"]

MIN_LAYERS = 4
"""The shipped tables start one layer above the shallowest trace they were compiled from."""


def profile_key(
    model: ModelSpec, *, precision: Precision, checkpointing: ActivationCheckpointing, micro_batch_size: int
) -> ProfileKey:
    """Structure class of a model and a micro-batch.

    Raises:
        UnsupportedError: the model has fewer layers than the shipped tables cover.
    """
    if model.num_layers < MIN_LAYERS:
        reason = f"{model.num_layers} layers are fewer than the shipped profiles cover"
        raise UnsupportedError("model.num_layers", model.num_layers, f"{MIN_LAYERS} and more", reason=reason)
    heads, kv_heads = model.num_attention_heads, model.num_key_value_heads
    kv = "full" if kv_heads == heads else "one" if kv_heads == 1 else "grouped"
    return ProfileKey(
        architecture=model.architecture,
        precision=str(precision),
        attention="sdpa",
        checkpointing=str(checkpointing),
        loss="standard",
        micro_batch="one" if micro_batch_size == 1 else "many",
        kv_heads=kv,
        tied=model.tie_embeddings,
    )


def choose_stack(wanted: dict[str, str] | None) -> dict[str, str]:
    """Shipped stack that agrees with every version asked for; the default one when nothing is asked.

    Raises:
        UnsupportedError: none agrees.
    """
    if not wanted:
        return DEFAULT_STACK
    stacks = shipped_stacks()
    for stack in stacks:
        if all(stack.get(name) == version for name, version in wanted.items()):
            return stack
    accepted = "; ".join(", ".join(f"{k} {v}" for k, v in sorted(s.items())) for s in stacks)
    raise UnsupportedError("stack", wanted, accepted, reason="no profile was traced with these versions")
