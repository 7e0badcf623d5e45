"""What all specs share: immutable, and an unknown key is an error."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

__all__ = [
    "BY_SHAPE",
    "LIST",
    "OBJECT",
    "TEXT",
    "ByteCount",
    "Degree",
    "MeasuredBytes",
    "ModelReference",
    "NonNegative",
    "PositiveInt",
    "Spec",
]

TEXT, LIST, OBJECT = Tag("text"), Tag("list"), Tag("object")
"""The branches of a field that takes several JSON shapes."""


def _shape(value: object) -> str:
    if isinstance(value, str):
        return TEXT.tag
    return LIST.tag if isinstance(value, list | tuple) else OBJECT.tag


BY_SHAPE = Discriminator(_shape)
"""Pick the branch by the shape of what was given, so that an error speaks of that branch alone."""

ModelReference = Annotated[Annotated[str, TEXT] | Annotated[dict[str, Any], OBJECT], BY_SHAPE]
"""A catalog name, or the content of a Hugging Face config.json (arbitrary JSON; the catalog checks what matters)."""

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
"""A count of at least one; text and fractions are refused rather than converted."""

ByteCount = Annotated[int, Field(ge=1, le=2**60, strict=True)]
"""A number of bytes."""

MeasuredBytes = Annotated[int, Field(ge=0)]
"""A number of bytes that was counted, and may be none."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A measured figure that has no sign: a time, a rate, a power."""

Degree = Annotated[int, Field(ge=1, le=2**20, strict=True)]
"""The size of one parallelism axis."""


class Spec(BaseModel):
    """Base of all specs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
