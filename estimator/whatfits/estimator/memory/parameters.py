"""The tensors one rank holds: parameters from a profile's templates, whole or sharded."""

from collections.abc import Mapping, Sequence

from whatfits.estimator.memory.optimizers import ParameterRole, ParameterTensor
from whatfits.estimator.profile import ParameterTemplate
from whatfits.estimator.units import round_allocation

__all__ = ["build_parameters", "parameter_bytes", "shard_parameters"]


def build_parameters(
    templates: Sequence[ParameterTemplate], dims: Mapping[str, int]
) -> tuple[ParameterTensor, ...]:
    """All parameters in module order: what stands before the layers, each layer's, what stands after."""
    first = next((j for j, t in enumerate(templates) if t.per_layer), len(templates))
    last = next((j for j in range(len(templates), 0, -1) if templates[j - 1].per_layer), first)
    shapes = [tuple(int(e.evaluate(dims)) for e in t.shape) for t in templates]

    def tensor(j: int, layer: int | None = None) -> ParameterTensor:
        name = templates[j].name if layer is None else templates[j].name.replace("*", str(layer), 1)
        return ParameterTensor(name=name, shape=shapes[j], role=ParameterRole(templates[j].role))

    before = [tensor(j) for j in range(first)]
    layers = [tensor(j, layer) for layer in range(dims["L"]) for j in range(first, last)]
    return (*before, *layers, *(tensor(j) for j in range(last, len(templates))))


def shard_parameters(parameters: Sequence[ParameterTensor], degree: int) -> tuple[ParameterTensor, ...]:
    """The largest rank's shards: dimension 0 divided by the degree, rounded up.

    Source: torch.distributed.fsdp `fully_shard`, `Shard(0)` per parameter with padding to equal chunks.
    """
    return tuple(
        ParameterTensor(name=p.name, shape=(-(-p.shape[0] // degree), *p.shape[1:]), role=p.role)
        for p in parameters
    )


def parameter_bytes(parameters: Sequence[ParameterTensor], dtype_bytes: int) -> int:
    """Bytes of one gradient, or weight, per parameter: sum of e x numel, each rounded up to 512."""
    return sum(round_allocation(p.numel * dtype_bytes) for p in parameters)
