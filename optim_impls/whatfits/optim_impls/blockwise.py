"""Optimizer states as 8-bit blocks: what they are, and an update that dequantises one chunk of a parameter at a time.

arXiv:2110.02861, section 2. An update written for fp32 tensors runs on each chunk; its states are dequantised before
and quantised after. What is held beside the states depends on the chunk's size and not on the parameter's.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from whatfits.optim_impls.declare import StateTensor
from whatfits.optim_impls.quantize import (
    BLOCK_SIZE,
    QuantizeBuffers,
    codebook,
    codebook_tensors,
    dequantize,
    quantize,
)

__all__ = [
    "CHUNK_SIZE",
    "MIN_8BIT_SIZE",
    "ChunkUpdate",
    "Moment",
    "init_moments",
    "is_quantised",
    "largest_chunk",
    "load_codebooks",
    "moment_states",
    "shared_maps",
    "update_in_chunks",
    "workspace_bytes",
]

MIN_8BIT_SIZE = 4096
"""Tensors with fewer elements keep fp32 states."""

CHUNK_SIZE = 1 << 18
"""Elements worked on at a time: 4.6 MiB of fp32 copies for two states, which stay in a CPU's cache."""


class Moment(NamedTuple):
    """A state of a method: its name, and whether it can be negative (which map it needs)."""

    name: str
    is_signed: bool


ChunkUpdate = Callable[[Tensor, Tensor, Sequence[Tensor]], None]
"""(param, grad, moments), all flat fp32 of one length: change param and moments in place, keep grad."""


def is_quantised(numel: int, *, min_8bit_size: int, wants_8bit: bool = True) -> bool:
    """Whether a state of this many elements is kept in 8 bits."""
    return wants_8bit and numel >= min_8bit_size


