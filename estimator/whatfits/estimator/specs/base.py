"""What all specs share: immutable, and an unknown key is an error."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ByteCount", "Degree", "PositiveInt", "Spec"]

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
"""A count of at least one; text and fractions are refused rather than converted."""

ByteCount = Annotated[int, Field(ge=1, le=2**60, strict=True)]
"""A number of bytes."""

Degree = Annotated[int, Field(ge=1, le=2**20, strict=True)]
"""The size of one parallelism axis."""


class Spec(BaseModel):
    """Base of all specs."""

    model_config = ConfigDict(frozen=True, extra="forbid")
