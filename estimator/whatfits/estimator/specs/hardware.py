"""Where it runs: the GPUs asked for, and what the catalog knows of one."""

from typing import Annotated

from pydantic import Field

from whatfits.estimator.specs.base import ByteCount, Spec

__all__ = ["DEFAULT_GPUS_PER_NODE", "GpuSpec", "HardwareSpec", "LinkSpec"]

DEFAULT_GPUS_PER_NODE = 8
"""GPUs in one machine when nothing is said; fewer GPUs than that are taken to share one machine."""

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LinkSpec(Spec):
    """Link speeds that override the catalog's, per GPU and direction."""

    intra_node_bytes_per_second: _Rate | None = None
    """Between GPUs of one machine."""
    inter_node_bytes_per_second: _Rate | None = None
    """Between machines."""


class HardwareSpec(Spec):
    """The GPUs a run has."""

    gpu: Annotated[str, Field(min_length=1, max_length=100)]
    """Catalog id, or a name people type for it."""
    num_gpus: Annotated[int, Field(ge=1, le=2**20, strict=True)] = 1
    """GPUs in all, counted as the framework sees them (one MI250X card is two)."""
    gpus_per_node: Annotated[int, Field(ge=1, le=2**20, strict=True)] = DEFAULT_GPUS_PER_NODE
    """GPUs in one machine."""
    links: LinkSpec | None = None
    """Link speeds, where the machine's are known better than the catalog's."""
    memory_cap_bytes: ByteCount | None = None
    """Use no more than this on each GPU."""


class GpuSpec(Spec):
    """What the catalog knows of one GPU, as the framework sees a device."""

    id: str
    """Kebab-case id, such as `a100-80gb-sxm`."""
    name: str
    """The name as sold."""
    family: str
    """The name without memory size and form factor."""
    form_factor: str | None = None
    """`sxm`, `pcie` or `nvl`, where the family comes in several."""
    aliases: tuple[str, ...] = ()
    """Names that mean exactly this device."""
    default_for: tuple[str, ...] = ()
    """Looser names that resolve to this device although others share them; recorded as an assumption."""
    vendor: str
    """`nvidia`, `amd` or `intel`."""
    marketed_bytes: int
    """The size on the box; never used as a limit."""
    total_bytes: int | None
    """What torch reports as the device's total memory; None where no figure is known."""
    total_bytes_is_estimate: bool
    """Whether the total was derived or remembered instead of seen in a device's own report."""
    total_bytes_source: str | None
    """Where the total comes from."""
    nvidia_smi_total_bytes: int | None = None
    """What nvidia-smi prints as total; it is above what CUDA reports."""
    memory_bandwidth_bytes_per_second: float
    """Device memory bandwidth."""
    peak_flops_per_second: dict[str, float]
    """Dense peak by dtype; a dtype without hardware support is left out."""
    interconnect: str
    """How GPUs of one machine are joined."""
    interconnect_bytes_per_second: float
    """GPU to GPUs within the fast domain, per direction."""
    interconnect_max_gpus: int | None = None
    """GPUs a bridge joins; beyond them traffic goes over PCIe. None: all GPUs of the machine."""
    p2p_supported: bool
    """Whether GPUs may read each other's memory directly."""
    pcie_generation: int
    """Generation of the host link, 16 lanes."""
    pcie_bytes_per_second: float
    """The host link per direction."""
    l2_bytes: int
    """Level 2 cache."""
    sms: int | None = None
    """Streaming multiprocessors, compute units or tensor cores."""
    compute_capability: str
    """CUDA compute capability, or the vendor's target name."""
    supports_bf16: bool
    """Whether bf16 runs at full speed in hardware."""
    supports_flash: bool
    """Whether torch's scaled_dot_product_attention can pick its flash kernel for bf16."""
    attention_kernels: str
    """Attention kernels available, in words."""
    tdp_watts: int
    """Board power limit."""
    devices_per_package: int = 1
    """Devices the framework sees per card; every figure here is for one device."""
    measured: dict[str, float] = Field(default_factory=dict)
    """Published measurements: achieved rates and fractions of peak."""
    sources: tuple[str, ...]
    """Where the figures come from."""
    note: str | None = None
    """Known traps in published figures."""
