"""Step time of a training run: compute, exposed communication and the optimizer step, each in seconds."""

from __future__ import annotations

from whatfits.estimator.time.communication import Placement, exposed_communication_seconds
from whatfits.estimator.time.compute import (
    attention_seconds,
    gemm_seconds,
    launch_bound_seconds,
    memory_bound_seconds,
)
from whatfits.estimator.time.optimizer import OptimizerWork, optimizer_step_seconds, svd_stall_seconds
from whatfits.estimator.time.priors import GpuPriors, gpu_priors, load_priors
from whatfits.estimator.time.step import Arithmetic, StepTimes, estimate_step_time, model_flops_utilization

__all__ = [
    "Arithmetic",
    "GpuPriors",
    "OptimizerWork",
    "Placement",
    "StepTimes",
    "attention_seconds",
    "estimate_step_time",
    "exposed_communication_seconds",
    "gemm_seconds",
    "gpu_priors",
    "launch_bound_seconds",
    "load_priors",
    "memory_bound_seconds",
    "model_flops_utilization",
    "optimizer_step_seconds",
    "svd_stall_seconds",
]
