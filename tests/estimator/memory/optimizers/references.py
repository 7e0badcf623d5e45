"""The optimizers themselves, as other people wrote them: what the programs are compared with.

Needs torch, galore-torch, bitsandbytes, pytorch-optimizer and schedulefree, in the versions pinned for the tests.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import bitsandbytes
import pytorch_optimizer
import schedulefree
import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from whatfits.estimator.memory.optimizers import ParameterRole, ParameterTensor

DTYPES = {4: torch.float32, 2: torch.bfloat16}
UPDATE_GAP = 3
"""Steps between projection refreshes in the references: step 0 is the first, 1 steady, 3 (or po's 3rd) a refresh."""

SHAPES = {
    "wide": ((256, 1024), ParameterRole.linear),
    "tall": ((1024, 256), ParameterRole.linear),
    "square": ((192, 192), ParameterRole.linear),
    "not a multiple of a block": ((300, 100), ParameterRole.linear),
    "odd": ((64, 5461), ParameterRole.linear),
    "rank above the shorter side": ((48, 200), ParameterRole.linear),
    "one row": ((1, 300), ParameterRole.linear),
    "embedding": ((1000, 64), ParameterRole.embedding),
    "head": ((999, 64), ParameterRole.head),
    "vector": ((512,), ParameterRole.vector),
    "vector just below the 8-bit limit": ((4095,), ParameterRole.vector),
    "vector at the 8-bit limit": ((4096,), ParameterRole.vector),
    "vector of one": ((1,), ParameterRole.vector),
}


def make_parameters(names: Iterable[str]) -> list[ParameterTensor]:
    """Parameters of `SHAPES`; repeated names get a number."""
    shapes = [(name, *SHAPES[name]) for name in names]
    return [
        ParameterTensor(name=f"{index} {name}", shape=shape, role=role)
        for index, (name, shape, role) in enumerate(shapes)
    ]


def is_projected(parameter: ParameterTensor) -> bool:
    """Whether the low-rank methods' scripts would put a parameter into the group with a rank."""
    return parameter.role is ParameterRole.linear


def torch_parameters(
    parameters: Sequence[ParameterTensor], dtype_bytes: int, device: str
) -> list[torch.nn.Parameter]:
    """Parameters with a gradient each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for parameter in parameters:
        values = torch.randn(parameter.shape, generator=generator).to(device, DTYPES[dtype_bytes])
        made.append(torch.nn.Parameter(values))
        made[-1].grad = values.clone()
    return made


def groups(
    parameters: Sequence[ParameterTensor], tensors: Sequence[torch.nn.Parameter], **projected: Any
) -> list[dict[str, Any]]:
    """One parameter group per parameter, in order; those that are projected get the settings."""
    return [
        {"params": [tensor], **(projected if is_projected(parameter) else {})}
        for parameter, tensor in zip(parameters, tensors, strict=True)
    ]


def galore(
    parameters: Sequence[ParameterTensor], tensors: Sequence[torch.nn.Parameter], rank: int
) -> torch.optim.Optimizer:
    """galore-torch's GaLore."""
    settings = {"rank": rank, "update_proj_gap": UPDATE_GAP, "scale": 0.25, "proj_type": "std"}
    made: torch.optim.Optimizer = GaLoreAdamW(
        groups(parameters, tensors, **settings), lr=1e-3, no_deprecation_warning=True
    )
    return made


def pytorch_optimizer_low_rank(
    name: str,
    parameters: Sequence[ParameterTensor],
    tensors: Sequence[torch.nn.Parameter],
    rank: int,
    **settings: Any,
) -> torch.optim.Optimizer:
    """pytorch-optimizer's GaLore or APOLLO."""
    projected = {"rank": rank, "update_proj_gap": UPDATE_GAP, "scale": 1.0, "projection_type": "std"}
    factory: Callable[..., torch.optim.Optimizer] = getattr(pytorch_optimizer, name)
    return factory(groups(parameters, tensors, **projected), lr=1e-3, foreach=False, **settings)


def adamw_8bit(tensors: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW8bit."""
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(list(tensors), lr=1e-3)
    return made


def schedule_free(tensors: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """schedulefree's AdamW, in training mode."""
    optimizer: torch.optim.Optimizer = schedulefree.AdamWScheduleFree(tensors)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def storages(tree: Any) -> dict[int, torch.UntypedStorage]:
    """Distinct storages of the tensors in an optimizer's state of one parameter, projector objects included."""
    found: dict[int, torch.UntypedStorage] = {}
    for value in tree.values():
        if isinstance(value, torch.Tensor):
            found[value.untyped_storage().data_ptr() or id(value)] = value.untyped_storage()
        elif hasattr(value, "__dict__"):
            found.update(storages(vars(value)))
    return found


def held_bytes(state: dict[str, Any], *, shared: Iterable[str] = ()) -> int:
    """Bytes of the storages the state of one parameter holds, without those named in `shared`."""
    own = {name: value for name, value in state.items() if name not in shared}
    return sum(storage.nbytes() for storage in storages(own).values())


def projected_gradient(gradient: torch.Tensor, rank: int) -> tuple[GaLoreProjector, torch.Tensor]:
    """galore-torch's projector after its first projection, and the projected gradient."""
    projector = GaLoreProjector(rank, update_proj_gap=UPDATE_GAP, scale=0.25, proj_type="std")
    return projector, projector.project(gradient, 0)