def moment_states(
    shape: tuple[int, ...], moments: Sequence[Moment], *, quantised: bool
) -> tuple[StateTensor, ...]:
    """Per state e + 4 ceil(e / 256) bytes, or 4 e in fp32; the dtype of the parameter does not matter."""
    if not quantised:
        return tuple(StateTensor(moment.name, shape, torch.float32) for moment in moments)
    numel = torch.Size(shape).numel()
    blocks = (-(-numel // BLOCK_SIZE),)
    return tuple(
        state
        for moment in moments
        for state in (
            StateTensor(moment.name, shape, torch.uint8),
            StateTensor(absmax_of(moment), blocks, torch.float32),
        )
    )


def largest_chunk(numel: int, *, quantised: bool, chunk_size: int) -> int:
    """Elements of the largest chunk an update is given: whole blocks, unless there is none."""
    whole = numel // BLOCK_SIZE * BLOCK_SIZE
    return min(chunk_size, whole if quantised and whole else numel)


def absmax_of(moment: Moment) -> str:
    """Name of the state that holds a moment's maxima."""
    return f"{moment.name}_absmax"


def init_moments(
    shape: tuple[int, ...], moments: Sequence[Moment], *, quantised: bool, device: torch.device
) -> dict[str, Any]:
    """States of zeros, and the step as a number."""
    states = moment_states(shape, moments, quantised=quantised)
    return {"step": 0} | {
        state.name: torch.zeros(state.shape, dtype=state.dtype, device=device) for state in states
    }


def load_codebooks(params: Iterable[Tensor], moments: Sequence[Moment]) -> None:
    """Make the codebooks of the parameters' devices, so that no step does."""
    for device in {param.device for param in params}:
        for moment in moments:
            codebook(device, is_signed=moment.is_signed)


def shared_maps(moments: Sequence[Moment]) -> tuple[StateTensor, ...]:
    """The codebooks the process holds once it has quantised such moments."""
    signs = sorted({moment.is_signed for moment in moments}, reverse=True)
    return tuple(
        StateTensor(f"{'signed' if is_signed else 'unsigned'}_{name}", shape, dtype)
        for is_signed in signs
        for name, shape, dtype in codebook_tensors()
    )


class _Workspace(NamedTuple):
    moments: tuple[Tensor, ...]  # (n,) fp32 each
    grad: Tensor  # (n,) fp32; the boundaries when quantising
    param: Tensor  # (n,) fp32; the index when quantising
    flags: Tensor  # (2, n) bool
    inverse: Tensor  # (n / 256,) fp32
    tail: Tensor  # (256,) uint8: codes of the last block, which may not be whole


def workspace_bytes(
    numel: int, dtype: torch.dtype, num_moments: int, *, quantised: bool, chunk_size: int
) -> tuple[int, ...]:
    """Sizes of the tensors an update works in; none for fp32 weights whose states are fp32."""
    if quantised:
        n = min(chunk_size, -(-numel // BLOCK_SIZE) * BLOCK_SIZE)
        return (*[4 * n] * (num_moments + 2), 2 * n, 4 * n // BLOCK_SIZE, BLOCK_SIZE)
    n = min(chunk_size, numel)
    return () if dtype is torch.float32 else (8 * n,)


def update_in_chunks(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    moments: Sequence[Moment],
    update: ChunkUpdate,
    *,
    chunk_size: int = CHUNK_SIZE,
) -> None:
    """Run an update of fp32 tensors on each chunk of a parameter with its moments.

    Args:
        param: Any shape, contiguous; changed in place.
        grad: As param.
        state: As `init_moments` makes it.
        moments: Names and signs of its states.
        update: The method.
        chunk_size: A multiple of 256.
    """
    flat_param, flat_grad = param.view(-1), grad.reshape(-1)
    numel = param.numel()
    if state[moments[0].name].dtype is torch.uint8:
        n = min(chunk_size, -(-numel // BLOCK_SIZE) * BLOCK_SIZE)
        space = _make_workspace(n, len(moments), param.device)
        for chunk in _chunks(numel, n):
            _update_quantised(flat_param[chunk], flat_grad[chunk], chunk, state, moments, update, space)
        return
    n = min(chunk_size, numel)
    # Nothing is copied in fp32; an empty tensor allocates nothing.
    spare = torch.empty(
        0 if param.dtype is torch.float32 else 2 * n, dtype=torch.float32, device=param.device
    )
    for start in range(0, numel, n):
        chunk = slice(start, min(start + n, numel))
        values = [state[moment.name].view(-1)[chunk] for moment in moments]
        _update_fp32(flat_param[chunk], flat_grad[chunk], values, update, spare[:n], spare[n:])


def _chunks(numel: int, n: int) -> Iterator[slice]:
    """Chunks of at most n elements; the elements after the last whole block come last, alone."""
    whole = numel // BLOCK_SIZE * BLOCK_SIZE
    for start in range(0, whole, n):
        yield slice(start, min(start + n, whole))
    if whole < numel:
        yield slice(whole, numel)


def _make_workspace(n: int, num_moments: int, device: torch.device) -> _Workspace:
    fp32 = [torch.empty(n, dtype=torch.float32, device=device) for _ in range(num_moments + 2)]
    return _Workspace(
        moments=tuple(fp32[2:]),
        grad=fp32[0],
        param=fp32[1],
        flags=torch.empty((2, n), dtype=torch.bool, device=device),
        inverse=torch.empty(n // BLOCK_SIZE, dtype=torch.float32, device=device),
        tail=torch.zeros(BLOCK_SIZE, dtype=torch.uint8, device=device),
    )


def _update_quantised(
    param: Tensor,
    grad: Tensor,
    chunk: slice,
    state: dict[str, Any],
    moments: Sequence[Moment],
    update: ChunkUpdate,
    space: _Workspace,
) -> None:
    k = param.numel()
    n = -(-k // BLOCK_SIZE) * BLOCK_SIZE
    blocks = slice(chunk.start // BLOCK_SIZE, chunk.start // BLOCK_SIZE + n // BLOCK_SIZE)
    buffers = QuantizeBuffers(
        space.grad[:n],
        space.param[:n].view(torch.int32),
        space.flags[0, :n],
        space.flags[1, :n],
        space.inverse[: n // BLOCK_SIZE],
    )
    books = [codebook(param.device, is_signed=moment.is_signed) for moment in moments]
    values = [value[:n] for value in space.moments]
    for moment, book, value in zip(moments, books, values, strict=True):
        codes, absmax = state[moment.name].view(-1)[chunk], state[absmax_of(moment)][blocks]
        if k < n:
            space.tail[:k].copy_(codes)
            codes = space.tail
        dequantize(codes, absmax, value, book, buffers)
    _update_fp32(
        param,
        grad,
        [value[:k] for value in values],
        update,
        space.grad,
        space.param,
    )
    for moment, book, value in zip(moments, books, values, strict=True):
        codes, absmax = state[moment.name].view(-1)[chunk], state[absmax_of(moment)][blocks]
        value[k:].zero_()
        quantize(value, space.tail if k < n else codes, absmax, book, buffers)
        if k < n:
            codes.copy_(space.tail[:k])


def _update_fp32(
    param: Tensor,
    grad: Tensor,
    values: Sequence[Tensor],
    update: ChunkUpdate,
    grad_copy: Tensor,
    param_copy: Tensor,
) -> None:
    """Lower precisions are updated in fp32 and rounded once."""
    if param.dtype is torch.float32:
        update(param, grad, values)
        return
    k = param.numel()
    update(param_copy[:k].copy_(param), grad_copy[:k].copy_(grad), values)
    param.copy_(param_copy[:k])
