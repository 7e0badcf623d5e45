"""Models of any Hugging Face config: how they repeat, which classes their lengths make, and that they compile exactly."""

import json
from functools import partial

import pytest
import torch

from tests.profiler.trace.tiny_configs import tiny_config
from whatfits.estimator.catalog import resolve_run
from whatfits.estimator.memory.classes import profile_key
from whatfits.estimator.profile import load_program, load_table
from whatfits.estimator.specs import RunSpec
from whatfits.profiler.trace.classes import key_of
from whatfits.profiler.trace.config_classes import config_class
from whatfits.profiler.trace.config_errors import ConfigError
from whatfits.profiler.trace.config_inputs import micro_batch_of
from whatfits.profiler.trace.configs import describe, layers_of
from whatfits.profiler.trace.events import Mark
from whatfits.profiler.trace.model import build_model
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.produce import compile_and_verify
from whatfits.profiler.trace.training_step import trace_micro_batch
from whatfits.profiler.trace.verify import compare_with_trace

GEMMA_LAYERS = 10


@pytest.mark.parametrize(
    ("model_type", "num_layers", "architecture", "period"),
    [
        ("gpt2", 6, "GPT2LMHeadModel", 1),
        ("mixtral", 6, "MixtralForCausalLM", 1),
        ("gemma2", GEMMA_LAYERS, "Gemma2ForCausalLM", 2),
        pytest.param("deepseek_v3", 7, "DeepseekV3ForCausalLM", 1, marks=pytest.mark.slow),
        ("bert", 6, "BertForMaskedLM", 1),
        ("mamba2", 6, "Mamba2ForCausalLM", 1),
        ("t5", 2, "T5ForConditionalGeneration", 0),
        ("vit", 6, "ViTForImageClassification", 1),
        ("clip", 2, "CLIPModel", 0),
    ],
)
def test_a_compiled_config_equals_direct_traces(
    model_type: str, num_layers: int, architecture: str, period: int
) -> None:
    """Event for event and byte for byte, at points from which nothing was fitted."""
    text = tiny_config(model_type, num_layers)
    facts = describe(text)
    options = StepOptions(config=text, architecture=facts.architecture)
    structure = config_class(options, facts, {"b": 2, "s": 64})

    compiled = compile_and_verify(structure, {}, partial(trace_micro_batch, options=options))

    assert facts.architecture == architecture
    assert [point.dims for one in compiled for point in one.different] == []
    assert sum(len(one.held_out) for one in compiled) >= 6
    assert {one.shallow.period for one in compiled if one.shallow} == {period}


def test_layers_that_take_turns_have_a_period() -> None:
    assert describe(tiny_config("gpt2", 6)).depths == (3, 4, 5, 6)
    assert describe(tiny_config("gemma2", GEMMA_LAYERS)).depths == (4, 6, 8, 10)


def test_layers_unlike_the_others_come_before_those_that_repeat() -> None:
    """The first layer of DeepSeek-V3 has no experts."""
    text = tiny_config("deepseek_v3", 7, first_k_dense_replace=2)

    assert describe(text).depths == (4, 5, 6, 7)


def test_a_shipped_profile_of_a_config_answers_targets_of_another_length() -> None:
    resolved = resolve_run(
        RunSpec.model_validate(
            {
                "model": "t5-small",
                "training": {"micro_batch_size": 2, "seq_len": 512, "target_seq_len": 96},
                "hardware": {"gpu": "a100-80gb-sxm"},
            }
        )
    )
    key = profile_key(resolved.model, resolved.run.training, resolved.gpu)
    options = StepOptions(config=resolved.model.config or "", architecture=resolved.model.architecture)
    dims = {"L": resolved.model.num_layers, "b": 2, "s": 512, "t": 96}

    found = compare_with_trace(load_program(key), load_table(key), trace_micro_batch(dims, options), dims)

    assert found.exact


def test_a_direct_trace_of_other_targets_has_a_name_of_its_own() -> None:
    key = key_of(StepOptions(), micro_batch="many", kv_heads="any")

    assert key.at(2, 512, 96) not in (key.at(2, 512), key.at(2, 512, 512))
    assert key.at(2, 512, 512) == key.at(2, 512)


def test_a_stack_that_is_too_shallow_to_repeat_has_no_depths() -> None:
    assert describe(tiny_config("gpt2", 5)).depths == ()
    assert describe(tiny_config("t5", 6)).depths == ()


def test_lengths_on_either_side_of_a_window_are_classes_of_their_own() -> None:
    text = tiny_config("gemma2", GEMMA_LAYERS)
    facts = describe(text)
    options = StepOptions(config=text, architecture=facts.architecture)

    within, above = (config_class(options, facts, {"b": 2, "s": s}) for s in (256, 272))

    assert facts.windows == (256,)
    assert (within.key.sequence, above.key.sequence) == ("eights", "eights_above_256")
    assert max(p["s"] for p in (*within.points, *within.held_out)) <= 256
    assert min(p["s"] for p in (*above.points, *above.held_out)) > 256


