"""Composed steps against steps traced whole: accumulated and layer-wise gradients, real optimizers."""

from functools import partial

import torch

from tests.estimator.memory.steps import make_step, peaks_of
from tests.verify.report import Section
from whatfits.estimator.catalog import find_gpu, find_model
from whatfits.estimator.specs import OptimizerSpec
from whatfits.profiler.trace.options import StepOptions
from whatfits.profiler.trace.whole_step import OptimizerFactory, trace_training_steps

COLUMNS = (
    "model",
    "optimizer",
    "b",
    "s",
    "ckpt",
    "micro-batches",
    "layer-wise",
    "traced peak",
    "composed peak",
    "difference",
)
OPTIMIZERS: dict[str, tuple[OptimizerSpec, OptimizerFactory]] = {
    "adamw foreach": (OptimizerSpec.model_validate({}), partial(torch.optim.AdamW, foreach=True)),
    "adamw for_loop": (
        OptimizerSpec.model_validate({"implementation": "for_loop"}),
        partial(torch.optim.AdamW, foreach=False),
    ),
    "sgd": (OptimizerSpec.model_validate({"name": "sgd"}), torch.optim.SGD),
}
MODELS = (
    ("galore-llama-60m", 4, 512),
    ("galore-llama-1b", 1, 1025),
    ("llama-3-8b", 2, 2048),
    ("galore-llama-7b", 16, 256),
)
STEPS = (("adamw foreach", 1, False), ("adamw foreach", 2, False), ("adamw for_loop", 3, False),
         ("adamw for_loop", 1, True), ("sgd", 2, False), ("sgd", 1, True))  # fmt: skip


def verify_composition() -> Section:
    """Peak of the second, steady step and the state that rests, to the byte."""
    rows: list[tuple[object, ...]] = []
    failures = []
    for name, batch, seq_len in MODELS:
        model = find_model(name)
        for checkpointing in ("none", "full"):
            for optimizer, accum, layerwise in STEPS:
                spec, factory = OPTIMIZERS[optimizer]
                step = make_step(
                    model,
                    optimizer=spec,
                    micro_batch_size=batch,
                    checkpointing=checkpointing,
                    layerwise=layerwise,
                    gpu=find_gpu("h100-80gb-sxm"),  # the one whose scratch is traced
                )
                options = StepOptions(tie_embeddings=model.tie_embeddings, checkpointing=checkpointing)
                steady = trace_training_steps(
                    {**model.dims, "b": batch, "s": seq_len},
                    options,
                    factory,
                    grad_accum_steps=accum,
                    layerwise=layerwise,
                    num_steps=2,
                )[1]
                resting = step.resting()
                outside = resting.weights + resting.workspace
                composed = int(
                    peaks_of(step, micro_batch_size=batch, seq_len=seq_len, grad_accum_steps=accum).nbytes[0]
                )
                traced = steady.peak_bytes + outside
                rows.append(
                    (name, optimizer, batch, seq_len, checkpointing, accum, "yes" if layerwise else "no",
                     traced, composed, composed - traced)
                )  # fmt: skip
                if composed != traced or resting.optimizer_states != steady.resting_bytes:
                    failures.append(
                        f"{name} {optimizer} {checkpointing} accum {accum} layer-wise {layerwise}"
                    )
    return Section(
        title="Composed steps equal steps traced whole",
        summary=f"{len(rows)} steady steps with real torch.optim optimizers; {len(failures)} differ",
        columns=COLUMNS,
        rows=rows,
        failures=failures,
    )
