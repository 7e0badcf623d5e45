"""What an optimizer declares, what the estimator's program says and what a real step holds are the same bytes.

State: every method, shape and dtype, 0 bytes of difference. Temporaries: every method of our own, traced step by step;
those of libraries are held to the estimator's programs in tests/estimator/memory/optimizers.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from whatfits.estimator.catalog.evidence import load_trainer_names
from whatfits.estimator.memory.optimizers import (
    OPTIMIZERS,
    ParameterRole,
    ParameterTensor,
    StepPhase,
    build_optimizer_program,
)
from whatfits.estimator.memory.optimizers.device_scratch import DEVICE_SCRATCH
from whatfits.estimator.memory.optimizers.program import OptimizerEvent, OptimizerProgram
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec
from whatfits.optim_impls.build import complete_hyperparameters
from whatfits.optim_impls.declare import Parameter, Phase, Role, StateTensor
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.optim_impls.quantize import codebook
from whatfits.optim_impls.registry import REGISTRY
from whatfits.profiler.trace.optimizer_step import StepEvent, peak_of_step, trace_optimizer_step

INTERVAL = 3
SHAPES: dict[str, tuple[tuple[int, ...], Role]] = {
    "wide": ((64, 256), Role.MATRIX),
    "tall": ((256, 64), Role.MATRIX),
    "square": ((96, 96), Role.MATRIX),
    "odd": ((48, 5461), Role.MATRIX),
    "odd and tall": ((5461, 48), Role.MATRIX),
    "not a multiple of a block": ((300, 100), Role.MATRIX),
    "rank above the shorter side": ((24, 200), Role.MATRIX),
    "embedding": ((1000, 64), Role.EMBEDDING),
    "head": ((999, 64), Role.HEAD),
    "vector": ((512,), Role.VECTOR),
    "vector above the 8-bit limit": ((5000,), Role.VECTOR),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROLES = {
    Role.MATRIX: ParameterRole.linear,
    Role.EMBEDDING: ParameterRole.embedding,
    Role.HEAD: ParameterRole.head,
    Role.VECTOR: ParameterRole.vector,
}
NAMES = {
    Role.MATRIX: "layers.0.mlp.up_proj.weight",
    Role.EMBEDDING: "embed_tokens.weight",
    Role.HEAD: "lm_head.weight",
    Role.VECTOR: "norm.weight",
}
"""Names by which Adam-mini tells parameters apart."""
SMALL: dict[str, Any] = {"rank": 32, "projection_update_interval": INTERVAL}
SETTINGS: dict[str, dict[str, Any]] = {"adam_mini": {"hidden_size": 64, "num_heads": 4, "foreach": False}}
CUDA_ONLY = frozenset({"paged_adamw", "paged_adamw_8bit", "paged_lion_8bit"})
NOT_STEPPED = {
    # Their declarations are compared with the programs alone.
    **dict.fromkeys(CUDA_ONLY, "needs CUDA"),
    "badam": "holds fp32 weights and states of one layer of several",
    "mezo": "has no gradients",
}
SLOW_SHAPES = {"soap": {"odd", "odd and tall"}}
"""SOAP decomposes 5461 x 5461 squares."""
VARIANTS = {"frugal_columns", "frugal_elements", "frugal_random", "frugal_svd"}
"""Names of the registry for a setting of another name, which has the estimator's program."""
STEPPED = sorted(set(REGISTRY) - set(NOT_STEPPED))
OWN = sorted(name for name in STEPPED if REGISTRY[name].source == "own")
IN_ESTIMATOR = sorted(name for name in REGISTRY if name in set(OptimizerName))


class Case(NamedTuple):
    """One optimizer with one parameter."""

    entry: OptimizerEntry
    hyper: dict[str, Any]
    parameter: Parameter

    @property
    def program(self) -> OptimizerProgram:
        """The estimator's, of our own code where it has a program for that."""
        name = OptimizerName(self.entry.name)
        own = OptimizerImplementation.WHATFITS in OPTIMIZERS[name].implementations
        given: dict[str, Any] = {}
        if OPTIMIZERS[name].has_rank:
            given = {"rank": self.hyper.get("rank"), "projection_update_interval": INTERVAL}
        implementation = OptimizerImplementation.WHATFITS if own else OptimizerImplementation.FOREACH
        spec = OptimizerSpec(name=name, implementation=implementation, **given)
        return build_optimizer_program(
            spec,
            param_dtype_bytes=self.parameter.dtype.itemsize,
            # Of which FRUGAL's density of a quarter is the default rank.
            hidden_size=min(self.parameter.shape),
        )

    @property
    def tensor(self) -> ParameterTensor:
        """The parameter as the estimator has it."""
        role = ROLES[self.parameter.role]
        return ParameterTensor(name=NAMES[self.parameter.role], shape=self.parameter.shape, role=role)

    def build(self) -> torch.optim.Optimizer:
        """The optimizer."""
        torch.manual_seed(0)
        role = self.parameter.role
        param = torch.nn.Parameter(torch.randn(self.parameter.shape).to(self.parameter.dtype))
        group = {"params": [param], "param_names": [NAMES[role]], "role": role.value, "first_number": 0}
        return self.entry.build([group], self.hyper)


