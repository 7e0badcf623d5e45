"""What is trained and how, in the terms that both the real run and its trace are built from."""

from dataclasses import dataclass

from whatfits.estimator.errors import UnsupportedError
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    Attention,
    Framework,
    Loss,
    Method,
    ModelSpec,
    Offload,
    OptimizerName,
    ParallelismSpec,
    Precision,
    TrainingSpec,
)
from whatfits.estimator.specs.layerwise import FORWARD_ONLY_OPTIMIZERS, ONE_LAYER_OPTIMIZERS
from whatfits.profiler.trace.options import AdapterOptions, Dims, StepOptions

__all__ = ["ON_GPU_ONLY", "Recipe", "build_recipe"]

ON_GPU_ONLY = frozenset({OptimizerName.PAGED_ADAMW, OptimizerName.PAGED_ADAMW_8BIT})
"""Optimizers whose states the CUDA driver pages."""

_STORED = {Precision.BF16_MASTER: "bf16"}
"""What a model with fp32 copies in its optimizer is itself built as; elsewhere it is built as its precision says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run on one rank, with everything filled in."""

    model: ModelSpec
    """At the depth that is built."""
    training: TrainingSpec
    parallelism: ParallelismSpec
    options: StepOptions
    """What model and trace are built from."""
    seed: int = 0

    @property
    def dims(self) -> Dims:
        """Sizes of the model and of a micro-batch."""
        training = self.training
        dims = {**self.model.dims, "b": training.micro_batch_size, "s": training.seq_len}
        if training.target_seq_len is not None:
            dims["t"] = training.target_seq_len
        if training.adapter is not None and training.method is not Method.FULL:
            dims["r"] = training.adapter.rank
        return dims


def build_recipe(
    model: ModelSpec,
    training: TrainingSpec,
    parallelism: ParallelismSpec | None = None,
    *,
    on_cpu: bool = False,
    seed: int = 0,
) -> Recipe:
    """The recipe of a resolved run.

    Args:
        model: at the depth that is to be built.
        training: with everything filled in.
        parallelism: the axes, none of them used where left out.
        on_cpu: whether it is for a CPU.
        seed: of weights and inputs.

    Raises:
        UnsupportedError: the run asks for something that is not measured.
    """
    axes = parallelism or ParallelismSpec()
    _require_measurable(model, training, axes)
    name = training.optimizer.name
    if on_cpu and name in ON_GPU_ONLY:
        reason = f"{name} pages its states between a GPU and its host"
        raise UnsupportedError("training.optimizer.name", str(name), "another one on a CPU", reason=reason)
    return Recipe(
        model=model,
        training=training,
        parallelism=axes,
        options=_step_options(model, training),
        seed=seed,
    )


def _step_options(model: ModelSpec, training: TrainingSpec) -> StepOptions:
    checkpointing = training.checkpointing_policy or str(training.activation_checkpointing)
    return StepOptions(
        architecture=model.architecture,
        config=model.config or "",
        tie_embeddings=model.tie_embeddings,
        precision=_STORED.get(training.precision, str(training.precision)),
        attention="eager" if training.attention is Attention.EAGER else "sdpa",
        mask="packed" if training.packed_sequences else "none",
        dropout=training.dropout,
        checkpointing=checkpointing,
        adapter=_adapter_options(training),
    )


def _adapter_options(training: TrainingSpec) -> AdapterOptions | None:
    if training.method is Method.FULL:
        return None
    assert training.adapter is not None, "filled in when the run was resolved"
    assert training.adapter.targets is not None, "likewise"
    return AdapterOptions(targets=training.adapter.targets, dora=training.method is Method.DORA)


def _require_measurable(model: ModelSpec, training: TrainingSpec, axes: ParallelismSpec) -> None:
    """Refuse the first thing asked for that is not measured; none is left out in silence."""
    frameworks = frozenset({Framework.PYTORCH, Framework.FSDP2})
    attentions = frozenset({Attention.AUTO, Attention.SDPA, Attention.EAGER})
    rules: tuple[tuple[str, object, frozenset[object]], ...] = (
        ("training.method", training.method, frozenset(Method) - {Method.QLORA}),
        ("training.framework", training.framework, frameworks),
        ("training.precision", training.precision, frozenset(Precision) - {Precision.FP8}),
        ("training.attention", training.attention, attentions),
        ("training.loss", training.loss, frozenset({Loss.STANDARD})),
        ("training.compile", training.compile, frozenset({False})),
        ("training.image_size", training.image_size, frozenset({None})),
        ("parallelism.tp_degree", axes.tp_degree, frozenset({1})),
        ("parallelism.pp_degree", axes.pp_degree, frozenset({1})),
        ("parallelism.cp_degree", axes.cp_degree, frozenset({1})),
        ("parallelism.ep_degree", axes.ep_degree, frozenset({1})),
        ("parallelism.zero_stage", axes.zero_stage, frozenset({0, 3})),
        ("parallelism.reshard_after_forward", axes.reshard_after_forward, frozenset({True})),
        ("parallelism.offload", axes.offload, frozenset({Offload.NONE})),
    )
    for field, value, accepted in rules:
        if value not in accepted:
            words = ", ".join(sorted(str(option) for option in accepted))
            raise UnsupportedError(field, value, words, reason=f"{value} is not measured")
    _require_optimizer(training)
    _require_of_model(model, training)


def _require_optimizer(training: TrainingSpec) -> None:
    name = training.optimizer.name
    if name in FORWARD_ONLY_OPTIMIZERS | ONE_LAYER_OPTIMIZERS:
        what = "has no backward pass" if name in FORWARD_ONLY_OPTIMIZERS else "trains one layer at a time"
        reason = f"{name} {what}, which the measured loop does not do"
        raise UnsupportedError("training.optimizer.name", str(name), "another optimizer", reason=reason)
    whole = {Precision.BF16_MASTER, Precision.FP16_MIXED}
    if training.layerwise_update and training.precision in whole:
        reason = f"{training.precision} needs all gradients before the update"
        accepted = "false with bf16_master and fp16_mixed"
        raise UnsupportedError("training.layerwise_update", True, accepted, reason=reason)


def _require_of_model(model: ModelSpec, training: TrainingSpec) -> None:
    if model.config is None:
        return
    for field, value, accepted in (
        ("training.method", training.method, Method.FULL),
        ("training.packed_sequences", training.packed_sequences, False),
        ("training.dropout", training.dropout, 0.0),
    ):
        if value != accepted:
            reason = f"{value} is not measured of {model.architecture}"
            raise UnsupportedError(field, value, str(accepted), reason=reason)
    if training.activation_checkpointing is ActivationCheckpointing.SELECTIVE:
        reason = f"selective checkpointing is not measured of {model.architecture}"
        raise UnsupportedError("training.activation_checkpointing", "selective", "none, full", reason=reason)
