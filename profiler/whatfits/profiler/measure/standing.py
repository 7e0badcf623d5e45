"""The standing campaign: which runs are measured on a GPU, the most informative first, and the same in small on a CPU."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import Any

from whatfits.estimator.catalog import resolve_model
from whatfits.estimator.errors import InputError
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.estimator.specs import OptimizerName, RunSpec
from whatfits.estimator.specs.campaign import CampaignMatrix, with_changes
from whatfits.estimator.specs.layerwise import FORWARD_ONLY_OPTIMIZERS, ONE_LAYER_OPTIMIZERS
from whatfits.estimator.specs.low_rank import RANKED_OPTIMIZERS
from whatfits.estimator.specs.measurement import MeasureDevice, MeasureRequest
from whatfits.optim_impls import REGISTRY
from whatfits.profiler.measure.local import resolved_request
from whatfits.profiler.measure.recipe import ON_GPU_ONLY
from whatfits.profiler.measure.tiny import TINY

__all__ = ["Point", "standing_campaign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """What the campaign varies, on one kind of device."""

    models: tuple[str | dict[str, Any], ...]
    ranks: tuple[int, ...]
    micro_batch_sizes: tuple[int, ...]
    seq_lens: tuple[int, ...]
    warmup_steps: int
    measured_steps: int


_SHAPES = {
    MeasureDevice.GPU: _Shape(
        models=("galore-llama-350m", "galore-llama-1b"),
        ranks=(64, 128, 256),
        micro_batch_sizes=(4, 1, 8),
        seq_lens=(512, 256, 1024, 2048),
        warmup_steps=2,
        measured_steps=10,
    ),
    MeasureDevice.CPU: _Shape(
        models=(TINY, {**TINY, "num_hidden_layers": 6}),
        ranks=(4, 8, 16),
        micro_batch_sizes=(2, 1, 4),
        seq_lens=(32, 16, 64),
        warmup_steps=1,
        measured_steps=2,
    ),
}
_PRECISIONS = ("bf16_mixed", "fp32", "bf16_master", "fp16_mixed")
_NUM_SNAPSHOTS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One run of the campaign."""

    name: str
    """Readable, and usable as a file name."""
    request: MeasureRequest
    """With everything filled in."""


def standing_campaign(device: MeasureDevice, gpu: str) -> tuple[Point, ...]:
    """The runs for one GPU of the catalog, the most informative first.

    First every optimizer once, as that is where programs differ most; then, by turns, ranks, batches, precisions,
    checkpointing, sequence lengths and loops; then the second shape, and the rest of every optimizer x 3 ranks x 3
    batches. A run that breaks a rule, or whose optimizer's library is not installed, is left out.
    """
    shape = _SHAPES[device]
    base = MeasureRequest(
        spec=RunSpec.model_validate(
            {
                "model": shape.models[0],
                "training": {"micro_batch_size": shape.micro_batch_sizes[0], "seq_len": shape.seq_lens[0]},
                "hardware": {"gpu": gpu},
            }
        ),
        device=device,
        warmup_steps=shape.warmup_steps,
        measured_steps=shape.measured_steps,
    )
    optimizers = _optimizers(device)
    points = dict[str, Point]()
    for request in chain(_sampled(base, shape, optimizers), _whole(base, shape, optimizers)):
        try:
            filled = resolved_request(request)
        except InputError:
            continue
        name = _name(filled)
        points.setdefault(name, Point(name=name, request=filled))
    return tuple(_with_snapshots(points.values()))


def _optimizers(device: MeasureDevice) -> tuple[OptimizerName, ...]:
    """What can be measured here: AdamW first, then our own code and torch's, then libraries that are installed."""
    known = [
        OptimizerName(name)
        for name in OPTIMIZERS
        if name not in FORWARD_ONLY_OPTIMIZERS | ONE_LAYER_OPTIMIZERS
        and (device is MeasureDevice.GPU or name not in ON_GPU_ONLY)
        and name in REGISTRY
    ]
    sources = {name: REGISTRY[name].source.partition(".")[0] for name in known}
    there = [name for name in known if sources[name] == "own" or find_spec(sources[name]) is not None]
    return tuple(
        sorted(
            there, key=lambda name: (name is not OptimizerName.ADAMW, sources[name] not in ("own", "torch"))
        )
    )


