"""Which profile a question falls into."""

import pytest

from tests.factories import make_model
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.classes import choose_stack, profile_key
from whatfits.estimator.profile import DEFAULT_STACK, ProfileKey
from whatfits.estimator.specs import ActivationCheckpointing, Precision


def key(micro_batch_size: int = 2, **config: object) -> ProfileKey:
    return profile_key(
        make_model(num_hidden_layers=config.pop("num_hidden_layers", 4), **config),
        precision=Precision.BF16,
        checkpointing=ActivationCheckpointing.FULL,
        micro_batch_size=micro_batch_size,
    )


@pytest.mark.parametrize(("kv_heads", "name"), [(1, "one"), (2, "grouped"), (4, "full")])
def test_key_value_heads_name_the_class(kv_heads: int, name: str) -> None:
    assert key(num_key_value_heads=kv_heads).kv_heads == name


def test_micro_batch_tying_and_checkpointing_name_the_class() -> None:
    assert [key(b).micro_batch for b in (1, 2, 99)] == ["one", "many", "many"]
    assert [key(tie_word_embeddings=tied).tied for tied in (True, False)] == [True, False]
    assert key().checkpointing == "full"


def test_too_shallow_models_are_refused_with_what_is_covered() -> None:
    with pytest.raises(UnsupportedError, match="3 layers are fewer"):
        key(num_hidden_layers=3)


def test_stack_is_chosen_by_the_versions_asked_for() -> None:
    assert choose_stack(None) == choose_stack({}) == choose_stack({"torch": "2.13"}) == DEFAULT_STACK
    with pytest.raises(UnsupportedError, match="no profile was traced"):
        choose_stack({"torch": "1.13"})
