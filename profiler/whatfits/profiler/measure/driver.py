"""What machine this is, and what the driver says is in use on its device."""

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from whatfits.estimator.specs import MeasuredEnvironment
from whatfits.estimator.units import MIB

__all__ = [
    "describe_environment",
    "driver_used_bytes",
    "find_commit",
    "measured_environment",
    "nvidia_smi",
    "nvml_used_bytes",
]

_TIMEOUT_SECONDS = 30


def nvidia_smi(*fields: str) -> list[str] | None:
    """Values of some `--query-gpu` fields of the first visible device, None where the program does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    text = _output(command)
    return [value.strip() for value in text.splitlines()[0].split(",")] if text else None


def nvml_used_bytes() -> int | None:
    """Memory in use on the device over all processes, as NVML reports it."""
    values = nvidia_smi("memory.used")
    return int(values[0]) * MIB if values and values[0].isdigit() else None


def driver_used_bytes() -> int:
    """Memory in use on the device over all processes, as CUDA reports it; creates the context if there is none."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def find_commit(folder: Path) -> str | None:
    """Commit of the checkout a folder lies in, None outside of one."""
    git = shutil.which("git")
    return _output([git, "-C", str(folder), "rev-parse", "HEAD"]) if git else None


def describe_environment(device: str) -> dict[str, Any]:
    """Versions and the device."""
    described: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "commit": find_commit(Path(__file__).parent),
        **{name: metadata.version(name) for name in ("transformers", "numpy")},
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        described |= {
            "gpu": properties.name,
            "gpu_total_bytes": properties.total_memory,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sms": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
        }
        found = nvidia_smi("uuid", "driver_version", "memory.total")
        described |= dict(zip(("gpu_uuid", "driver", "nvidia_smi_total_mib"), found or [""] * 3, strict=True))
    return described


def measured_environment(device: str, library: tuple[str, str] | None) -> MeasuredEnvironment:
    """The same as a spec, with the library that the optimizer comes from where it is neither ours nor torch's."""
    found = describe_environment(device)
    packages = {name: found[name] for name in ("torch", "transformers")}
    uuid = found.get("gpu_uuid")
    return MeasuredEnvironment(
        device_name=found.get("gpu") or platform.processor() or platform.machine(),
        gpu_uuids=(uuid,) if uuid else (),
        device_total_bytes=found.get("gpu_total_bytes"),
        compute_capability=found.get("compute_capability"),
        driver=found.get("driver") or None,
        packages=packages if library is None else {**packages, library[0]: library[1]},
        torch_cuda=found["torch_cuda"],
        python=found["python"],
        platform=found["platform"],
        commit=found["commit"],
    )


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  (programs found on the PATH, fixed arguments)
            command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
