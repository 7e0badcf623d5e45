"""Rows of lit-gpt's resource tables: its own model code, at the commit of the table, is needed to trace them."""

from pathlib import Path

from whatfits.estimator.catalog.published import PublishedRow

__all__ = ["litgpt_allocated"]


def litgpt_allocated(row: PublishedRow, checkout: Path) -> int:
    """Peak allocated bytes of a fine-tuning step of lit-gpt's model.

    Raises:
        NotImplementedError: modules of one's own are not traced yet.
    """
    raise NotImplementedError(f"modules of one's own are not traced yet ({checkout}, {row.id})")
