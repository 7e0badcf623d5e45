"""Published results of optimizers, and their names in the Trainer."""

import pytest

from whatfits.estimator.catalog.evidence import QualityRow, load_quality, load_trainer_names
from whatfits.estimator.specs import OptimizerName

ROWS = [(name, row) for name, rows in load_quality().items() for row in rows]


def test_apollos_perplexities_are_those_of_its_table_2() -> None:
    """arXiv:2412.05270, Table 2: APOLLO-Mini beside AdamW at 60M, 130M, 350M and 1B."""
    rows = [row for row in load_quality()[OptimizerName.APOLLO_MINI] if row.table == "Table 2"]

    assert [(row.model, row.value, row.adamw_value) for row in rows] == [
        ("LLaMA-60M", 31.93, 34.06),
        ("LLaMA-130M", 23.53, 25.08),
        ("LLaMA-350M", 17.18, 18.80),
        ("LLaMA-1B", 14.17, 15.56),
    ]
    assert rows[0].ratio_to_adamw == pytest.approx(0.9375, abs=1e-4)


@pytest.mark.parametrize(("name", "row"), ROWS, ids=str)
def test_every_result_cites_a_table_and_stands_beside_adamw(name: OptimizerName, row: QualityRow) -> None:
    assert row.source
    assert row.table
    assert 0.5 < row.ratio_to_adamw < 2.5
    assert row.lower_is_better is (row.metric in {"perplexity", "eval loss"})


def test_trainer_names_are_of_known_optimizers() -> None:
    assert load_trainer_names()[OptimizerName.APOLLO] == "apollo_adamw"
    assert OptimizerName.MUON not in load_trainer_names()
