"""Why a candidate stands where it does, why a choice fails, and the smallest change that fits. In sentences."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from whatfits.estimator.catalog import load_gpus
from whatfits.estimator.memory.breakdown import breakdown_at, phase_at
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.memory.verdict import FITS_AT
from whatfits.estimator.recommend.choices import PLACEMENT_WORDS, Choice
from whatfits.estimator.recommend.rank import Ranked
from whatfits.estimator.recommend.search import Found, Search
from whatfits.estimator.specs import (
    ActivationCheckpointing,
    OptimizerImplementation,
    OptimizerName,
    OptimizerSpec,
    PeakPhase,
    Rejection,
)
from whatfits.estimator.specs.layerwise import (
    FORWARD_ONLY_OPTIMIZERS,
    IN_BACKWARD_OPTIMIZERS,
    ONE_LAYER_OPTIMIZERS,
)
from whatfits.estimator.units import format_bytes

__all__ = ["optimizer_words", "reasons", "rejections"]

_PHASE_WORDS = {
    PeakPhase.FORWARD: "the forward pass",
    PeakPhase.LOSS: "the loss",
    PeakPhase.BACKWARD: "the backward pass",
    PeakPhase.OPTIMIZER_STEP: "the optimizer step",
}
_LARGEST_TERMS = 3
_ON_ONE_GPU = {
    **dict.fromkeys(
        IN_BACKWARD_OPTIMIZERS,
        "updates each parameter inside the backward pass, before gradients are reduced over the ranks",
    ),
    **dict.fromkeys(
        ONE_LAYER_OPTIMIZERS, "freezes other layers every few steps, which DDP and FSDP do not follow"
    ),
}
"""Optimizers that run on one GPU alone, and why."""
_NOT_MODELLED = dict.fromkeys(
    FORWARD_ONLY_OPTIMIZERS, "has no backward pass, and every profile of a run has one: not modelled yet"
)
"""Optimizers that no placement takes, and why."""
_NOT_FOR_MODEL = "is not modelled for an architecture like this yet"
_UNPLACED = _NOT_MODELLED | _ON_ONE_GPU
_PLAIN = frozenset({OptimizerName.SGD, OptimizerName.SGDM, OptimizerName.LOMO})
"""SGD in its forms: without a second moment."""
_CAUTIONS = {
    **dict.fromkeys(
        ONE_LAYER_OPTIMIZERS,
        "It trains one layer at a time: a token of its step teaches less than one of the others.",
    ),
    **dict.fromkeys(
        _PLAIN, "It is SGD, without a second moment: whether it reaches AdamW's loss is not considered here."
    ),
}
"""What speed and memory do not show. Source: BAdam's losses after 10,000 steps of pre-training, 7.1 to 7.9 where Adam's are
3.3 to 4.6 (arXiv:2502.01586, Table 1)."""


def optimizer_words(optimizer: OptimizerSpec) -> str:
    """An optimizer for a reader: `galore_adamw rank 1024`, `adamw fused`."""
    if optimizer.rank is not None:
        return f"{optimizer.name} rank {optimizer.rank}"
    if optimizer.implementation is not OptimizerImplementation.FOREACH:
        return f"{optimizer.name} {optimizer.implementation}"
    return str(optimizer.name)


def reasons(search: Search, ranked: Ranked, position: int) -> tuple[str, ...]:
    """What sets one ranked configuration apart."""
    found = search.found[ranked.choice[position]]
    point = int(ranked.point[position])
    sentences = []
    if position == ranked.fastest:
        sentences.append("Fastest of all that fit.")
    if position == ranked.leanest:
        sentences.append("Least memory of all that fit.")
    if position in ranked.best_of_choice:
        sentences.append(f"Best of {optimizer_words(found.choice.optimizer)} on {found.choice.words}.")
    if ranked.pareto[position]:
        sentences.append("Nothing faster needs less memory.")
    if found.choice.optimizer.name in _CAUTIONS:
        sentences.append(_CAUTIONS[found.choice.optimizer.name])
    usable = search.device.usable.nbytes
    if found.probability[point] < FITS_AT:
        low, high = format_bytes(found.low[point]), format_bytes(found.high[point])
        sentences.append(
            f"Uncertain: the 90% interval {low} to {high} reaches beyond the {format_bytes(usable)} usable."
        )
    return tuple(sentences)


def rejections(search: Search, asked: Iterable[OptimizerName]) -> tuple[Rejection, ...]:
    """One entry per choice of which no batch point fits, and per optimizer that runs on no placement."""
    placed = {found.choice.optimizer.name for found in search.found}
    unplaced = tuple(
        Rejection(
            optimizer=name,
            placement="several GPUs" if name in _ON_ONE_GPU else "any",
            why=f"{name} {_UNPLACED.get(name, _NOT_FOR_MODEL)}.",
        )
        for name in asked
        if name not in placed
    )
    return unplaced + tuple(
        Rejection(
            optimizer=found.choice.optimizer.name,
            rank=found.choice.optimizer.rank,
            placement=_placement_words(found.choice),
            why=_why(search, found),
            smallest_change_that_fits=_smallest_change(search, found),
        )
        for found in search.found
        if not found.may_fit.any()
    )


def _placement_words(choice: Choice) -> str:
    """The placement, and the implementation where it is not the default one."""
    fused = choice.optimizer.implementation is OptimizerImplementation.FUSED
    return f"{choice.words}, fused step" if fused else choice.words


def _why(search: Search, found: Found) -> str:
    """The cheapest batch point's need against the limit, and its largest terms."""
    point = int(found.median.argmin())
    number, index = found.locate(point)
    memory, peaks, grid = found.memories[number], found.peaks[number], found.grids[number]
    row = int(peaks.row[index])
    parts = breakdown_at(
        memory,
        grid.sizes[index],
        row,
        int(peaks.nbytes[index]),
        later_micro_batch=bool(peaks.later_micro_batch[index]),
    )
    terms = sorted(parts.model_dump().items(), key=lambda item: -item[1])[:_LARGEST_TERMS]
    largest = ", ".join(
        f"{name.replace('_', ' ')} {format_bytes(nbytes)}" for name, nbytes in terms if nbytes
    )
    setting = search.points[point]
    checkpointed = setting.checkpointing is ActivationCheckpointing.FULL
    return (
        f"Even micro-batch {setting.micro_batch_size} {'with full' if checkpointed else 'without'} checkpointing needs "
        f"{format_bytes(found.median[point])} in {_PHASE_WORDS[phase_at(memory, row)]}, of "
        f"{format_bytes(search.device.usable.nbytes)} usable: {largest}."
    )


