"""How a child process answers: one JSON object a line on what was standard output. Standard library only."""

import json
import os
import sys
from typing import Any, TextIO

__all__ = ["claim_standard_output", "write_answer"]


def claim_standard_output() -> TextIO:
    """Standard output for the answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def write_answer(answers: TextIO, answer: dict[str, Any]) -> None:
    """Write one line at once."""
    answers.write(json.dumps(answer, separators=(",", ":")) + "\n")
    answers.flush()
