"""Explanations against the breakdown, the replay, shapes of the published model, and direct arithmetic."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from tests.estimator.memory.steps import make_step, timeline_of
from whatfits.estimator import estimate_run
from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.memory.explain import explain_micro_batch, explain_step
from whatfits.estimator.memory.replay import replay
from whatfits.estimator.memory.replay_events import ALLOC, FREE, ReplayEvents
from whatfits.estimator.memory.timeline import CATEGORIES, Origin, Timeline
from whatfits.estimator.profile import load_program
from whatfits.estimator.specs import (
    AllocatorMode,
    Estimate,
    ExplainedStep,
    Explanation,
    LiveGroup,
    PeakPhase,
    RunSpec,
)

BATCH, SEQ_LEN = 4, 2048
LAYERS, HIDDEN, INTERMEDIATE = 32, 4096, 11008
"""LLaMA-7B, arXiv:2302.13971, table 2, and its released params.json."""
LAYERWISE = {"optimizer": {"name": "galore_adamw_8bit"}, "layerwise_update": True}

RUNS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "checkpointed": {"training": {"activation_checkpointing": "full", "micro_batch_size": 16}},
    "autocast": {"training": {"precision": "bf16_mixed"}},
    "ddp": {"hardware": {"num_gpus": 8}, "parallelism": {"dp_replicate_degree": 8}},
    "lora": {"training": {"method": "lora", "adapter": {"rank": 8}}},
    "layerwise": {"training": {"micro_batch_size": BATCH, **LAYERWISE}},
    "fp32 masters": {"training": {"precision": "bf16_master", "gradient_clipping": True}},
    "accumulated fp16": {"training": {"precision": "fp16_mixed", "grad_accum_steps": 4}},
    "expandable": {"allocator": "expandable", "training": {"loop": {"empty_cache_each_step": True}}},
}


def explain(**changes: Any) -> tuple[Estimate, Explanation]:
    """LLaMA-7B, micro-batch 1 of 2048 tokens, AdamW."""
    training = {"micro_batch_size": 1, "seq_len": SEQ_LEN, **changes.pop("training", {})}
    hardware = {"gpu": "a100-80gb-sxm", **changes.pop("hardware", {})}
    run = {"model": "llama-7b", "training": training, "hardware": hardware, **changes}
    answer = estimate_run(RunSpec.model_validate(run), explain=True)
    assert answer.explanation is not None
    return answer, answer.explanation


def find(explanation: Explanation, op: str, module: str) -> LiveGroup:
    (group,) = (x for x in explanation.live if (x.op, x.module) == (op, module))
    return group


@pytest.mark.parametrize("name", RUNS)
def test_groups_sum_to_the_breakdown_and_the_timeline_reaches_the_peak(name: str) -> None:
    answer, explanation = explain(**RUNS[name])
    memory = answer.memory

    sums = Counter[str]()
    for group in explanation.live:
        sums[group.category] += group.bytes
        assert group.largest_bytes <= group.bytes <= group.count * group.largest_bytes
    terms = memory.breakdown.model_dump(exclude={"rounding_and_remainders"})
    assert dict(sums) == {term: nbytes for term, nbytes in terms.items() if nbytes}
    assert [x.bytes for x in explanation.live] == sorted((x.bytes for x in explanation.live), reverse=True)

    points = explanation.timeline
    assert explanation.peak_allocated_bytes == memory.peak_allocated_bytes
    assert explanation.peak_phase is memory.peak_phase
    assert max(point.allocated_bytes for point in points) == memory.peak_allocated_bytes
    (peak,) = (point for point in points if point.event == explanation.peak_event)
    assert peak.allocated_bytes == memory.peak_allocated_bytes
    events = [point.event for point in points]
    assert events == sorted(set(events))
    for part in explanation.parts:
        (begin,) = (point for point in points if point.event == part.first_event)
        assert begin.phase is part.phase
    assert max(part.peak_allocated_bytes for part in explanation.parts) == memory.peak_allocated_bytes


def test_an_explanation_changes_nothing_else() -> None:
    answer, _ = explain()

    assert answer.model_copy(update={"explanation": None}) == estimate_run(answer.spec)


def test_outputs_of_silu_are_one_per_layer_where_backward_begins() -> None:
    _, explanation = explain(**RUNS["layerwise"])

    group = find(explanation, "silu output", "model.layers.*.mlp.act_fn")
    each = BATCH * SEQ_LEN * INTERMEDIATE * 2
    assert explanation.peak_phase is PeakPhase.BACKWARD
    assert group == LiveGroup(
        count=LAYERS,
        op="silu output",
        module="model.layers.*.mlp.act_fn",
        phase=PeakPhase.FORWARD,
        category="activations",
        bytes=LAYERS * each,
        largest_bytes=each,
    )


def test_weights_gradients_and_states_are_those_of_the_parameters() -> None:
    _, explanation = explain()
    model, _ = resolve_model("llama-7b")

    matrix = LAYERS * HIDDEN * INTERMEDIATE * 2
    weight = find(explanation, "weight", "model.layers.*.mlp.gate_proj.weight")
    gradient = find(explanation, "gradient", "model.layers.*.mlp.gate_proj")
    assert (weight.count, weight.bytes, weight.phase) == (LAYERS, matrix, None)
    assert (gradient.count, gradient.bytes, gradient.phase) == (LAYERS, matrix, PeakPhase.BACKWARD)
    for state in ("exp_avg", "exp_avg_sq"):
        assert find(explanation, state, "optimizer").bytes == model.num_parameters * 2
    assert explanation.step is ExplainedStep.STEADY


def test_ddp_buckets_are_as_large_as_the_gradients() -> None:
    _, explanation = explain(**RUNS["ddp"])

    model, _ = resolve_model("llama-7b")
    assert find(explanation, "DDP bucket", "").bytes == model.num_parameters * 2


def test_each_micro_batch_has_its_parts() -> None:
    _, explanation = explain(**RUNS["accumulated fp16"])

    phases = [part.phase for part in explanation.parts]
    assert phases == [*[PeakPhase.FORWARD, PeakPhase.LOSS, PeakPhase.BACKWARD] * 3, PeakPhase.OPTIMIZER_STEP]


def test_sharded_runs_have_no_explanation_and_say_so() -> None:
    with pytest.raises(UnsupportedError, match=r"dp_shard_degree: under FSDP .* accepted: 1 for an explan"):
        explain(hardware={"num_gpus": 8}, parallelism={"dp_shard_degree": 8, "zero_stage": 3})


def test_every_part_s_peak_is_that_of_the_replay() -> None:
    timeline = timeline_of(make_step())
    events = timeline.events

    explanation = explain_step(timeline, AllocatorMode.CLASSIC)

    number = list(ExplainedStep).index(explanation.step)
    first_part = timeline.step_starts[number]
    ends = [*(part.first_event for part in explanation.parts[1:]), explanation.timeline[-1].event + 1]
    highest = 0
    for part, end in zip(explanation.parts, ends, strict=True):
        until = slice(0, first_part + end)
        so_far = ReplayEvents(
            kinds=events.kinds[until], blocks=events.blocks[until], sizes=events.sizes[until]
        )
        before = slice(0, first_part + part.first_event)
        earlier = ReplayEvents(
            kinds=events.kinds[before], blocks=events.blocks[before], sizes=events.sizes[before]
        )
        highest = max(replay(earlier).peak_allocated_bytes, part.peak_allocated_bytes)
        assert replay(so_far).peak_allocated_bytes == highest


def test_a_micro_batch_alone_is_summed_in_whole_blocks_of_512_bytes() -> None:
    step = make_step()
    symbols = step.symbols(2, 130)

    explanation = explain_micro_batch(load_program(step.table.key), symbols)

    assert explanation.step is ExplainedStep.MICRO_BATCH
    assert {x.category for x in explanation.live} == {"activations", "logits_and_loss"}
    silu = find(explanation, "silu output", "model.layers.*.mlp.act_fn")
    assert (silu.count, silu.largest_bytes) == (5, 2 * 130 * 296 * 2)
    assert explanation.timeline[-1].allocated_bytes == step.tensors.gradient_bytes


@pytest.mark.parametrize(
    ("names", "general"),
    [
        (["transformer.h.3.attn.c_attn.weight", "transformer.h.11.attn.c_attn.weight"], "transformer.h.*.attn.c_attn.weight"),
        (["encoder.block.0.layer.1.weight", "encoder.block.0.layer.2.weight"], "encoder.block.0.layer.*.weight"),
        (["blocks.1", "blocks.2"], "blocks.*"),
        (["h2o.proj1.weight"] * 2, "h2o.proj1.weight"),
    ],
)  # fmt: skip
def test_parameters_are_grouped_over_the_last_number_in_their_names(names: list[str], general: str) -> None:
    explanation = explain_step(_weights(names), AllocatorMode.CLASSIC)

    assert [(x.count, x.module, x.bytes) for x in explanation.live] == [(2, general, 2048), (1, "", 512)]


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("silu", "silu output"),
        ("_to_copy", "cast output"),
        ("addmm", "matmul output"),
        ("native_layer_norm_backward", "layer norm backward output"),
        ("_scaled_dot_product_flash_attention", "flash attention output"),
        ("_scaled_dot_product_efficient_attention_backward", "efficient attention backward output"),
        ("_log_softmax_backward_data", "log softmax backward output"),
        ("nll_loss_forward", "nll loss output"),
    ],
)
def test_operations_are_called_as_people_call_them(op: str, said: str) -> None:
    explanation = explain_step(_weights([], op), AllocatorMode.CLASSIC)

    assert [x.op for x in explanation.live] == [said]


def _weights(names: list[str], op: str = "add") -> Timeline:
    """Weights of 1 KiB each, then a step that allocates and frees one tensor."""
    kinds = [ALLOC] * len(names) + [ALLOC, FREE]
    origins = (*(Origin("weight", name) for name in dict.fromkeys(names)), Origin(op, "", traced=True))
    index = {origin.module: j for j, origin in enumerate(origins)}
    made = [*(index[name] for name in names), len(origins) - 1, len(origins) - 1]
    return Timeline(
        events=ReplayEvents(
            kinds=np.array(kinds, dtype=np.int8),
            blocks=np.array([*range(len(names) + 1), len(names)]),
            sizes=np.array([*[1024] * len(names), 512, 0]),
        ),
        category=np.array([0] * len(names) + [CATEGORIES.index("temporaries"), -1]),
        phase=np.zeros(len(kinds), dtype=np.int64),
        origin=np.array(made),
        origins=origins,
        step_starts=(len(names),),
    )
