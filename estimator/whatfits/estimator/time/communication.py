"""Seconds of communication that compute does not hide, for one rank of a data-parallel run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from whatfits.estimator.specs import GpuSpec, LinkSpec
from whatfits.estimator.time.compute import Seconds
from whatfits.estimator.time.priors import common


class Placement(StrEnum):
    """How one model is spread over the GPUs."""

    SINGLE = "single"
    DDP = "ddp"
    FSDP = "fsdp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A ring of GPUs and the rate at which a collective drives it."""

    num_gpus: int
    bytes_per_second: float
    latency_seconds: float
    half_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBytes:
    """Sizes of what is gathered and reduced: one layer, and the largest tensor outside the layers."""

    num_layers: int
    layer: float
    outside: float
    largest_outside: float

    @property
    def total(self) -> float:
        """Bytes of all parameters."""
        return self.num_layers * self.layer + self.outside


def build_link(gpu: GpuSpec, *, num_gpus: int, gpus_per_node: int, links: LinkSpec | None = None) -> Link:
    """Ring of ``num_gpus``: the link inside a node, and one network port per GPU between nodes.

    B = min(0.78 link, min(n, gpus per node) x 0.73 port); PCIe, and GPUs beyond a bridge, reach 0.35 of PCIe.

    Source: github.com/stas00/ml-engineering network/ sweeps; priors.json, link_fraction and inter_node_fraction.
    Assumes: ring algorithms (no in-switch reduction), 200 Gb/s per GPU between nodes unless ``links`` says more.
    """
    inside = min(num_gpus, gpus_per_node)
    intra = links.intra_node_bytes_per_second if links else None
    if intra is not None:
        bandwidth = intra * common("link_fraction")
    elif gpu.interconnect.startswith("PCIe") or inside > (gpu.interconnect_max_gpus or inside):
        bandwidth = gpu.pcie_bytes_per_second * common("pcie_fraction")
    else:
        bandwidth = gpu.interconnect_bytes_per_second * common("link_fraction")
    if num_gpus <= gpus_per_node:
        latency, half = common("collective_latency_seconds"), common("collective_half_bytes")
    else:
        port = (links.inter_node_bytes_per_second if links else None) or common("inter_node_bytes_per_second")
        bandwidth = min(bandwidth, inside * port * common("inter_node_fraction"))
        latency, half = common("collective_latency_inter_node_seconds"), common("inter_node_half_bytes")
    return Link(num_gpus=num_gpus, bytes_per_second=bandwidth, latency_seconds=latency, half_bytes=half)


def gather_seconds(nbytes: float, link: Link) -> float:
    """Seconds of one all-gather, or of one reduce-scatter, of ``nbytes`` in total.

    t = alpha + (n - 1)/n S/B (1 + sqrt(S0/S)); 0 on one GPU.

    Source: fitted to the sweeps in github.com/stas00/ml-engineering network/.
    Assumes: a ring; nothing else uses the links.
    """
    if link.num_gpus < 2 or nbytes <= 0:
        return 0.0
    share = (link.num_gpus - 1) / link.num_gpus
    return float(
        link.latency_seconds
        + share * nbytes / link.bytes_per_second * (1 + np.sqrt(link.half_bytes / nbytes))
    )


def all_reduce_seconds(nbytes: float, link: Link) -> float:
    """Seconds of one all-reduce of ``nbytes``: a reduce-scatter and an all-gather under one latency.

    t = alpha + 2 (n - 1)/n S/B (1 + sqrt(S0/S)); 0 on one GPU.

    Source: as ``gather_seconds``.
    Assumes: as ``gather_seconds``.
    """
    once = gather_seconds(nbytes, link)
    return max(2.0 * once - link.latency_seconds, 0.0) if once else 0.0


def overlapped_excess(compute: Seconds, communication: float) -> Seconds:
    """Seconds that ``communication`` adds to the ``compute`` it runs beside.

    t = max(t_c, o t_n) + (o - 1) min(t_c, t_n) - t_c, o = 1.13.

    Source: overlap coefficient of github.com/PKU-DAIR/Hetu-Galvatron@cea12ff.
    Assumes: both stretch alike while both run.
    """
    slowdown = common("overlap_slowdown")
    together = np.maximum(compute, slowdown * communication)
    return np.asarray(together + (slowdown - 1.0) * np.minimum(compute, communication) - compute)


def exposed_communication_seconds(
    placement: Placement,
    link: Link,
    sizes: ParameterBytes,
    *,
    micro_batch_seconds: Seconds,
    grad_accum_steps: Seconds,
) -> Seconds:
    """Seconds of a step that gradients and parameters travel while nothing is computed.

    ddp: one all-reduce of the gradients per step, in buckets of 25 MiB, beside the last backward; the last bucket
    (the embedding) has nothing left to hide behind.
    fsdp: per micro-batch two gathers and one reduce-scatter of every layer, beside the whole micro-batch; the first
    gather and the last reduce-scatter are exposed.

    Source: torch.nn.parallel.DistributedDataParallel and torch.distributed.fsdp.fully_shard, defaults.
    Assumes: bf16 gradients and gathers; fsdp reshards after forward and reduces every micro-batch; ddp skips the
    all-reduce of all but the last micro-batch (no_sync).
    """
    if placement is Placement.SINGLE or link.num_gpus < 2:
        return np.zeros(np.broadcast_shapes(micro_batch_seconds.shape, grad_accum_steps.shape))
    if placement is Placement.DDP:
        bucket = common("bucket_bytes")
        tail = all_reduce_seconds(max(bucket, sizes.largest_outside), link)
        hidden = (sizes.total - sizes.largest_outside) / bucket * all_reduce_seconds(bucket, link)
        excess = overlapped_excess(micro_batch_seconds * common("backward_share"), hidden)
        return np.asarray(
            np.broadcast_to(excess + tail, np.broadcast_shapes(excess.shape, grad_accum_steps.shape))
        )
    outside = gather_seconds(sizes.outside, link)
    hidden = 3.0 * sizes.num_layers * gather_seconds(sizes.layer, link)
    return np.asarray(grad_accum_steps * (overlapped_excess(micro_batch_seconds, hidden) + 2.0 * outside))
