"""What a micro-batch says about attention, and what the model code hears when it looks at the values.

| mask | the batch carries | `.all()` of it |
|---|---|---|
| none | token ids and labels alone: every position may be seen, one sequence per row | true |
| ones | an attention mask without padding | true |
| padded | an attention mask that hides the second half of the first row | false |
| packed | positions that start again in the middle of each row: two documents per row | false |
"""

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["MASKS", "batch_inputs", "scalar_answers"]

MASKS = ("none", "ones", "padded", "packed")


def batch_inputs(mask: str, batch: int, seq_len: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Token ids, labels and, as `mask` says, a mask or positions.

    Raises:
        ValueError: `mask` is not one of `MASKS`.
    """
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, not {mask!r}")
    size = (batch, seq_len)
    given = {name: torch.empty(size, dtype=torch.int64, device=device) for name in ("input_ids", "labels")}
    if mask in ("ones", "padded"):
        given["attention_mask"] = torch.ones(size, dtype=torch.int64, device=device)
    if mask == "padded":
        given["attention_mask"][0, seq_len // 2 :].fill_(0)
    if mask == "packed":
        positions = torch.arange(seq_len, device=device).remainder(seq_len // 2)
        given["position_ids"] = positions.expand(size).contiguous()
    return given


def scalar_answers(mask: str) -> Callable[[torch.Tensor], Any]:
    """What reading a scalar back from the device gives for batches of a mask.

    The one question model code asks is whether everything in a mask, or in a comparison of positions with what one
    sequence would have, is true.

    Raises:
        NotImplementedError: on reading anything but a boolean.
    """
    seen = mask in ("none", "ones")

    def answer(scalar: torch.Tensor) -> bool:
        if scalar.dtype != torch.bool:
            raise NotImplementedError(f"the model code reads a {scalar.dtype} value that depends on the data")
        return seen

    return answer
