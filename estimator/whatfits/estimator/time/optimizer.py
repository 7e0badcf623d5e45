"""Seconds of one optimizer step over the tensors one rank updates."""

from __future__ import annotations

from dataclasses import dataclass

from whatfits.estimator.time.priors import GpuPriors, common


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerWork:
    """What one optimizer step does to the local tensors of a rank."""

    bytes_moved: float
    """Bytes read and written by every operation of a steady step."""
    gemm_flops: float = 0.0
    """FLOPs of projections and other matrix products of a steady step."""
    svd_work: float = 0.0
    """Sum of m n min(m, n) over the matrices decomposed when projections are refreshed."""
    refresh_interval: int = 1
    """Steps between two refreshes."""
    kernels: int = 0
    """Kernels a steady step launches."""
    managed_bytes: float = 0.0
    """State in managed memory, which crosses the host link in both directions once a step."""


def svd_stall_seconds(work: OptimizerWork, gpu: GpuPriors) -> float:
    """Seconds the step that refreshes the projections waits for its decompositions.

    t = sum of m n min(m, n) / (4.4e10 x B / B_A100).

    Source: arXiv:2412.05270 Table 7, +-25 %.
    Assumes: one full SVD per matrix, one after the other, and a rate that follows the memory bandwidth.
    """
    return work.svd_work / gpu.svd_work_per_second


def optimizer_step_seconds(work: OptimizerWork, gpu: GpuPriors) -> float:
    """Seconds of one optimizer step, the refresh spread over its interval.

    t = max(bytes / (0.85 B) + FLOPs / P, kernels x 5 us) + managed / host link + t_svd / interval.

    Source: achieved bandwidth in github.com/sitar-lab/NeuSight@6945927; SVD as ``svd_stall_seconds``.
    Assumes: the update starts when backward has ended and nothing hides it; managed states find the device full, so
        that they come and go in both directions at once. Where they fit beside the rest they stay, and cost nothing.
    """
    device = work.bytes_moved / gpu.optimizer_bytes_per_second + work.gemm_flops / gpu.gemm_flops_per_second
    host = work.kernels * common("launch_seconds")
    paging = work.managed_bytes / gpu.host_link_bytes_per_second
    return max(device, host) + paging + svd_stall_seconds(work, gpu) / max(work.refresh_interval, 1)