def _smallest_change(search: Search, found: Found) -> str | None:
    """The nearest choice that fits: same optimizer before same placement before both different; else a larger GPU."""
    for distance, words in _changes(found.choice, search):
        best = max(distance, key=lambda f: float(f.times.tokens_per_second[f.may_fit].max()), default=None)
        if best is not None:
            point = int(np.flatnonzero(best.may_fit)[best.median[best.may_fit].argmin()])
            certain = "" if best.probability[point] >= FITS_AT else " (uncertain)"
            return f"{words(best.choice)}: {format_bytes(best.median[point])}{certain}."
    return _larger_gpu(found)


def _changes(choice: Choice, search: Search) -> Iterator[tuple[list[Found], Callable[[Choice], str]]]:
    """Fitting choices by growing distance, each with how to say it."""
    everything = [f for f in search.found if f.may_fit.any()]
    # SGD needs the least memory and trains transformers badly, so it is named only where nothing else fits.
    adaptive = [f for f in everything if f.choice.optimizer.name not in _PLAIN]
    fitting = everything if choice.optimizer.name in _PLAIN else adaptive or everything
    same_optimizer = [f for f in fitting if f.choice.optimizer == choice.optimizer]
    same_name = [f for f in fitting if f.choice.optimizer.name == choice.optimizer.name]
    same_placement = [
        f
        for f in fitting
        if f.choice.placement == choice.placement and f.choice.layerwise == choice.layerwise
    ]
    yield [f for f in same_optimizer if f.choice.placement is Placement.DDP_BUCKET_VIEW], _by_placement
    yield [f for f in same_optimizer if f.choice.layerwise], _by_placement
    yield same_optimizer, _by_placement
    yield [f for f in same_name if f.choice.placement == choice.placement], _by_optimizer
    yield same_placement, _by_optimizer
    yield fitting, _by_both


def _by_placement(choice: Choice) -> str:
    return f"Use {choice.words}"


def _by_optimizer(choice: Choice) -> str:
    return f"Use {optimizer_words(choice.optimizer)}"


def _by_both(choice: Choice) -> str:
    return f"Use {optimizer_words(choice.optimizer)} on {choice.words}"


def _larger_gpu(found: Found) -> str | None:
    """The smallest GPU of the catalog whose memory holds the cheapest batch point for sure."""
    needed = float(found.high.min())
    enough = [
        gpu
        for gpu in load_gpus().values()
        if gpu.total_bytes is not None and gpu.supports_flash and gpu.total_bytes >= needed
    ]
    if not enough:
        return None
    gpu = min(enough, key=lambda g: (g.total_bytes or 0, g.id))
    words = PLACEMENT_WORDS[found.choice.placement]
    return f"Use a GPU with {format_bytes(needed)}, such as {gpu.id}, on {words}."
