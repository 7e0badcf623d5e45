"""Breakdowns sum to what they break down."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.estimator.memory.steps import ALL_OPTIMIZERS, make_step, sizes_of
from whatfits.estimator.memory.breakdown import breakdown_at, phase_at
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.specs import MemoryBreakdown, OptimizerName, OptimizerSpec, PeakPhase

CASES = [(Placement.SINGLE, 1, False), (Placement.SINGLE, 1, True), (Placement.DDP, 1, False),
         (Placement.DDP_BUCKET_VIEW, 1, False), (Placement.FSDP, 4, False)]  # fmt: skip


@given(
    case=st.sampled_from(CASES),
    optimizer=st.sampled_from(ALL_OPTIMIZERS),
    batch=st.integers(2, 99),
    seq_len=st.integers(2, 900),
    accumulated=st.booleans(),
)
def test_terms_sum_to_the_peak_and_none_is_negative(
    case: tuple[Placement, int, bool], optimizer: OptimizerSpec, batch: int, seq_len: int, accumulated: bool
) -> None:
    placement, degree, layerwise = case
    step = make_step(optimizer=optimizer, placement=placement, shard_degree=degree, layerwise=layerwise)
    sizes = sizes_of(step, batch, seq_len)
    accumulated = accumulated and not layerwise
    found = step.peaks(sizes, accumulated=np.array([accumulated]))
    peak, row = int(found.nbytes[0]), int(found.row[0])

    terms = breakdown_at(step, sizes[0], row, peak, later_micro_batch=bool(found.later_micro_batch[0]))

    assert terms.total == peak
    assert all(getattr(terms, name) >= 0 for name in MemoryBreakdown.model_fields), terms
    assert (phase_at(step, row) is PeakPhase.OPTIMIZER_STEP) == (row < 0)


@pytest.mark.parametrize("placement", [Placement.SINGLE, Placement.DDP])
def test_adamw_foreach_peaks_in_the_step_with_a_copy_of_all_parameters(placement: Placement) -> None:
    step = make_step(optimizer=OptimizerSpec(name=OptimizerName.ADAMW), placement=placement)
    sizes = sizes_of(step, 2, 2)
    found = step.peaks(sizes, accumulated=np.array([False]))

    terms = breakdown_at(step, sizes[0], int(found.row[0]), int(found.nbytes[0]), later_micro_batch=False)

    assert found.row[0] == -1
    assert terms.gradients == step.tensors.gradient_bytes
    assert terms.temporaries == step.optimizer.step_bytes
