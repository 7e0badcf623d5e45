"""A step composed from columns and optimizer events equals the same step traced whole, to the byte.

The whole trace has the real `torch.optim` optimizer stepping under the recorder that traces the model.
"""

from functools import partial
from typing import Any

import pytest
import torch

from tests.estimator.memory.steps import SMALL, make_step, peaks_of
from tests.factories import make_model
from whatfits.estimator.specs import OptimizerSpec
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.whole_step import OptimizerFactory, trace_training_steps

SEQ_LEN = 130
OPTIMIZERS: dict[str, tuple[OptimizerSpec, OptimizerFactory]] = {
    "adamw foreach": (OptimizerSpec.model_validate({}), partial(torch.optim.AdamW, foreach=True)),
    "adamw for_loop": (
        OptimizerSpec.model_validate({"implementation": "for_loop"}),
        partial(torch.optim.AdamW, foreach=False),
    ),
    "sgd": (OptimizerSpec.model_validate({"name": "sgd"}), torch.optim.SGD),
}
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "full tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "one": {"num_key_value_heads": 1},
}
CASES = [
    # optimizer, model, micro-batch, checkpointing, micro-batches, layer-wise
    ("adamw foreach", "grouped", 2, "none", 1, False),
    ("adamw foreach", "grouped", 2, "none", 2, False),
    ("adamw foreach", "full tied", 3, "full", 3, False),
    ("adamw for_loop", "full tied", 1, "none", 1, False),
    ("adamw for_loop", "one", 2, "full", 2, False),
    ("adamw for_loop", "grouped", 2, "none", 1, True),
    ("adamw for_loop", "full tied", 3, "none", 1, True),
    ("adamw for_loop", "one", 1, "full", 1, True),
    ("sgd", "grouped", 1, "none", 3, False),
    ("sgd", "one", 3, "full", 1, True),
    ("sgd", "full tied", 40, "none", 2, False),
    ("adamw for_loop", "grouped", 40, "none", 1, True),
]


@pytest.mark.parametrize(
    ("optimizer", "model", "micro_batch_size", "checkpointing", "accum", "layerwise"), CASES
)
def test_composed_step_equals_the_step_traced_whole(
    optimizer: str, model: str, micro_batch_size: int, checkpointing: str, accum: int, layerwise: bool
) -> None:
    spec, factory = OPTIMIZERS[optimizer]
    step = make_step(
        make_model(**SMALL, **MODELS[model]),
        optimizer=spec,
        micro_batch_size=micro_batch_size,
        checkpointing=checkpointing,
        layerwise=layerwise,
    )
    dims = {**step.tensors.model.dims, "b": micro_batch_size, "s": SEQ_LEN}
    options = StepOptions(tie_embeddings=step.tensors.model.tie_embeddings, checkpointing=checkpointing)

    traced = trace_training_steps(dims, options, factory, grad_accum_steps=accum, layerwise=layerwise)

    composed = peaks_of(step, micro_batch_size=micro_batch_size, seq_len=SEQ_LEN, grad_accum_steps=accum)
    resting = step.resting()
    for steady in traced[1:]:
        assert int(composed.nbytes[0]) - resting.weights - resting.workspace == steady.peak_bytes
        assert resting.optimizer_states == steady.resting_bytes == steady.left_bytes


def test_first_step_creates_the_states_and_a_later_one_leaves_nothing() -> None:
    step = make_step()
    dims = {**step.tensors.model.dims, "b": 2, "s": SEQ_LEN}

    first, second = trace_training_steps(
        dims, StepOptions(), partial(torch.optim.AdamW, foreach=True), num_steps=2
    )

    assert (first.resting_bytes, first.left_bytes) == (0, step.optimizer.state_bytes)
    assert second.left_bytes == second.resting_bytes
