"""The GPU catalog: complete, consistent, and found under the names people type."""

import pytest

from whatfits.estimator.catalog import find_gpu, load_gpus, parse_gpus, resolve_gpu
from whatfits.estimator.catalog.names import gpu_keys, gpu_name_key
from whatfits.estimator.errors import InputError, UnknownNameError
from whatfits.estimator.specs import GpuSpec
from whatfits.estimator.units import GB, MIB

GPUS = list(load_gpus().values())

TOTALS_SEEN = {
    "a100-80gb-sxm": 81050 * MIB,
    "a100-40gb-sxm": 42_298_834_944,
    "h200-141gb-sxm": 143_156 * MIB,
    "rtx-a6000": 48_676 * MIB,
    "rtx-3090": 24_259 * MIB,
    "mi300x": 196_592 * MIB,
    "mi250x": 65_520 * MIB,
    "t4": 14_930 * MIB,
}
"""`total_memory` as printed in public logs (GPU properties, deviceQuery)."""

BF16_PEAKS = {"a100-80gb-sxm": 312e12, "h100-80gb-sxm": 989.4e12, "rtx-4090": 165.2e12, "mi250x": 191.5e12}
"""Dense peaks of the vendors' data sheets, per device."""


def test_all_gpus_are_there_under_unique_ids() -> None:
    assert len(GPUS) == 48
    assert [gpu.id for gpu in GPUS] == list(load_gpus())


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.id)
def test_a_row_is_consistent(gpu: GpuSpec) -> None:
    assert gpu.sources
    assert gpu.id == gpu.id.lower().replace(" ", "-").replace("_", "-")
    if gpu.total_bytes is None:
        assert not gpu.total_bytes_is_estimate
    else:
        assert gpu.total_bytes_source
        assert 0.88 * gpu.marketed_bytes < gpu.total_bytes < 1.08 * gpu.marketed_bytes
    if gpu.nvidia_smi_total_bytes is not None and gpu.total_bytes is not None:
        assert gpu.total_bytes <= gpu.nvidia_smi_total_bytes
    assert gpu.pcie_bytes_per_second < gpu.memory_bandwidth_bytes_per_second
    assert all(5e12 < peak < 2e16 for peak in gpu.peak_flops_per_second.values())
    assert ("bf16" in gpu.peak_flops_per_second) == gpu.supports_bf16


def test_totals_are_what_devices_report() -> None:
    assert {name: find_gpu(name).total_bytes for name in TOTALS_SEEN} == TOTALS_SEEN
    assert not any(find_gpu(name).total_bytes_is_estimate for name in TOTALS_SEEN)


def test_peaks_are_dense_and_per_device() -> None:
    assert {name: find_gpu(name).peak_flops_per_second["bf16"] for name in BF16_PEAKS} == BF16_PEAKS


def test_gpus_without_a_known_total_are_listed() -> None:
    assert [gpu.id for gpu in GPUS if gpu.total_bytes is None] == ["b100", "gb300", "gaudi-2", "gaudi-3"]


def test_no_listed_name_means_two_gpus() -> None:
    meant: dict[str, set[str]] = {}
    for gpu in GPUS:
        for name in (gpu.id, gpu.name, *gpu.aliases, *gpu.default_for):
            meant.setdefault(gpu_name_key(name), set()).add(gpu.id)
    assert {name: ids for name, ids in meant.items() if len(ids) > 1} == {}


def test_no_alias_hides_that_a_generic_name_is_shared() -> None:
    aliases = {gpu_name_key(name) for gpu in GPUS for name in (gpu.id, gpu.name, *gpu.aliases)}
    owners: dict[str, set[str]] = {}
    for gpu in GPUS:
        for key in gpu_keys(gpu.family, f"{gpu.marketed_bytes // GB}gb", gpu.form_factor):
            owners.setdefault(key, set()).add(gpu.id)
    assert {key for key, ids in owners.items() if len(ids) > 1 and key in aliases} == set()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A100-SXM4-80GB", "a100-80gb-sxm"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("a100 pcie 40g", "a100-40gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb-sxm"),
        ("NVIDIA H100 PCIe", "h100-80gb-pcie"),
        ("h100 nvl", "h100-94gb-nvl"),
        ("rtx4090", "rtx-4090"),
        ("4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("AMD Instinct MI300X", "mi300x"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-32GB", "v100-32gb-sxm"),
        ("b200", "b200-180gb-sxm"),
        ("gaudi2", "gaudi-2"),
    ],
)
def test_names_that_mean_one_gpu(name: str, expected: str) -> None:
    gpu, assumptions = resolve_gpu(name)
    assert (gpu.id, assumptions) == (expected, ())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("A100-80GB", "a100-80gb-sxm"),
        ("a100 80g", "a100-80gb-sxm"),
        ("A100 40 GB", "a100-40gb-sxm"),
        ("h100", "h100-80gb-sxm"),
        ("h100-80gb", "h100-80gb-sxm"),
        ("NVIDIA H200", "h200-141gb-sxm"),
        ("p100", "p100-16gb-sxm"),
        ("v100-16gb", "v100-16gb-sxm"),
    ],
)
def test_form_factor_is_assumed_to_be_sxm_and_said(name: str, expected: str) -> None:
    gpu, assumptions = resolve_gpu(name)
    assert gpu.id == expected
    assert [assumption.startswith(f"{name} is read as {expected}") for assumption in assumptions] == [True]


@pytest.mark.parametrize("name", ["a100", "A100-SXM", "a100 pcie", "v100"])
def test_a_name_whose_variants_differ_in_memory_is_an_error(name: str) -> None:
    with pytest.raises(InputError, match="the answer depends on which") as caught:
        find_gpu(name)
    assert all(find_gpu(choice).id == choice for choice in caught.value.suggestions)


def test_choices_are_ready_to_copy() -> None:
    with pytest.raises(InputError) as caught:
        parse_gpus("8xa100")
    assert caught.value.value == "8xa100"
    assert caught.value.suggestions == (
        "8xa100-40gb-sxm",
        "8xa100-40gb-pcie",
        "8xa100-80gb-sxm",
        "8xa100-80gb-pcie",
    )
    assert parse_gpus(caught.value.suggestions[2])[0].num_gpus == 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8xA100-80GB", ("a100-80gb-sxm", 8, 8)),
        ("8 x a100-80gb", ("a100-80gb-sxm", 8, 8)),
        ("8*l40s", ("l40s", 8, 8)),
        ("h100", ("h100-80gb-sxm", 1, 1)),
        ("4x4090", ("rtx-4090", 4, 4)),
        ("2x8xh100", ("h100-80gb-sxm", 16, 8)),
        ("16Xh100", ("h100-80gb-sxm", 16, 8)),
        ("3x4xH100", ("h100-80gb-sxm", 12, 4)),
    ],
)
def test_short_forms(text: str, expected: tuple[str, int, int]) -> None:
    hardware, _ = parse_gpus(text)
    assert (hardware.gpu, hardware.num_gpus, hardware.gpus_per_node) == expected


@pytest.mark.parametrize(
    "text", ["", "   ", "0xh100", "0x8xh100", "8x0xh100", "999999999xh100", "12xh100", "xxx"]
)
def test_short_forms_that_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^gpus: ") as caught:
        parse_gpus(text)
    assert caught.value.value == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [("8xh10", "8xh100-80gb-sxm"), ("rtx 4900", "rtx-4090"), ("mi300", "mi300x")],
)
def test_unknown_gpus_suggest_near_matches(name: str, expected: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        parse_gpus(name)
    assert expected in caught.value.suggestions
