"""Integers with a scale and zero point per group, and linear layers whose weights are such integers."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from whatfits.optim_impls.affine import (
    Affine,
    affine_shapes,
    dequantize_affine,
    pack_nibbles,
    quantize_affine,
    unpack_nibbles,
)
from whatfits.optim_impls.int8_weights import (
    Int8Linear,
    add_to_int8,
    int8_of,
    int8_update_bytes,
    quantize_linears,
)
from whatfits.profiler.trace.optimizer_step import StorageLog, peak_of_step


def make_values(numel: int, device: torch.device, seed: int = 0) -> Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).to(device)


def make_affine(numel: int, group_size: int, device: torch.device) -> Affine:
    return Affine(*(torch.empty(n, dtype=t, device=device) for n, t in affine_shapes(numel, group_size)))


def make_linear(device: torch.device, *, columns: int = 100, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(columns, 37).to(device, dtype)


@pytest.mark.parametrize("numel", [1, 100, 256, 1000])
@pytest.mark.parametrize("levels", [15, 255])
def test_values_are_within_half_a_step(device: torch.device, numel: int, levels: int) -> None:
    values = make_values(numel, device)
    quantised, out = make_affine(numel, 128, device), torch.empty(numel, device=device)
    quantize_affine(values.clone(), quantised, group_size=128, levels=levels)
    dequantize_affine(quantised, out, group_size=128)
    for group, scale in enumerate(quantised.scale):
        part = slice(group * 128, (group + 1) * 128)
        span = values[part].clamp(min=0).max() - values[part].clamp(max=0).min()
        torch.testing.assert_close(scale, span / levels)
        # The zero point is rounded too, which costs the largest value up to half a step more.
        assert (out[part] - values[part]).abs().max() <= 1.001 * scale


def test_zero_stays_zero(device: torch.device) -> None:
    values = make_values(300, device)
    values[::3] = 0
    values[128:256] = 0
    quantised, out = make_affine(300, 128, device), torch.empty(300, device=device)
    quantize_affine(values.clone(), quantised, group_size=128, levels=15)
    dequantize_affine(quantised, out, group_size=128)

    assert torch.equal(out[values == 0], values[values == 0])


def test_stochastic_rounding_is_right_on_average(device: torch.device) -> None:
    values = make_values(256, device)
    total = torch.zeros(256, device=device, dtype=torch.float64)
    generator = torch.Generator(device).manual_seed(0)
    quantised, out = make_affine(256, 128, device), torch.empty(256, device=device)
    for _ in range(2000):
        noise = torch.rand(256, device=device, generator=generator)
        quantize_affine(values.clone(), quantised, group_size=128, levels=15, noise=noise)
        dequantize_affine(quantised, out, group_size=128)
        total += out
    off = (total / 2000 - values).abs() / quantised.scale.repeat_interleave(128)
    inside = torch.ones(256, dtype=torch.bool, device=device)
    for part in (slice(0, 128), slice(128, 256)):
        # The ends of a group's range are cut.
        inside[part] = (values[part] > values[part].min()) & (values[part] < values[part].max())

    assert off[inside].max() < 6 * 0.5 / 2000**0.5


@pytest.mark.parametrize("numel", [1, 2, 7, 256])
def test_two_codes_a_byte(device: torch.device, numel: int) -> None:
    codes = (torch.arange(numel, device=device) % 16).to(torch.uint8)
    packed = torch.empty(-(-numel // 2), dtype=torch.uint8, device=device)
    out = torch.empty_like(codes)
    pack_nibbles(codes, packed)
    unpack_nibbles(packed, out)

    assert torch.equal(out, codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forward_and_gradients_are_those_of_the_dequantised_weight(
    device: torch.device, dtype: torch.dtype
) -> None:
    layer = Int8Linear(make_linear(device, dtype=dtype))
    plain = make_linear(device, dtype=dtype)
    plain.weight = nn.Parameter(layer.int8.dequantize(dtype))
    xs = [make_values(600, device).view(2, 3, 100).to(dtype).requires_grad_() for _ in range(2)]
    outs = [layer(xs[0]), plain(xs[1])]
    for out in outs:
        out.square().sum().backward()

    torch.testing.assert_close(*outs, rtol=0, atol=0)
    torch.testing.assert_close(xs[0].grad, xs[1].grad, rtol=0, atol=0)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def test_the_stand_in_holds_one_element_wherever_it_goes(device: torch.device) -> None:
    model = nn.Sequential(Int8Linear(make_linear(device)))
    twin = copy.deepcopy(model)
    twin.to(torch.bfloat16)
    layers = [module for each in (model, twin) for module in each if isinstance(module, Int8Linear)]

    assert [layer.weight.dtype for layer in layers] == [torch.float32, torch.bfloat16]
    for layer in layers:
        found = int8_of(layer.weight)
        assert layer.weight.shape == (37, 100)
        assert layer.weight.untyped_storage().nbytes() == layer.weight.itemsize
        assert layer.scale.dtype is torch.float32
        assert found is not None
        assert found.quantised.codes is layer.codes
    assert layers[0].codes.data_ptr() != layers[1].codes.data_ptr()
    assert sum(b.nbytes for b in model.buffers()) == 3700 + 5 * 29


def test_integers_are_in_the_state_dict_and_load_safely(device: torch.device) -> None:
    model, other = (nn.Sequential(Int8Linear(make_linear(device))) for _ in range(2))
    for tensor in other.state_dict().values():
        tensor.zero_()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))

    x = make_values(100, device)
    torch.testing.assert_close(model(x), other(x), rtol=0, atol=0)
    assert "0.weight" not in model.state_dict()


def test_surgery_replaces_linear_layers_but_the_head() -> None:
    model = nn.ModuleDict({"up": nn.Linear(8, 4), "norm": nn.LayerNorm(4), "lm_head": nn.Linear(4, 8)})
    model["block"] = nn.Sequential(nn.Linear(4, 4, bias=False))
    quantize_linears(model, group_size=16)

    assert isinstance(model["up"], Int8Linear)
    assert isinstance(model.get_submodule("block.0"), Int8Linear)
    assert type(model["lm_head"]) is nn.Linear


def test_group_size_is_checked_by_name() -> None:
    with pytest.raises(ValueError, match="group_size is 1"):
        Int8Linear(nn.Linear(4, 4), group_size=1)


def add(update: float | Tensor) -> Callable[[Tensor, Tensor, slice], None]:
    def write(values: Tensor, scratch: Tensor, rows: slice) -> None:
        del scratch, rows
        values.add_(update)

    return write


@pytest.mark.parametrize("columns", [100, 128, 5461])
def test_small_updates_are_kept_on_average(device: torch.device, columns: int) -> None:
    """Each is about a tenth of a step of the integers: rounded to the nearest, none would be."""
    layer = Int8Linear(make_linear(device, columns=columns))
    before = layer.int8.dequantize(torch.float32)
    update = 0.1 * layer.scale.min()
    generator = torch.Generator(device).manual_seed(0)
    for _ in range(20):
        add_to_int8(layer.int8, add(update), generator)
    moved = (layer.int8.dequantize(torch.float32) - before).mean()

    torch.testing.assert_close(moved, 20 * update, rtol=0.1, atol=0)


@pytest.mark.parametrize("shape", [(37, 100), (300, 128), (200, 5461), (2000, 700)])
def test_an_update_holds_pieces_only(device: torch.device, shape: tuple[int, int]) -> None:
    layer = Int8Linear(nn.Linear(shape[1], shape[0], device=device))
    generator = torch.Generator(device).manual_seed(0)
    log = StorageLog(device.type, [layer.codes, layer.scale, layer.zero])
    with log:
        add_to_int8(layer.int8, add(1e-3), generator)
    log.close()

    assert peak_of_step(log.events) == int8_update_bytes(shape, 128)
    assert int8_update_bytes(shape, 128) <= 8.1 * max(1 << 18, 128 * shape[1])
