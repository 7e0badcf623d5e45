"""The persistent state of every program equals what the optimizer itself holds, to the byte."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.estimator.memory.optimizers import references
from whatfits.estimator.memory.optimizers import (
    AdamW8bit,
    AdamWForeach,
    AdamWForLoop,
    AdamWFused,
    Apollo,
    GaLoreAdamW,
    GaLoreAdamW8bit,
    OptimizerProgram,
    ParameterRole,
    ParameterTensor,
    Sgd,
)

RANK = 64
ALL = references.make_parameters(references.SHAPES)

Reference = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
CASES: dict[str, tuple[Callable[[int], OptimizerProgram], Reference, tuple[str, ...]]] = {
    "sgd": (
        lambda s: Sgd(param_dtype_bytes=s),
        lambda tensors: torch.optim.SGD(tensors, lr=1e-3),
        (),
    ),
    "adamw for_loop": (
        lambda s: AdamWForLoop(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, foreach=False),
        (),
    ),
    "adamw foreach": (
        lambda s: AdamWForeach(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, foreach=True),
        (),
    ),
    "adamw fused": (
        lambda s: AdamWFused(param_dtype_bytes=s),
        lambda tensors: torch.optim.AdamW(tensors, fused=True),
        (),
    ),
    "adamw_8bit": (
        lambda s: AdamW8bit(param_dtype_bytes=s),
        references.adamw_8bit,
        ("qmap1", "qmap2"),
    ),
    "galore_adamw": (
        lambda s: GaLoreAdamW(param_dtype_bytes=s, rank=RANK),
        lambda tensors: references.galore(ALL, tensors, RANK),
        (),
    ),
    "galore_adamw with a copied projection": (
        lambda s: GaLoreAdamW(param_dtype_bytes=s, rank=RANK, keeps_svd_factor=False),
        lambda tensors: references.pytorch_optimizer_low_rank("GaLore", ALL, tensors, RANK),
        (),
    ),
    "apollo": (
        lambda s: Apollo(param_dtype_bytes=s, rank=RANK),
        lambda tensors: references.pytorch_optimizer_low_rank(
            "APOLLO", ALL, tensors, RANK, scale_type="channel"
        ),
        (),
    ),
    "apollo_mini": (
        lambda s: Apollo(param_dtype_bytes=s, rank=1, scales_tensor=True),
        lambda tensors: references.pytorch_optimizer_low_rank("APOLLO", ALL, tensors, 1, scale_type="tensor"),
        (),
    ),
}


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_state_bytes_equal_the_optimizers(case: str, dtype_bytes: int) -> None:
    build, reference, shared = CASES[case]
    tensors = references.torch_parameters(ALL, dtype_bytes, "cpu")
    optimizer = reference(tensors)
    optimizer.step()

    program = build(dtype_bytes)
    expected = {
        parameter.name: references.held_bytes(optimizer.state[tensor], shared=shared)
        for parameter, tensor in zip(ALL, tensors, strict=True)
    }
    actual = {parameter.name: sum(s.nbytes for s in program.states(parameter)) for parameter in ALL}

    assert actual == expected


@pytest.mark.parametrize("dtype_bytes", [4, 2], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", references.SHAPES)
def test_8bit_galore_holds_a_projection_and_8bit_states_of_the_projected_gradient(
    name: str, dtype_bytes: int
) -> None:
    """galore-torch's own 8-bit step needs CUDA; its parts, the projector and bitsandbytes' state, do not."""
    (parameter,) = references.make_parameters([name])
    (tensor,) = references.torch_parameters([parameter], dtype_bytes, "cpu")
    expected = 0
    if references.is_projected(parameter):
        assert tensor.grad is not None
        projector, gradient = references.projected_gradient(tensor.grad, RANK)
        expected += projector.ortho_matrix.untyped_storage().nbytes()
        tensor = torch.nn.Parameter(gradient.clone())
        tensor.grad = gradient
    optimizer: Any = references.adamw_8bit([tensor])
    optimizer.args.max_unorm = 100.0  # what bitsandbytes makes of galore-torch's positional arguments
    optimizer.step()
    expected += references.held_bytes(optimizer.state[tensor], shared=("qmap1", "qmap2"))

    program = GaLoreAdamW8bit(param_dtype_bytes=dtype_bytes, rank=RANK)

    assert sum(state.nbytes for state in program.states(parameter)) == expected


def test_bitsandbytes_shares_two_quantisation_maps() -> None:
    tensors = references.torch_parameters(ALL, 2, "cpu")
    optimizer = references.adamw_8bit(tensors)
    optimizer.step()
    maps = {
        state[name].data_ptr(): state[name].untyped_storage().nbytes()
        for state in optimizer.state.values()
        for name in ("qmap1", "qmap2")
        if name in state
    }

    shared = AdamW8bit(param_dtype_bytes=2).shared_states(ALL)

    assert sorted(state.nbytes for state in shared) == sorted(maps.values())


def test_only_fused_adamw_keeps_its_step_counter_on_the_device() -> None:
    """On meta, what torch leaves on the CPU is told apart from what it puts on the device."""
    (parameter,) = references.make_parameters(["vector"])
    tensors = references.torch_parameters([parameter], 4, "meta")
    optimizer = torch.optim.AdamW(tensors, foreach=True)
    optimizer.step()
    devices = {name: value.device.type for name, value in optimizer.state[tensors[0]].items()}

    states = AdamWForeach(param_dtype_bytes=4).states(parameter)

    assert {state.name: "meta" if state.on_device else "cpu" for state in states} == devices
    assert all(state.on_device for state in AdamWFused(param_dtype_bytes=4).states(parameter))


def test_embeddings_keep_fp32_states_where_the_framework_asks_for_it() -> None:
    embedding = ParameterTensor(name="embed", shape=(1000, 64), role=ParameterRole.embedding)
    head = ParameterTensor(name="head", shape=(1000, 64), role=ParameterRole.head)
    program = AdamW8bit(param_dtype_bytes=2, fp32_embeddings=True)

    assert sum(state.nbytes for state in program.states(embedding)) == 8 * 64_000
    assert sum(state.nbytes for state in program.states(head)) == 2 * 64_000 + 8 * 250


def test_block_size_of_the_paper() -> None:
    """arXiv:2110.02861 section 2: blocks of 2048, one fp32 maximum each."""
    matrix = ParameterTensor(name="w", shape=(1000, 1000), role=ParameterRole.linear)
    program = AdamW8bit(param_dtype_bytes=2, block_size=2048)

    assert sum(state.nbytes for state in program.states(matrix)) == 2 * 1_000_000 + 2 * 4 * 489


@pytest.mark.parametrize("case", CASES)
def test_state_bytes_round_each_device_tensor_to_512(case: str) -> None:
    build, _, _ = CASES[case]
    program = build(2)
    tensors = [s for p in ALL for s in program.states(p)] + list(program.shared_states(ALL))

    expected = sum(-(-state.nbytes // 512) * 512 for state in tensors if state.on_device)

    assert program.state_bytes(ALL) == expected
