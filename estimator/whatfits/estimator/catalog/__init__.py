"""The catalog: GPUs and models with a source for each figure, and the way from typed names to them."""

from whatfits.estimator.catalog.gpu_text import parse_gpus
from whatfits.estimator.catalog.gpus import find_gpu, load_gpus, resolve_gpu
from whatfits.estimator.catalog.llama import model_from_config
from whatfits.estimator.catalog.models import (
    catalog_config,
    find_model,
    load_models,
    model_argument,
    read_model_config,
    resolve_model,
)
from whatfits.estimator.catalog.resolve import (
    ResolvedPlanRequest,
    ResolvedRun,
    fill_adapter,
    fill_optimizer,
    resolve_plan_request,
    resolve_run,
)

__all__ = [
    "ResolvedPlanRequest",
    "ResolvedRun",
    "catalog_config",
    "fill_adapter",
    "fill_optimizer",
    "find_gpu",
    "find_model",
    "load_gpus",
    "load_models",
    "model_argument",
    "model_from_config",
    "parse_gpus",
    "read_model_config",
    "resolve_gpu",
    "resolve_model",
    "resolve_plan_request",
    "resolve_run",
]