def cases(name: str, dtype: str) -> Iterator[tuple[str, Case]]:
    """An optimizer with each shape."""
    entry = REGISTRY[name]
    given = {key: value for key, value in SMALL.items() if key in entry.defaults} | SETTINGS.get(name, {})
    if name.endswith("apollo_mini"):
        given.pop("rank", None)
    hyper = complete_hyperparameters(entry, given)
    for shape, (sizes, role) in SHAPES.items():
        if shape not in SLOW_SHAPES.get(name, set()):
            yield shape, Case(entry, hyper, Parameter(sizes, DTYPES[dtype], role))


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """torchao compiles its update; its state is the same either way."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def give_gradients(optimizer: torch.optim.Optimizer, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)


def storages(value: Any) -> Iterator[torch.UntypedStorage]:
    """Storages of tensors in any nesting of containers, those of tensors made of tensors included."""
    if isinstance(value, torch.Tensor):
        if hasattr(value, "__tensor_flatten__"):
            yield from storages([getattr(value, name) for name in value.__tensor_flatten__()[0]])
        else:
            yield value.untyped_storage()
    elif isinstance(value, dict):
        yield from storages(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from storages(item)


def held_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the distinct storages of an optimizer's state; AdaLomo keeps some in attributes."""
    beside = [value for key, value in vars(optimizer).items() if key.startswith("exp_avg")]
    found = {id(storage): storage for storage in storages([dict(optimizer.state), beside])}
    return sum(storage.nbytes() for storage in found.values())


def total(states: tuple[StateTensor, ...]) -> int:
    return sum(state.nbytes for state in states)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPPED)
def test_declared_state_is_what_steps_leave(name: str, dtype: str) -> None:
    held, declared = {}, {}
    for shape, case in cases(name, dtype):
        optimizer = case.build()
        for step in range(2):
            give_gradients(optimizer, step)
            optimizer.step()
        held[shape] = held_bytes(optimizer)
        declared[shape] = total(case.entry.declaration.states(case.parameter, case.hyper))
        shared = [
            s
            for s in case.entry.declaration.shared_states(case.hyper)
            if s.name in set(state_names(optimizer))
        ]
        declared[shape] += total(tuple(shared))

    assert held == declared


def state_names(optimizer: torch.optim.Optimizer) -> Iterator[str]:
    """bitsandbytes keeps its maps in each quantised parameter's state; ours are one cache per device."""
    for state in optimizer.state.values():
        yield from state


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IN_ESTIMATOR)
def test_the_estimators_program_says_the_same_state(name: str, dtype: str) -> None:
    said, declared = {}, {}
    for shape, case in cases(name, dtype):
        program, declaration = case.program, case.entry.declaration
        states, shared = program.states(case.tensor), program.shared_states([case.tensor])
        said[shape] = sum(state.nbytes for state in (*states, *shared))
        declared[shape] = total(declaration.states(case.parameter, case.hyper))
        # Maps of 8-bit codes are there once something is quantised.
        declared[shape] += total(declaration.shared_states(case.hyper)) if shared and name in SHARING else 0

    assert said == declared


SHARING = {name for name in REGISTRY if REGISTRY[name].declaration.shared_states(REGISTRY[name].defaults)}


def test_the_maps_that_our_8_bit_states_share_are_as_declared() -> None:
    entry = REGISTRY["adamw_8bit"]
    books = [codebook(torch.device("cpu"), is_signed=signed) for signed in (True, False)]

    held = sum(storage.nbytes() for storage in storages([tuple(vars_of(book)) for book in books]))

    assert held == total(entry.declaration.shared_states(entry.defaults))


