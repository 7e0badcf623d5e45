"""`GET /models, /gpus, /optimizers`: what a question can name, with the facts and where they come from."""

from fastapi import APIRouter

from whatfits.estimator.catalog import load_gpus, load_models
from whatfits.estimator.memory.optimizers import OPTIMIZERS
from whatfits.service.api.schemas import GpuList, ModelList, OptimizerList, describe_optimizer

__all__ = ["router"]

router = APIRouter(tags=["catalog"])


@router.get("/models", summary="Models, with exact parameter counts")
def list_models() -> ModelList:
    """Every model of the catalog."""
    return ModelList(items=tuple(load_models().values()))


@router.get("/gpus", summary="GPUs, with the memory their driver reports")
def list_gpus() -> GpuList:
    """Every GPU of the catalog."""
    return GpuList(items=tuple(load_gpus().values()))


@router.get("/optimizers", summary="Optimizers whose memory is modelled")
def list_optimizers() -> OptimizerList:
    """Every optimizer a question can name."""
    return OptimizerList(items=tuple(describe_optimizer(name, facts) for name, facts in OPTIMIZERS.items()))
