"""Declarations of libraries' optimizers: the state they hold; what their steps allocate is the estimator's to say."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from whatfits.optim_impls.declare import Hyper, Parameter, Phase, Role, StateTensor

__all__ = ["LibraryDeclaration", "fp32_scalar", "like_parameter", "no_state"]

Rule = Callable[[Parameter, Hyper], tuple[StateTensor, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryDeclaration:
    """State of a library's optimizer, as formulas; its temporaries change with the library and are not declared."""

    rule: Rule
    """State tensors of one parameter."""
    treatments: Mapping[Role, str] = field(default_factory=dict)
    """What roles get that are treated unlike `treats`."""
    treats: str
    shared: Callable[[Hyper], tuple[StateTensor, ...]] = lambda _: ()
    interval: Callable[[Hyper], int | None] = lambda _: None

    def treatment(self, role: Role) -> str:
        """What parameters of a role get."""
        return self.treatments.get(role, self.treats)

    def states(self, parameter: Parameter, hyper: Hyper) -> tuple[StateTensor, ...]:
        """State tensors of one parameter after its first step."""
        return self.rule(parameter, hyper)

    def shared_states(self, hyper: Hyper) -> tuple[StateTensor, ...]:
        """State tensors that all parameters share."""
        return self.shared(hyper)

    def transient_bytes(self, parameter: Parameter, hyper: Hyper, phase: Phase) -> int:
        """Not declared for code of others.

        Raises:
            NotImplementedError: always; the estimator's program answers for the library's version it was traced from.
        """
        raise NotImplementedError("temporaries of a library's step are the estimator's to say")

    def refresh_interval(self, hyper: Hyper) -> int | None:
        """Steps from refresh to refresh."""
        return self.interval(hyper)


def like_parameter(*names: str) -> Rule:
    """Tensors of the parameter's shape and dtype."""
    return lambda parameter, _: tuple(StateTensor(name, parameter.shape, parameter.dtype) for name in names)


def no_state(_parameter: Parameter, _hyper: Hyper) -> tuple[StateTensor, ...]:
    """Nothing."""
    return ()


def fp32_scalar(name: str) -> StateTensor:
    """One number of four bytes, as torch keeps `step`."""
    return StateTensor(name, (), torch.float32)