def vars_of(book: Any) -> list[Any]:
    return [getattr(book, name) for name in getattr(book, "_fields", None) or book.__dataclass_fields__]


def temporaries(events: list[StepEvent], *, makes_state: bool) -> int:
    """Peak of a step beside the state it makes; what a refresh holds of old and new state at once counts."""
    if not makes_state:
        return peak_of_step(events)
    freed = {event.block for event in events if event.kind == "free"}
    return peak_of_step(event for event in events if event.block in freed)


def traced(case: Case, num_steps: int) -> list[int]:
    """Temporaries of each step."""
    optimizer = case.build()
    peaks = []
    for step in range(num_steps):
        give_gradients(optimizer, step)
        events = trace_optimizer_step(optimizer)
        peaks.append(temporaries(events, makes_state=step == 0))
    return peaks


def near(actual: int, expected: int) -> bool:
    """Within 1%, and 64 bytes for the single numbers that the CPU's path alone allocates."""
    return abs(actual - expected) <= max(0.01 * expected, 64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OWN)
def test_declared_temporaries_are_those_of_traced_steps(name: str, dtype: str) -> None:
    wrong = {}
    for shape, case in cases(name, dtype):
        declaration = case.entry.declaration
        expected = {p: declaration.transient_bytes(case.parameter, case.hyper, p) for p in Phase}
        interval = declaration.refresh_interval(case.hyper) or 1
        # Which steps of an interval refresh is the method's own affair; two intervals have two that do.
        later = [expected[Phase.STEADY]] * (2 * interval)
        if interval > 1 and case.parameter.role is Role.MATRIX:
            later[:2] = [expected[Phase.REFRESH]] * 2

        first, *peaks = traced(case, 1 + 2 * interval)

        pairs = [(first, expected[Phase.FIRST]), *zip(sorted(peaks), sorted(later), strict=True)]
        if not all(near(*pair) for pair in pairs):
            wrong[shape] = pairs
    assert wrong == {}


def plain(events: list[OptimizerEvent]) -> list[StepEvent]:
    """A program's events with numbers for blocks; of two under one key the older is freed first.

    What CUDA's libraries take inside a kernel is left out: a declaration is of tensors, on every device.
    """
    live: dict[object, list[int]] = {}
    found = []
    for number, event in enumerate(event for event in events if event.label != DEVICE_SCRATCH):
        if event.kind == "alloc":
            live.setdefault(event.key, []).append(number)
            found.append(StepEvent("alloc", number, event.nbytes))
        else:
            # A block older than the step has no number.
            is_older = len(live.get(event.key, ())) < 2 and event.key[0] != "tmp"  # type: ignore[index]
            block = -1 if is_older or not live.get(event.key) else live[event.key].pop(0)
            found.append(StepEvent("free", block, event.nbytes))
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(set(OWN) & set(IN_ESTIMATOR)))
def test_the_estimators_program_says_the_same_temporaries(name: str, dtype: str) -> None:
    wrong = {}
    for shape, case in cases(name, dtype):
        for phase in StepPhase:
            events = plain(case.program.events([case.tensor], phase))
            said = temporaries(events, makes_state=phase is StepPhase.first)
            declared = case.entry.declaration.transient_bytes(case.parameter, case.hyper, Phase(phase.value))
            if said != declared:
                wrong[shape, phase] = (said, declared)
    assert wrong == {}


def test_the_estimator_knows_every_method_of_our_own() -> None:
    assert {name for name in REGISTRY if REGISTRY[name].source == "own"} - VARIANTS <= set(OptimizerName)


def test_whatever_is_not_stepped_here_is_registered() -> None:
    assert set(NOT_STEPPED) | set(SLOW_SHAPES) | VARIANTS <= set(REGISTRY)


@pytest.mark.parametrize("name", sorted(set(REGISTRY) & set(OptimizerName)))
def test_registry_and_catalog_agree_on_the_trainers_name(name: str) -> None:
    assert REGISTRY[name].trainer_name == load_trainer_names().get(OptimizerName(name))


@pytest.mark.parametrize("name", sorted(set(REGISTRY) & set(OptimizerName)))
def test_registry_and_estimator_agree_on_what_a_method_can_be_combined_with(name: str) -> None:
    can, facts = REGISTRY[name].capabilities, OPTIMIZERS[OptimizerName(name)]

    assert (not can.whole_step) is facts.layerwise_only
    assert can.layerwise is facts.layerwise_possible
    assert can.accumulates is facts.can_accumulate
    assert can.clips is facts.can_clip
