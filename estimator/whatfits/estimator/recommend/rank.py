"""Order what fits, mark the Pareto front, choose what is shown."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.memory.peak import FloatArray
from whatfits.estimator.memory.verdict import FITS_AT
from whatfits.estimator.recommend.search import Search
from whatfits.estimator.specs import Objective

__all__ = ["Ranked", "rank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """Configurations that fit or may, best first. Arrays are parallel: choice, point, Pareto mark."""

    choice: NDArray[np.int64]
    point: NDArray[np.int64]
    pareto: NDArray[np.bool_]
    shown: NDArray[np.int64]
    """Positions to show: the best of every choice, and the next best up to the limit; in order."""
    best_of_choice: frozenset[int]
    """Positions of the best of every choice."""
    fastest: int
    """Position of the fastest certain fit, of any fit where none is certain; -1 where nothing fits."""
    leanest: int
    """The same for the least memory."""


def rank(search: Search, objective: Objective, limit: int) -> Ranked:
    """Certain fits first, then by the objective; ties by the other objective, then by order of the search."""
    may_fit = np.stack([f.may_fit for f in search.found])
    choice, point = np.nonzero(may_fit)
    speed = np.stack([f.times.tokens_per_second for f in search.found])[choice, point]
    memory = np.stack([f.median for f in search.found])[choice, point]
    certain = np.stack([f.probability for f in search.found])[choice, point] >= FITS_AT
    keys = (memory, -speed) if objective is Objective.THROUGHPUT else (-speed, memory)
    order = np.lexsort((point, choice, *keys, ~certain))
    choice, point, speed, memory = choice[order], point[order], speed[order], memory[order]
    first = np.unique(choice, return_index=True)[1]
    pool = int(certain.sum()) or len(choice)  # certain fits stand first
    return Ranked(
        choice=choice,
        point=point,
        pareto=pareto_front(speed, memory),
        shown=_shown(first, len(choice), limit),
        best_of_choice=frozenset(first.tolist()),
        fastest=int(speed[:pool].argmax()) if pool else -1,
        leanest=int(memory[:pool].argmin()) if pool else -1,
    )


def pareto_front(speed: FloatArray, memory: FloatArray) -> NDArray[np.bool_]:
    """Entries that no other entry matches or beats in speed and memory and beats in one."""
    front = np.zeros(len(speed), dtype=bool)
    best = np.inf
    order = np.lexsort((memory, -speed))
    for start, j in enumerate(order):
        if memory[j] < best:
            best = memory[j]
            front[j] = True
        elif start and memory[j] == best and speed[j] == speed[order[start - 1]] and front[order[start - 1]]:
            front[j] = True
    return front


def _shown(first: NDArray[np.int64], count: int, limit: int) -> NDArray[np.int64]:
    """The first entry of every choice, then further entries in order until `limit` are there."""
    rest = np.setdiff1d(np.arange(count), first)
    result: NDArray[np.int64] = np.sort(np.concatenate([first, rest[: max(0, limit - len(first))]]))
    return result
