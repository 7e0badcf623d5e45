"""AdamW on lists of tensors, as pytorch-optimizer's low-rank methods update what they do not project."""

from collections.abc import Sequence

from whatfits.estimator.memory.optimizers.frame import Frame
from whatfits.estimator.memory.optimizers.program import ParameterTensor, StepPhase
from whatfits.estimator.memory.optimizers.torch_optim import adamw_states

__all__ = ["record_unprojected"]


def record_unprojected(
    frame: Frame, parameters: Sequence[ParameterTensor], phase: StepPhase, dtype_bytes: int
) -> None:
    """`update_unprojected_foreach`: a list of denominators, then a list of updates, each as large as the parameters.

    Source: pytorch_optimizer/optimizer/utils/galore.py, pytorch-optimizer 4.1.0.
    Assumes: one dtype, one device.
    """
    if phase is StepPhase.first:
        for parameter in parameters:
            for state in adamw_states(parameter, dtype_bytes):
                frame.state(parameter.name, state.name, state.nbytes)
    sizes = [parameter.numel * dtype_bytes for parameter in parameters]
    denominators = [frame.temporary(nbytes, "de_noms") for nbytes in sizes]
    updates = [frame.temporary(nbytes, "updates") for nbytes in sizes]
    # Both lists go when the function returns, in the order of their names, each from its end.
    frame.free(*reversed(denominators), *reversed(updates))