def test_whole_chunks_and_more_than_one_chunk_are_classes_of_their_own() -> None:
    text = tiny_config("mamba2", 6)
    facts = describe(text)
    options = StepOptions(config=text, architecture=facts.architecture)

    found = [config_class(options, facts, {"b": 2, "s": s}) for s in (31, 32, 48, 64)]

    assert [one.key.sequence for one in found] == ["other", "eights", "other_above_32", "eights_above_32"]
    assert [[p["s"] % 32 == 0 for p in (*one.points, *one.held_out)] for one in found[2:]] == [
        [False] * 8, [True] * 10,
    ]  # fmt: skip


def test_other_lengths_leave_other_remainders() -> None:
    """So that what is padded to 8 is told from what is padded to 16, and one stack's lengths from the other's."""
    text = tiny_config("t5")
    facts = describe(text)
    other = config_class(StepOptions(config=text), facts, {"b": 2, "s": 63})
    odd = config_class(StepOptions(config=text), facts, {"b": 2, "s": 72})
    mixed = config_class(StepOptions(config=text), facts, {"b": 2, "s": 72, "t": 63})

    remainders = {p["s"] % 16 for p in (*other.points, *other.held_out)}
    assert (len(remainders), remainders & {0, 8}) == (8, set())
    assert all(p["s"] % 16 != p["t"] % 16 for p in other.points)
    assert {p["s"] % 16 for p in odd.points} == {p["t"] % 16 for p in odd.points} == {8}
    assert [one.key.sequence for one in (other, odd, mixed)] == [
        "other",
        "odd_eights",
        "odd_eights_and_other",
    ]
    assert {p["s"] % 16 for p in mixed.points} == {8}
    assert not {p["t"] % 8 for p in mixed.points} & {0}


def test_layers_that_are_left_out_at_random_are_all_there() -> None:
    text = tiny_config("m2m_100", encoder_layerdrop=0.9, decoder_layerdrop=0.9)
    options = StepOptions(config=text, architecture=describe(text).architecture)

    trace = trace_micro_batch({"L": 4, "b": 2, "s": 16, "t": 16}, options)

    entered = [t for t in trace.parts["forward"] if isinstance(t, Mark) and t.kind == "layer_enter"]
    assert len(entered) == 4


def test_a_number_that_layers_have_their_own_of_is_none_of_the_model() -> None:
    """Gemma 4's full attention has wider heads, and transformers refuses to say one width of all."""
    own = {"1": {"head_dim": 32}}
    kinds = ["sliding_attention", "full_attention"]

    facts = describe(tiny_config("gemma4_text", layer_types=kinds, per_layer_config=own))

    assert (facts.head_dim, facts.num_attention_heads, facts.windows) == (64 // 4, 4, (256,))


def test_experts_that_a_token_does_not_visit_are_not_active() -> None:
    facts = describe(tiny_config("mixtral", 2))

    idle = 2 * (4 - 2) * 3 * 64 * 176  # layers, idle experts, matrices
    assert facts.num_active_parameters == facts.num_parameters - idle


def test_a_shared_tensor_is_counted_once() -> None:
    assert describe(tiny_config("gpt2")).tied
    untied = describe(tiny_config("gpt2", tie_word_embeddings=False))
    assert untied.num_parameters - describe(tiny_config("gpt2")).num_parameters == 320 * 64


def test_the_layers_of_both_stacks_are_found() -> None:
    text = tiny_config("t5")
    model = build_model({}, StepOptions(config=text, architecture="T5ForConditionalGeneration"))

    names = [name for name, _ in layers_of(model)]
    assert names == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "no_such_model"}', "has no model type 'no_such_model'"),
        ("{}", "has no model type None"),
        ('{"model_type": "dac"}', "no class of dac that computes a loss"),
        (
            json.dumps({**json.loads(tiny_config("gpt2")), "n_embd": 65}),
            "GPT2LMHeadModel cannot be built from the config",
        ),
        (json.dumps({"model_type": "bert", "hidden_size": "wide"}), "the config makes no bert model"),
    ],
    ids=["unknown", "no type", "no loss", "cannot be built", "not a number"],
)
def test_a_config_that_makes_no_model_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        describe(text)


def test_a_classified_sequence_has_one_label() -> None:
    text = json.dumps(
        {**json.loads(tiny_config("bert", 2)), "architectures": ["BertForSequenceClassification"]}
    )
    options = StepOptions(config=text, architecture="BertForSequenceClassification", attention="eager")
    model = build_model({"L": 2}, options)

    inputs = micro_batch_of(model, {"L": 2, "b": 3, "s": 64}, torch.device("meta"))
    trace = trace_micro_batch({"L": 2, "b": 3, "s": 64}, options)

    assert {name: tuple(t.shape) for name, t in inputs.items()} == {"input_ids": (3, 64), "labels": (3,)}
    assert trace.parts["backward"]
