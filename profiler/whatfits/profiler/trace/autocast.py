"""Autocast on `meta` tensors, cast for cast as a device does it.

Autocast is a dispatch key that lies above autograd: an op with a kernel at that key gets its arguments cast, then runs
with the key switched off. `meta` tensors carry no such key, and without a device torch switches CUDA autocast off. So
this module gives `meta` a key of its own: it registers a kernel for each op on the device's cast lists at a key that no
build for CPUs or CUDA uses, and includes that key while a trace runs. `torch.autocast` itself, its nesting and its
flags stay torch's own; checkpointing, transformers and peft find autocast as they would on the device.

| rule | source |
|---|---|
| which op is cast how | the lists of the installed torch, include/ATen/autocast_mode.h, `AT_FORALL_...` |
| eligible: floating point, not float64, of the device | autocast_mode.h, `is_eligible` |
| a cast to the lower precision is kept for an fp32 leaf that requires a gradient and is no view; any other cast, of a frozen weight too, is made anew at each use | aten/src/ATen/autocast_mode.cpp, `cached_cast` |
| kept casts are dropped when the outermost context ends: at the end of forward, at the end of each recomputation | torch/amp/autocast_mode.py, `autocast.__exit__` |
"""

import re
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone gives it)
from torch.utils._pytree import tree_leaves

__all__ = ["CUDA", "AutocastDevice", "CastPolicy", "autocast_on_meta", "read_cast_lists"]


class CastPolicy(StrEnum):
    """What autocast does to an op's arguments; named after the header's lists."""

    LOWER_PRECISION_FP = "AT_FORALL_LOWER_PRECISION_FP"
    FP32 = "AT_FORALL_FP32"
    FP32_SET_OPT_DTYPE = "AT_FORALL_FP32_SET_OPT_DTYPE"
    FP32_APPEND_DTYPE = "AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE"
    PROMOTE = "AT_FORALL_PROMOTE"


CastLists = Mapping[Any, CastPolicy]
"""Op overload to policy; torch gives overloads no public type."""

_WITH_DTYPE = {"Scalar": "ScalarOpt_dtype", "ScalarOpt_dim": "ScalarOpt_dim_dtype"}
"""Overloads of `norm` and the ones with a dtype that run in their place."""


@dataclass(frozen=True, slots=True)
class AutocastDevice:
    """A device whose autocast `meta` tensors get: its type, its cast lists and the key that stands in for its own."""

    type: str
    cast_lists: Callable[[], CastLists]
    key: str


def read_cast_lists(header: str) -> dict[Any, CastPolicy]:
    """The ops of the `AT_FORALL_...` macros in the text of autocast_mode.h that this torch has."""
    found = {}
    for policy in CastPolicy:
        macro = re.search(rf"#define {policy}\(_\)((?:.*\\\n)*.*\n)", header)
        if macro is None:
            raise ValueError(f"autocast_mode.h defines no {policy}")
        pattern = (
            r'"(\w+)\.(\w+)"'
            if policy is CastPolicy.FP32_APPEND_DTYPE
            else r"_\(\s*(\w+)\s*(?:,\s*(\w+)\s*)?\)"
        )
        for name, overload in re.findall(pattern, macro[1]):
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None and (overload or "default") in packet.overloads():
                found[getattr(packet, overload or "default")] = policy
    return found


@cache
def _cuda_cast_lists() -> CastLists:
    return read_cast_lists((Path(torch.__file__).parent / "include/ATen/autocast_mode.h").read_text())


CUDA = AutocastDevice("cuda", _cuda_cast_lists, "AutocastHPU")


@dataclass(slots=True)
class _Casts:
    """Casts on behalf of one device, with the kept ones."""

    device_type: str
    kept: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = field(default_factory=dict)

    def cast(self, dtype: torch.dtype, value: Any) -> Any:
        """`cached_cast` of autocast_mode.cpp, for a tensor, a list of tensors or anything else."""
        if isinstance(value, list | tuple):
            return [self.cast(dtype, item) for item in value]
        if not is_eligible(value) or value.dtype == dtype:
            return value
        keep = (
            dtype == torch.get_autocast_dtype(self.device_type)
            and value.dtype == torch.float32
            and value.requires_grad
            and value.is_leaf
            and not value._is_view()
            and torch.is_autocast_cache_enabled()
        )
        if not keep:
            return value.to(dtype)
        entry = self.kept.get(id(value))
        if entry is None or entry[0]() is not value:
            entry = (weakref.ref(value), value.to(dtype))
            self.kept[id(value)] = entry
        return entry[1]


def is_eligible(value: Any) -> bool:
    """Whether autocast may cast this argument."""
    return (
        isinstance(value, torch.Tensor)
        and value.is_meta
        and value.is_floating_point()
        and value.dtype != torch.float64
    )


