"""Single kernels are timed, every sample kept; the parent keeps what ran until the time was up."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

from whatfits.estimator.specs.kernel_times import KernelTimes
from whatfits.estimator.specs.measurement import MeasureDevice
from whatfits.profiler.child_lines import ChildLines
from whatfits.profiler.measure.child_process import child_environment, several_processes
from whatfits.profiler.measure.kernels import Kernel, kernels_of
from whatfits.profiler.measure.micro import time_kernel
from whatfits.profiler.measure.micro_process import NoKernelsError, time_kernels

ON_CPU = list(kernels_of("cpu"))


@pytest.mark.parametrize("kernel", ON_CPU, ids=lambda kernel: f"{kernel.name}-{kernel.dtype}")
def test_every_kernel_runs_and_gives_samples(kernel: Kernel) -> None:
    times = time_kernel(kernel, "cpu")

    assert 5 <= len(times.samples_seconds) <= 60
    assert all(seconds > 0 for seconds in times.samples_seconds)
    assert (times.kernel, times.shape, times.dtype) == (kernel.name, kernel.shape, kernel.dtype)


def test_the_kinds_of_work_of_a_step_are_there() -> None:
    names = {kernel.name for kernel in ON_CPU}

    assert {"mm", "mm_grad_weight", "attention_forward", "attention_backward"} <= names
    assert {"copy", "softmax", "cross_entropy", "adamw_foreach", "adamw_fused", "svd"} <= names
    assert {kernel.name for kernel in kernels_of("cpu", 2)} - names == {
        "all_reduce",
        "all_gather",
        "reduce_scatter",
    }


def test_on_a_gpu_the_same_kernels_have_larger_sizes_and_none_is_there_twice() -> None:
    on_gpu = [(k.name, k.dtype, *k.shape.items()) for k in kernels_of("cuda", 8)]

    assert {name for name, *_ in on_gpu} == {kernel.name for kernel in kernels_of("cpu", 8)}
    assert len(on_gpu) == len(set(on_gpu)) > 150


def test_products_count_their_work() -> None:
    kernel = next(k for k in ON_CPU if k.name == "mm" and k.dtype == "bf16")

    assert kernel.shape == {"m": 16, "k": 32, "n": 64}
    assert kernel.flops == 2 * 16 * 32 * 64
    assert kernel.nbytes == 2 * (16 * 32 + 32 * 64 + 16 * 64)


def test_flops_of_attention_are_half_of_torch_s_count_which_does_not_know_that_it_is_causal() -> None:
    forward, backward = (k for k in ON_CPU if k.name.startswith("attention"))
    heads = (forward.shape["b"], forward.shape["a"], forward.shape["s"], forward.shape["d"])

    assert forward.flops == sdpa_flop_count(heads, heads, heads) / 2
    assert backward.flops == sdpa_backward_flop_count(heads, heads, heads, heads) / 2


def test_a_backward_pass_gives_three_gradients() -> None:
    kernel = next(k for k in ON_CPU if k.name == "attention_backward")
    gradients = kernel.prepare("cpu")()

    assert isinstance(gradients, tuple)
    assert len(gradients) == 3
    assert all(math.isfinite(float(gradient.float().norm())) for gradient in gradients)


def test_the_child_s_kernels_are_read_by_a_parent_without_torch() -> None:
    heard: list[KernelTimes] = []

    found = time_kernels(MeasureDevice.CPU, timeout_seconds=300, on_kernel=heard.append)

    assert found.complete
    assert [kernel.kernel for kernel in found.kernels] == [kernel.name for kernel in ON_CPU]
    assert tuple(heard) == found.kernels
    assert found.environment.packages["torch"] == torch.__version__


def write_python(folder: Path, body: str) -> str:
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, sys, time\n{body}\n")
    path.chmod(0o755)
    return str(path)


ENVIRONMENT = """
environment = {"device_name": "CPU", "packages": {}, "python": "3", "platform": "Linux"}
print(json.dumps({"event": "environment", "environment": environment}))
kernel = {"kernel": "mm", "shape": {"m": 1}, "dtype": "bf16", "samples_seconds": [1.0], "flops": 2.0, "bytes": None}
print("noise")
print('{"event": "kernel", "kernel": {"kernel": 1}}')
print(json.dumps({"event": "kernel", "kernel": kernel}), flush=True)
"""


def test_out_of_time_what_ran_until_then_is_the_answer(tmp_path: Path) -> None:
    python = write_python(tmp_path, ENVIRONMENT + "time.sleep(600)")

    found = time_kernels(MeasureDevice.CPU, timeout_seconds=2, python=python)

    assert not found.complete
    assert [kernel.kernel for kernel in found.kernels] == ["mm"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no torch')", "status 1, without an answer: no torch"),
        ("time.sleep(600)", "nothing ran within 2 s"),
    ],
)
def test_a_process_that_says_nothing_is_an_error(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(NoKernelsError, match=said):
        time_kernels(MeasureDevice.CPU, timeout_seconds=2, python=write_python(tmp_path, body))


@pytest.mark.slow
def test_under_torchrun_collectives_run_on_every_rank_and_one_writes() -> None:
    program = [sys.executable, "-m", "whatfits.profiler.measure.micro", "--device", "cpu", "--only", "a"]
    lines: list[bytes] = []

    def take(line: bytes) -> bool:
        lines.append(line)
        return b'"done"' in line

    environment = child_environment(MeasureDevice.CPU, None)
    command = several_processes(program, 2)
    with ChildLines(command, text="", timeout_seconds=240, environment=environment) as child:
        child.follow(take, lambda: False)

    text = b"".join(lines).decode()
    assert text.count('"kernel":"all_reduce"') == 1
    assert text.count('"kernel":"reduce_scatter"') == 1
    assert text.count('"event":"environment"') == 1
