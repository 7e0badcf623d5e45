"""What every own optimizer must do: step alike under a seed, resume bitwise, hold the bytes it declares."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from whatfits.estimator.memory.optimizers import (
    OptimizerEvent,
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    StepPhase,
)
from whatfits.optim_impls.declare import Parameter, Phase, Role
from whatfits.optim_impls.entry import OptimizerEntry
from whatfits.profiler.trace.optimizer_step import peak_of_step, state_tensors, trace_optimizer_step

Shape = tuple[int, ...]

DTYPES = (torch.float32, torch.bfloat16)
SHAPES: dict[str, tuple[Shape, Role]] = {
    "wide": ((64, 160), Role.MATRIX),
    "tall": ((160, 64), Role.MATRIX),
    "square": ((96, 96), Role.MATRIX),
    "odd tall": ((5461, 48), Role.MATRIX),
    "odd": ((300, 100), Role.MATRIX),
    "tiny": ((7, 9), Role.MATRIX),
    "several pieces": ((1500, 1402), Role.MATRIX),
    "vector": ((101,), Role.VECTOR),
    "embedding": ((500, 32), Role.EMBEDDING),
    "head": ((500, 32), Role.HEAD),
}
PROGRAM_ROLES = {
    Role.MATRIX: ParameterRole.linear,
    Role.EMBEDDING: ParameterRole.embedding,
    Role.HEAD: ParameterRole.head,
    Role.VECTOR: ParameterRole.vector,
}


def make_params(
    shapes: Iterable[tuple[Shape, Role]], dtype: torch.dtype, device: torch.device, *, seed: int = 0
) -> list[tuple[torch.nn.Parameter, Role]]:
    """Parameters with values that depend on the seed only."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)), role)
        for shape, role in shapes
    ]


def set_grads(params: Iterable[torch.Tensor], step: int) -> None:
    """Gradients that depend on the step only."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param.device, param.dtype)


def build(
    entry: OptimizerEntry,
    params: Iterable[tuple[torch.nn.Parameter, Role]],
    hyper: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """The optimizer over groups by role, matrices last."""
    groups: dict[str, dict[str, Any]] = {}
    for param, role in sorted(params, key=lambda pair: pair[1] is Role.MATRIX):
        groups.setdefault(role.value, {"params": [], "role": role.value})["params"].append(param)
    return entry.build(list(groups.values()), {**entry.defaults, **hyper})


def train(
    entry: OptimizerEntry,
    hyper: Mapping[str, Any],
    shapes: Iterable[tuple[Shape, Role]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    steps: int,
    break_at: int | None = None,
) -> list[torch.Tensor]:
    """Parameters after some steps, with a break: saved, loaded with weights_only, continued in a new optimizer."""
    params = make_params(shapes, dtype, device)
    optimizer = build(entry, params, hyper)
    for step in range(steps):
        if step == break_at:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            params = [(torch.nn.Parameter(param.detach().clone()), role) for param, role in params]
            optimizer = build(entry, params, hyper)
            optimizer.load_state_dict(torch.load(file, weights_only=True))
        set_grads([param for param, _ in params], step)
        optimizer.step()
    return [param.detach() for param, _ in params]


def check_deterministic_and_resumes(
    entry: OptimizerEntry, hyper: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> None:
    """Two runs are equal bitwise, and a run with a break is too."""
    shapes = [SHAPES[name] for name in ("wide", "tall", "tall", "square", "vector", "embedding")]
    whole = train(entry, hyper, shapes, dtype, device, steps=7)
    again = train(entry, hyper, shapes, dtype, device, steps=7)
    broken = train(entry, hyper, shapes, dtype, device, steps=7, break_at=4)

    assert all(torch.isfinite(param).all() for param in whole)
    for first, second, third in zip(whole, again, broken, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def check_bytes(
    entry: OptimizerEntry,
    hyper: Mapping[str, Any],
    program: OptimizerProgram,
    named_shape: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """State and transients of one parameter: held = declared = program; first, steady and refresh steps.

    `hyper` refreshes every second step, so that the third step does.
    """
    shape, role = SHAPES[named_shape]
    complete = {**entry.defaults, **hyper}
    param, _ = make_params([(shape, role)], dtype, device)[0]
    optimizer = build(entry, [(param, role)], hyper)
    declared = Parameter(shape, dtype, role)
    tensor = ParameterTensor(name="p", shape=shape, role=PROGRAM_ROLES[role])
    refreshes = entry.declaration.refresh_interval(complete) is not None
    last = Phase.REFRESH if refreshes else Phase.STEADY
    for step, phase in enumerate((Phase.FIRST, Phase.STEADY, last)):
        set_grads([param], step)
        traced = peak_of_step(trace_optimizer_step(optimizer))
        held = sorted(storage_bytes(state_tensors(optimizer)))
        states = entry.declaration.states(declared, complete)

        assert held == sorted(state.nbytes for state in states)
        assert held == sorted(state.nbytes for state in program.states(tensor))
        assert traced == events_peak(program.events([tensor], StepPhase(phase.value)))
        if phase is not Phase.FIRST:
            assert traced == entry.declaration.transient_bytes(declared, complete, phase)
        else:
            least = entry.declaration.transient_bytes(declared, complete, Phase.FIRST)
            assert least <= traced <= least + sum(held)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> list[int]:
    """Bytes of the storages behind some tensors, each once: a view holds all of its storage."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return [storage.nbytes() for storage in storages.values()]


def events_peak(events: Iterable[OptimizerEvent]) -> int:
    """Highest sum of live bytes over a program's events, not rounded as an allocator would."""
    live = peak = 0
    for event in events:
        live += event.nbytes if event.kind == "alloc" else -event.nbytes
        peak = max(peak, live)
    return peak


def check_shards_step_as_the_whole(entry: OptimizerEntry, dtype: torch.dtype) -> None:
    """Two ranks' shards of DTensors, one after the other in this process, become the rows of the whole parameter."""
    whole = train(entry, {}, [SHAPES["tall"]], dtype, torch.device("cpu"), steps=3)[0]
    (param, _), *_ = make_params([SHAPES["tall"]], dtype, torch.device("cpu"))
    shards = []
    for rank in range(2):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        try:
            shards.append(_train_shard(entry, param.detach(), rank))
        finally:
            torch.distributed.destroy_process_group()

    assert torch.equal(torch.cat(shards), whole)


def _train_shard(entry: OptimizerEntry, values: torch.Tensor, rank: int) -> torch.Tensor:
    mesh = init_device_mesh("cpu", (2,))

    def shard(full: torch.Tensor) -> DTensor:
        return DTensor.from_local(full.chunk(2)[rank].clone(), mesh, [Shard(0)], run_check=False)

    param = torch.nn.Parameter(shard(values))
    optimizer = build(entry, [(param, Role.MATRIX)], {})
    for step in range(3):
        full = torch.empty_like(values)
        set_grads([full], step)
        assert full.grad is not None
        param.grad = shard(full.grad)
        optimizer.step()
    assert isinstance(param, DTensor)
    return param.to_local().detach()
