"""The tensors one rank holds: parameters from a profile's templates, whole or sharded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whatfits.estimator.memory.optimizers import ParameterRole, ParameterTensor
from whatfits.estimator.profile import ParameterTemplate, with_derived_symbols
from whatfits.estimator.units import round_allocation

__all__ = ["HeldParameter", "build_parameters", "freeze_all_but", "parameter_bytes", "shard_parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldParameter(ParameterTensor):
    """One parameter as a rank stores it. Only what trains has a gradient and optimizer states."""

    element_bytes: int
    trainable: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of its storage, unrounded; a gradient has the parameter's dtype."""
        return self.numel * self.element_bytes


def build_parameters(
    templates: Sequence[ParameterTemplate], dims: Mapping[str, int]
) -> tuple[HeldParameter, ...]:
    """All parameters in module order: what stands before the layers, each layer's, what stands after."""
    first = next((j for j, t in enumerate(templates) if t.per_layer), len(templates))
    last = next((j for j in range(len(templates), 0, -1) if templates[j - 1].per_layer), first)
    symbols = with_derived_symbols(dims)
    shapes = [tuple(int(e.evaluate(symbols)) for e in t.shape) for t in templates]

    def tensor(j: int, layer: int | None = None) -> HeldParameter:
        template = templates[j]
        return HeldParameter(
            name=template.name if layer is None else template.name.replace("*", str(layer), 1),
            shape=shapes[j],
            role=ParameterRole(template.role),
            element_bytes=template.element_bytes,
            trainable=template.trainable,
        )

    before = [tensor(j) for j in range(first)]
    layers = [tensor(j, layer) for layer in range(dims["L"]) for j in range(first, last)]
    return (*before, *layers, *(tensor(j) for j in range(last, len(templates))))


def freeze_all_but(parameters: Sequence[HeldParameter], layer: int) -> tuple[HeldParameter, ...]:
    """The parameters with one layer trainable, as far as it was, and everything else frozen."""
    return tuple(replace(p, trainable=p.trainable and f"layers.{layer}." in p.name) for p in parameters)


def shard_parameters(parameters: Sequence[HeldParameter], degree: int) -> tuple[HeldParameter, ...]:
    """The largest rank's shards: dimension 0 divided by the degree, rounded up.

    Source: torch.distributed.fsdp `fully_shard`, `Shard(0)` per parameter with padding to equal chunks.
    """
    return tuple(replace(p, shape=(-(-p.shape[0] // degree), *p.shape[1:])) for p in parameters)


def parameter_bytes(parameters: Sequence[HeldParameter], element_bytes: int | None = None) -> int:
    """Bytes of one weight, or gradient, per parameter: sum of numel x e, each rounded up to 512.

    e is each parameter's own element size unless one is given.
    """
    return sum(round_allocation(p.numel * (element_bytes or p.element_bytes)) for p in parameters)