def _sampled(
    base: MeasureRequest, shape: _Shape, optimizers: tuple[OptimizerName, ...]
) -> Iterator[MeasureRequest]:
    """Each axis alone, beside the base; the axes by turns."""
    first_rank = shape.ranks[1]
    yield from CampaignMatrix(base=base, optimizers=optimizers, ranks=(first_rank,)).requests()
    ranked = tuple(name for name in optimizers if name in RANKED_OPTIMIZERS)
    adamw = {"optimizer": {"name": "adamw"}}
    loops = (
        {"activation_checkpointing": "full"},
        {"grad_accum_steps": 2},
        {"layerwise_update": True},
        {"gradient_clipping": True},
        {"attention": "eager"},
        {"optimizer": {"name": "adamw", "implementation": "fused"}},
        {"optimizer": {"name": "adamw", "implementation": "for_loop"}},
    )
    axes: tuple[Iterable[MeasureRequest], ...] = (
        [with_changes(base, **{**adamw, **changes}) for changes in loops],
        CampaignMatrix(base=base, optimizers=ranked, ranks=(shape.ranks[0], shape.ranks[2])).requests(),
        [with_changes(base, **adamw, micro_batch_size=size) for size in shape.micro_batch_sizes[1:]],
        [with_changes(base, **adamw, precision=precision) for precision in _PRECISIONS],
        [with_changes(base, **adamw, seq_len=seq_len) for seq_len in shape.seq_lens[1:]],
        CampaignMatrix(
            base=with_changes(base, model=shape.models[1]), optimizers=optimizers, ranks=(first_rank,)
        ).requests(),
    )
    for turn in zip_longest(*axes):
        yield from (request for request in turn if request is not None)


def _whole(
    base: MeasureRequest, shape: _Shape, optimizers: tuple[OptimizerName, ...]
) -> tuple[MeasureRequest, ...]:
    """Every optimizer, rank, batch and model."""
    return CampaignMatrix(
        base=base,
        models=shape.models,
        optimizers=optimizers,
        ranks=shape.ranks,
        micro_batch_sizes=shape.micro_batch_sizes,
    ).requests()


def _with_snapshots(points: Iterable[Point]) -> Iterator[Point]:
    """The allocator's history is kept of the first points of unlike kinds."""
    kinds = set[object]()
    for point in points:
        training = point.request.spec.training
        kind = (
            training.optimizer.rank is not None,
            training.activation_checkpointing,
            training.grad_accum_steps > 1,
            training.layerwise_update,
            training.precision,
        )
        snapshot = kind not in kinds and len(kinds) < _NUM_SNAPSHOTS
        kinds.add(kind)
        yield Point(name=point.name, request=point.request.model_copy(update={"snapshot": snapshot}))


def _name(request: MeasureRequest) -> str:
    run, training = request.spec, request.spec.training
    model, _ = resolve_model(run.model)
    name = run.model if isinstance(run.model, str) else f"{model.architecture.lower()}{model.num_layers}"
    optimizer = training.optimizer
    words = (
        name,
        str(optimizer.name),
        "" if optimizer.rank is None else f"r{optimizer.rank}",
        "" if optimizer.implementation == "foreach" else str(optimizer.implementation),
        str(training.precision),
        f"mb{training.micro_batch_size}",
        f"seq{training.seq_len}",
        "" if training.activation_checkpointing == "none" else f"ckpt_{training.activation_checkpointing}",
        "" if training.grad_accum_steps == 1 else f"accum{training.grad_accum_steps}",
        "layerwise" if training.layerwise_update else "",
        "clip" if training.gradient_clipping else "",
        "" if training.attention == "auto" else str(training.attention),
    )
    return "-".join(filter(None, words))