def _with_policy(
    op: Any, policy: CastPolicy, casts: _Casts, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run an op as its policy says; autocast is off inside.

    The last argument is cast first, which recorded device histories show: compilers for x86-64 evaluate the arguments
    of a call from right to left, and the casts are arguments in WrapFunction_ of autocast_mode.h.
    """
    if policy is CastPolicy.FP32_SET_OPT_DTYPE:
        return op(*args, **kwargs) if not is_eligible(args[0]) else _in_fp32(op, args, kwargs)
    if policy is CastPolicy.FP32_APPEND_DTYPE:
        dtype = torch.float32 if is_eligible(args[0]) else args[0].dtype
        norm = getattr(op.overloadpacket, _WITH_DTYPE[op._overloadname])
        return norm(args[0], *(args[1:] or (2,)), **kwargs, dtype=dtype)
    dtype = torch.get_autocast_dtype(casts.device_type)
    if policy is CastPolicy.FP32 or (
        policy is CastPolicy.PROMOTE
        and any(is_eligible(a) and a.dtype == torch.float32 for a in tree_leaves((args, kwargs)))
    ):
        dtype = torch.float32
    cast_kwargs = {name: casts.cast(dtype, value) for name, value in reversed(kwargs.items())}
    cast_args = [casts.cast(dtype, value) for value in reversed(args)]
    return op(*reversed(cast_args), **cast_kwargs)


def _in_fp32(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an op with its optional `dtype` set to fp32 where it has none."""
    place = [argument.name for argument in op._schema.arguments].index("dtype")
    if len(args) > place:
        given = args[place] if args[place] is not None else torch.float32
        return op(*args[:place], given, *args[place + 1 :], **kwargs)
    if kwargs.get("dtype") is None:
        kwargs = {**kwargs, "dtype": torch.float32}
    return op(*args, **kwargs)


def _switched_off(device: AutocastDevice) -> Any:
    """A context in which the device's autocast does nothing, whatever its flag says."""
    return torch._C._ExcludeDispatchKeyGuard(
        torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, device.key))
    )


@cache
def _registered(device: AutocastDevice) -> tuple[list[Any], _Casts]:
    """Register the device's kernels at its key, once for the life of the process; without the key they never run."""
    casts = _Casts(device.type)

    def kernel(op: Any, policy: CastPolicy, *args: Any, **kwargs: Any) -> Any:
        enabled = torch.is_autocast_enabled(device.type)
        with _switched_off(device):
            return _with_policy(op, policy, casts, args, kwargs) if enabled else op(*args, **kwargs)

    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, device.key)
    aten = torch.library.Library("aten", "IMPL")
    for op, policy in device.cast_lists().items():
        aten.impl(op, partial(kernel, op, policy), device.key)
    return [others, aten], casts


@contextmanager
def autocast_on_meta(device: AutocastDevice = CUDA) -> Iterator[None]:
    """Let `torch.autocast(device.type)` and `torch.autocast("meta")` act on `meta` tensors as on the device.

    What is replaced for that in torch and transformers is put back at the end.
    """
    _, casts = _registered(device)
    key = getattr(torch._C.DispatchKey, device.key)
    with ExitStack() as stack:
        for owner, name, value in _replacements(device, casts):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        stack.callback(casts.kept.clear)
        stack.callback(torch._C._dispatch_tls_set_dispatch_key_excluded, key, True)
        stack.callback(torch._C._dispatch_tls_set_dispatch_key_included, key, False)
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        torch._C._dispatch_tls_set_dispatch_key_included(key, True)
        yield


def _replacements(device: AutocastDevice, casts: _Casts) -> Iterator[tuple[Any, str, Any]]:
    """What must take `meta` for the device: (owner, attribute, value)."""

    def on_device(function: Any, default: str | None = None) -> Any:
        """The function with `meta` in its argument `device_type` understood as the device."""
        return lambda device_type=default, *args, **kwargs: function(
            device.type if device_type == "meta" else device_type, *args, **kwargs
        )

    clear, modes = torch.clear_autocast_cache, sys.modules["torch.amp.autocast_mode"]

    def clear_all() -> None:
        casts.kept.clear()
        clear()

    yield torch, "clear_autocast_cache", clear_all
    yield torch, "is_autocast_enabled", on_device(torch.is_autocast_enabled, "cuda")
    yield torch, "get_autocast_dtype", on_device(torch.get_autocast_dtype)
    yield torch.amp, "is_autocast_available", on_device(torch.amp.is_autocast_available)
    yield torch.autocast, "__init__", _make_init(torch.autocast.__init__, device.type)
    yield modes, "_cast", _make_custom_cast(modes._cast, device.type)
    yield F, "scaled_dot_product_attention", _make_attention(F.scaled_dot_product_attention, device, casts)
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.") and "maybe_autocast" in vars(module):
            yield module, "maybe_autocast", on_device(module.maybe_autocast)


def _make_init(original: Any, emulated: str) -> Any:
    """`torch.autocast.__init__` that does not switch off what torch finds no device for."""

    def init(self: Any, device_type: str, dtype: Any = None, enabled: bool = True, **kwargs: Any) -> None:
        if device_type not in ("meta", emulated):
            original(self, device_type, dtype, enabled, **kwargs)
            return
        original(self, emulated, dtype, False, **kwargs)
        self._enabled = enabled

    return init


def _make_custom_cast(original: Any, emulated: str) -> Any:
    """`_cast`, with which `custom_fwd` casts the inputs of an autograd function."""

    def cast_inputs(value: Any, device_type: str, dtype: torch.dtype) -> Any:
        return original(value, "meta" if device_type == emulated else device_type, dtype)

    return cast_inputs


def _make_attention(original: Any, device: AutocastDevice, casts: _Casts) -> Any:
    """Attention, whose stand-ins for `meta` reach the dispatcher in pieces: cast as the op that they stand for."""

    def attention(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_autocast_enabled(device.type):
            return original(*args, **kwargs)
        with _switched_off(device):
            return _with_policy(original, CastPolicy.LOWER_PRECISION_FP, casts, args, kwargs)

    return attention
