"""Block-wise 8-bit quantisation: bitsandbytes' maps, maxima and values bit for bit; the nearest code always."""

from typing import Any, NamedTuple

import bitsandbytes.functional
import pytest
import torch
from torch import Tensor

from tests.optim_impls.quantised_checks import dynamic_map, round_trip
from whatfits.optim_impls.quantize import (
    BLOCK_SIZE,
    QuantizeBuffers,
    codebook,
    codebook_tensors,
    dequantize,
    quantize,
)

REFERENCE: Any = bitsandbytes.functional  # it has no types
TABLE_STEP = 2.0**-15
"""Bitsandbytes' CPU code looks a value of -1 to 1 up in 65,536 equal steps."""


class Quantised(NamedTuple):
    codes: Tensor
    absmax: Tensor
    values: Tensor


def make_buffers(n: int, device: torch.device) -> QuantizeBuffers:
    return QuantizeBuffers(
        torch.empty(n, device=device),
        torch.empty(n, dtype=torch.int32, device=device),
        torch.empty(n, dtype=torch.bool, device=device),
        torch.empty(n, dtype=torch.bool, device=device),
        torch.empty(n // BLOCK_SIZE, device=device),
    )


def quantise(x: Tensor, *, is_signed: bool) -> Quantised:
    book, buffers = codebook(x.device, is_signed=is_signed), make_buffers(x.numel(), x.device)
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    absmax = torch.empty(x.numel() // BLOCK_SIZE, device=x.device)
    values = torch.empty_like(x)
    quantize(x.clone(), codes, absmax, book, buffers)
    dequantize(codes, absmax, values, book, buffers)
    return Quantised(codes, absmax, values)


def samples(device: torch.device) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n = 64 * BLOCK_SIZE
    normal = torch.randn(n, generator=generator)
    magnitudes = 10 ** (-9 * torch.rand(n, generator=generator))
    return {
        "normal": normal.to(device),
        "many magnitudes": (normal.sign() * magnitudes).to(device),
        "linear": torch.linspace(-1, 1, n).to(device),
        "tiny": (normal * 1e-30).to(device),
        "few": (normal * (torch.rand(n, generator=generator) < 0.01)).to(device),
    }


NAMES = ("normal", "many magnitudes", "linear", "tiny", "few")


@pytest.mark.parametrize("is_signed", [True, False])
def test_map_is_that_of_bitsandbytes(device: torch.device, is_signed: bool) -> None:
    values = codebook(device, is_signed=is_signed).values.cpu()

    assert torch.equal(values, REFERENCE.create_dynamic_map(signed=is_signed))
    torch.testing.assert_close(values.double(), dynamic_map(is_signed=is_signed), rtol=1e-6, atol=0)


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_code_is_the_nearest(device: torch.device, name: str, is_signed: bool) -> None:
    x = samples(device)[name] if is_signed else samples(device)[name].abs()
    expected = round_trip(x, is_signed=is_signed)
    got = quantise(x, is_signed=is_signed).values.double()

    # Ties, and what fp32 rounds to one, may go either way: no value is further off than the definition's.
    scale = x.abs().view(-1, BLOCK_SIZE).amax(1).repeat_interleave(BLOCK_SIZE).double()
    assert ((got - x).abs() <= (expected - x).abs() + 1e-6 * scale).all()


@pytest.mark.parametrize("is_signed", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_bitsandbytes_on_the_cpu(name: str, is_signed: bool) -> None:
    """Maxima and dequantised values bit for bit; codes wherever its table of equal steps tells two values apart."""
    x = samples(torch.device("cpu"))[name]
    x = x if is_signed else x.abs()
    values = REFERENCE.create_dynamic_map(signed=is_signed)
    codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(x, values.clone(), BLOCK_SIZE)
    got = quantise(x, is_signed=is_signed)

    assert torch.equal(got.absmax, absmax)
    theirs = torch.ops.bitsandbytes.dequantize_blockwise(got.codes, absmax, values, BLOCK_SIZE, torch.float32)
    assert torch.equal(got.values, theirs)
    scaled = x.view(-1, BLOCK_SIZE) / absmax.clamp(min=1e-38)[:, None]
    middles = (values[1:] + values[:-1]) / 2
    to_boundary = (scaled.reshape(-1, 1) - middles).abs().amin(1)
    decided = (to_boundary > TABLE_STEP) & (absmax.repeat_interleave(BLOCK_SIZE) > 0)
    assert torch.equal(got.codes[decided], codes[decided])
    # Elsewhere ours is nearer.
    off = torch.ops.bitsandbytes.dequantize_blockwise(codes, absmax, values, BLOCK_SIZE, torch.float32) - x
    assert ((got.values - x).abs() <= off.abs() + 1e-6 * x.abs().max()).all()


@pytest.mark.parametrize("is_signed", [True, False])
def test_values_of_the_map_and_zeros_survive(device: torch.device, is_signed: bool) -> None:
    values = codebook(device, is_signed=is_signed).values
    x = torch.cat([values, torch.zeros(BLOCK_SIZE, device=device)])

    assert torch.equal(quantise(x, is_signed=is_signed).values, x)


def test_not_a_number_stays_in_its_block(device: torch.device) -> None:
    x = samples(device)["normal"][: 2 * BLOCK_SIZE].clone()
    x[3] = torch.nan
    values = quantise(x, is_signed=True).values

    assert values[:BLOCK_SIZE].isnan().all()
    assert torch.isfinite(values[BLOCK_SIZE:]).all()


def test_codebook_holds_what_it_declares(device: torch.device) -> None:
    book = codebook(device, is_signed=False)
    held = (book.values, book.boundaries, book.lower_codes)

    assert [(tuple(t.shape), t.dtype) for t in held] == [entry[1:] for entry in codebook_tensors()]
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in held)
