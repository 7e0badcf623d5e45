"""Numbers in words."""

from typing import Any

import pytest

from whatfits.estimator.units import GIB, MIB
from whatfits.web.answers import OptimizerChoice, Parallelism, Training
from whatfits.web.wording import (
    word_batch_note,
    word_bytes_interval,
    word_optimizer_note,
    word_placement,
    word_placement_note,
    word_rank,
)


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ({}, "1 GPU"),
        ({"dp_replicate_degree": 8}, "DDP x8"),
        ({"dp_shard_degree": 8, "zero_stage": 3}, "FSDP x8"),
        ({"dp_shard_degree": 8, "zero_stage": 1}, "ZeRO-1 x8"),
        ({"dp_replicate_degree": 2, "dp_shard_degree": 4, "zero_stage": 3}, "DDP x2 of FSDP x4"),
        ({"tp_degree": 8}, "TP x8"),
        ({"dp_replicate_degree": 2, "tp_degree": 4, "pp_degree": 2}, "DDP x2, TP x4, PP x2"),
    ],
)
def test_a_placement_in_words(axes: dict[str, Any], words: str) -> None:
    one = dict.fromkeys(("dp_replicate_degree", "dp_shard_degree", "tp_degree", "pp_degree", "cp_degree"), 1)

    parallelism = Parallelism.model_validate(
        {**one, "zero_stage": 0, "gradient_as_bucket_view": False, **axes}
    )
    assert word_placement(parallelism) == words
    assert word_placement_note(parallelism) == ""


def test_the_command_line_words_placements_alike() -> None:
    from whatfits.estimator.specs import ParallelismSpec
    from whatfits.service.cli import wording

    for axes in (
        ParallelismSpec(),
        ParallelismSpec(dp_replicate_degree=8),
        ParallelismSpec(dp_shard_degree=8, zero_stage=3),
        ParallelismSpec(dp_replicate_degree=2, dp_shard_degree=4, zero_stage=3, tp_degree=2),
    ):
        page = word_placement(Parallelism.model_validate(axes.model_dump()))
        assert page == wording.word_placement(axes)


def test_an_interval_names_a_common_unit_once() -> None:
    assert word_bytes_interval(GIB, 2 * GIB) == "1.00 to 2.00 GiB"
    assert word_bytes_interval(512 * MIB, 2 * GIB) == "512.00 MiB to 2.00 GiB"


def test_rank_and_batch_are_silent_where_there_is_nothing_to_say() -> None:
    plain = Training(
        micro_batch_size=1,
        seq_len=128,
        grad_accum_steps=1,
        optimizer=OptimizerChoice(name="adamw", implementation="foreach"),
        layerwise_update=False,
        activation_checkpointing="none",
    )

    assert (word_rank(None), word_rank(256)) == ("", "256")
    assert (word_batch_note(plain), word_optimizer_note(plain)) == ("", "")
    fused = OptimizerChoice(name="adamw", implementation="fused")
    busy = plain.model_copy(update={"grad_accum_steps": 4, "layerwise_update": True, "optimizer": fused})
    assert word_batch_note(busy) == "4 accumulated"
    assert word_optimizer_note(busy) == "fused, layer-wise update"
