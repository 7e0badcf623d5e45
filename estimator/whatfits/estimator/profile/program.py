"""The event program: a trace of any depth written once.

Each part of a step is `prefix, body x K, suffix` with K = (L - base_layers) / period: a body is
`period` layers, one unless their pattern is longer. A token is an
allocation (size expression, label), a free (reference to its allocation) or a mark (layer enter or exit, gradient
ready). A free names its allocation by part and position, affine in the number of body repetitions K and the
repetition k it stands in: position = c0 + cK K + ck k.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whatfits.estimator.profile.expressions import SizeExpression

__all__ = [
    "PARTS",
    "EventProgram",
    "Label",
    "ParameterTemplate",
    "PartProgram",
    "ProfileHead",
    "ProfileKey",
    "Token",
]

PARTS = ("forward", "forward_frees", "backward", "end")
"""A step's forward, backward and end; the frees with which forward ends are a part of their own, since those of the
weights that autocast kept repeat for each layer, after the head and the loss."""

IntArray = NDArray[np.int64]
_FUSED_KERNELS = ("flash", "efficient", "cudnn")
FORMAT = 3
"""Version of the stored form of programs and tables."""


class Token(IntEnum):
    """Kinds of tokens in a program and of events in its expansion."""

    ALLOC = 1
    FREE = 2
    LAYER_ENTER = 3
    LAYER_EXIT = 4
    GRADIENT_READY = 5


COLUMNS = ("kind", "size", "label", "ref_part", "c0", "c_total", "c_repeat")
"""Columns of a token array. size and label index the program's lists for an ALLOC; label is the parameter template
for GRADIENT_READY; the last four locate the allocation a FREE or GRADIENT_READY refers to."""


@dataclass(frozen=True, slots=True)
class Label:
    """Where an allocation comes from. `module` has `*` for the layer number."""

    op: str
    module: str
    phase: str
    category: str


@dataclass(frozen=True, slots=True)
class ParameterTemplate:
    """One parameter, or one per layer when the name holds `*`."""

    name: str
    shape: tuple[SizeExpression, ...]
    role: str
    element_bytes: int
    trainable: bool = True

    @property
    def per_layer(self) -> bool:
        """Whether every layer has one."""
        return "*" in self.name


@dataclass(frozen=True, slots=True)
class ProfileKey:
    """The structure class of a profile. Two traces of one class differ only in sizes and depth."""

    architecture: str
    precision: str
    """fp32 | bf16 | bf16_mixed | fp16_mixed: dtypes of module and compute"""
    attention: str
    """sdpa | eager: the implementation asked for"""
    checkpointing: str
    loss: str
    micro_batch: str
    """one | many"""
    kv_heads: str
    """one | grouped | full; any of a config"""
    tied: bool
    mask: str = "none"
    """none | ones | padded | packed"""
    dropout: bool = False
    adapter: str = "none"
    """none, or method and targets, such as `lora:k_proj,q_proj`"""
    sequence: str = "eights"
    """eights | other: whether the sequence length is a multiple of 8, to which kernels pad a mask's rows; of a config
    as `kind_of_lengths` has it, with `_above_<the largest window that is shorter>`"""
    first_kernel: str = "flash"
    """flash | cudnn: which of the two SDPA tries first on the device"""
    config: str = ""
    """Name of the config (`config_id`) where all dims are numbers, with depth and all; else the class has any dims"""
    only: str = ""
    """The micro-batch and lengths that a direct trace alone answers, such as `b1_s2048`; empty for all of them"""

    def at(self, micro_batch_size: int, seq_len: int, target_seq_len: int | None = None) -> "ProfileKey":
        """The key of a direct trace: of this class, and of that micro-batch and those lengths alone.

        Targets as long as the input, or none, are not named.
        """
        targets = "" if target_seq_len in (None, seq_len) else f"_t{target_seq_len}"
        return replace(self, only=f"b{micro_batch_size}_s{seq_len}{targets}")

    @property
    def slug(self) -> str:
        """File-name form."""
        tied = "tied" if self.tied else "untied"
        return "-".join(
            [
                self.architecture.lower(),
                *([self.config] if self.config else []),
                self.precision,
                self.attention,
                f"ckpt_{self.checkpointing}",
                f"loss_{self.loss}",
                f"mb_{self.micro_batch}",
                *([] if self.config else [f"kv_{self.kv_heads}"]),
                tied,
                *([f"mask_{self.mask}"] if self.mask != "none" else []),
                *(["dropout"] if self.dropout else []),
                *([self.adapter.replace(":", "_").replace(",", "+")] if self.adapter != "none" else []),
                *([f"{self.first_kernel}_first"] if self.first_kernel != "flash" else []),
                *([f"s_{self.sequence}"] if self.sequence != "eights" else []),
                *([f"only_{self.only}"] if self.only else []),
            ]
        )


@dataclass(frozen=True, slots=True)
class PartProgram:
    """Token arrays (n, len(COLUMNS)) of one part."""

    prefix: IntArray
    body: IntArray
    suffix: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProfileHead:
    """What the program and the table of a structure class have in common."""

    key: ProfileKey
    stack: dict[str, str]
    sizes: tuple[SizeExpression, ...]
    labels: tuple[Label, ...]
    parameters: tuple[ParameterTemplate, ...]
    buffers: tuple[tuple[str, SizeExpression], ...]
    period: int = 1
    """Layers after which the pattern of layers repeats; the depth grows by whole periods. 0: there is one depth alone."""
    fallback: str = ""
    """Why this is a direct trace of one micro-batch and sequence length alone; empty of a compiled class."""

    def num_periods(self, num_layers: int, first_layers: int) -> int:
        """Periods between two depths.

        Raises:
            ValueError: the depth is below the first, not a whole number of periods above it, or not the only one.
        """
        if not self.period:
            if num_layers != first_layers:
                raise ValueError(f"num_layers {num_layers} is not the {first_layers} this profile is of")
            return 0
        periods, rest = divmod(num_layers - first_layers, self.period)
        if periods < 0:
            raise ValueError(f"num_layers {num_layers} is below the {first_layers} this profile starts at")
        if rest:
            raise ValueError(
                f"num_layers {num_layers} is not {first_layers} and a multiple of the {self.period} layers after which "
                f"{self.key.checkpointing} repeats"
            )
        return periods

    @property
    def kernel(self) -> str:
        """The attention kernel the trace ended in."""
        ops = {label.op for label in self.labels}
        found = [name for name in _FUSED_KERNELS if any(f"_{name}_attention" in op for op in ops)]
        return found[0] if found else "math" if self.key.attention == "sdpa" else "eager"

    def head_to_json(self) -> dict[str, Any]:
        """Plain data for storage, of these fields."""
        return {
            "format": FORMAT,
            "key": {
                name: getattr(self.key, name)
                for name in ProfileKey.__slots__
                if name not in ("config", "only") or getattr(self.key, name)
            },
            "stack": self.stack,
            "sizes": [e.to_json() for e in self.sizes],
            "labels": [[x.op, x.module, x.phase, x.category] for x in self.labels],
            "parameters": [
                [p.name, [e.to_json() for e in p.shape], p.role, p.element_bytes, p.trainable]
                for p in self.parameters
            ],
            "buffers": [[name, e.to_json()] for name, e in self.buffers],
            **({} if self.period == 1 else {"period": self.period}),
            **({"fallback": self.fallback} if self.fallback else {}),
        }

    @staticmethod
    def head_from_json(data: dict[str, Any]) -> dict[str, Any]:
        """Inverse of `head_to_json`, as keyword arguments.

        Raises:
            ValueError: the format is not the one this version reads.
        """
        if data.get("format") != FORMAT:
            raise ValueError(
                f"profile format {data.get('format')!r} is not readable here; this version reads {FORMAT}"
            )
        return {
            "key": ProfileKey(**data["key"]),
            "stack": data["stack"],
            "sizes": tuple(SizeExpression.from_json(e) for e in data["sizes"]),
            "labels": tuple(Label(*x) for x in data["labels"]),
            "parameters": tuple(
                ParameterTemplate(
                    n, tuple(SizeExpression.from_json(e) for e in shape), role, nbytes, trainable
                )
                for n, shape, role, nbytes, trainable in data["parameters"]
            ),
            "buffers": tuple((n, SizeExpression.from_json(e)) for n, e in data["buffers"]),
            "period": data.get("period", 1),
            "fallback": data.get("fallback", ""),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EventProgram(ProfileHead):
    """A compiled structure class: everything `expand` needs for any dims and any depth of at least `base_layers`."""

    base_layers: int
    parts: dict[str, PartProgram]

    def to_json(self) -> dict[str, Any]:
        """Plain data for storage."""
        return {
            **self.head_to_json(),
            "base_layers": self.base_layers,
            "columns": list(COLUMNS),
            "parts": {
                name: [segment.T.tolist() for segment in (part.prefix, part.body, part.suffix)]
                for name, part in self.parts.items()
            },
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "EventProgram":
        """Inverse of `to_json`.

        Raises:
            ValueError: the format is not the one this version reads.
        """
        head = cls.head_from_json(data)
        if data.get("columns") != list(COLUMNS):
            columns = data.get("columns")
            raise ValueError(
                f"profile columns {columns!r} are not readable here; this version reads {COLUMNS}"
            )
        return cls(
            **head,
            base_layers=data["base_layers"],
            parts={
                name: PartProgram(
                    *(np.array(s, dtype=np.int64).reshape(len(COLUMNS), -1).T for s in segments)
                )
                for name, segments in data["parts"].items()
            },
        )
