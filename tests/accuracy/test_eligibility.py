"""The rule that says which published rows are compared: as it was when it was fixed."""

import json
from pathlib import Path

import pytest

import benchmarks.accuracy.eligibility as rule
from whatfits.estimator.catalog.published import load_published

LITGPT = ("001", "004", "005", "006", "009", "010", "011", "014", "015", "016", "019", "020", "021", "024", "027", "030", "033")  # fmt: skip
FIXED = {f"vramcalc-{n:02}" for n in range(13)} | {f"litgpt-{n}" for n in LITGPT}


def test_the_eligible_rows_are_those_fixed_before_the_first_comparison() -> None:
    assert set(rule.eligible_rows()) == FIXED


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("hf-bertlarge-0", "architecture not traced: BertForSequenceClassification"),
        ("llamafactory-QLoRA-8-7B", "calculated, not measured"),
        ("apollo-paper-7b-AdamW", "GPU not stated exactly"),
        ("torchao-H100-bf16", "parallelism not modelled: fsdp, zero_stage"),
        ("litgpt-002", "method not modelled: qlora"),
    ],
)
def test_other_rows_say_why_they_are_not_compared(row: str, reason: str) -> None:
    assert rule.eligibility(load_published()[row]).reason == reason


def test_post_hoc_rules_name_rows_that_exist() -> None:
    rules = json.loads((Path(rule.__file__).with_name("post_hoc.json")).read_text())["rules"]

    assert {row for entry in rules for row in entry["rows"]} <= set(load_published())
