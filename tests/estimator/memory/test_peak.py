"""The vectorised peak against plain arithmetic over the unpruned table."""

import numpy as np
import pytest

from tests.estimator.memory.steps import make_step, sizes_of
from whatfits.estimator.memory.peak import (
    Gradients,
    live_during_step,
    micro_batch_peak,
    rounded_sizes,
    row_region,
)
from whatfits.estimator.memory.placement import FsdpBuffers
from whatfits.estimator.profile import COLUMN_KINDS

KEPT = COLUMN_KINDS.index("gradients_kept")
STEP = make_step()
LAYERS = STEP.tensors.model.num_layers
BATCHES = np.array([2, 3, 17, 400])
SIZES = sizes_of(STEP, BATCHES, 130)


def by_hand(weight_of_kept: float, added: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    counts = STEP.table.counts(LAYERS).astype(float)
    counts[:, KEPT] *= weight_of_kept
    return [float((counts.sum(axis=1) @ row + added).max()) for row in SIZES]


def nothing() -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.zeros(len(STEP.table.row_label))


@pytest.mark.parametrize(
    ("gradients", "weight", "constant"),
    [(Gradients.KEPT, 1.0, 0), (Gradients.ACCUMULATED, 0.0, 12_345), (Gradients.RELEASED, 0.0, 0), (Gradients.SHARDED, 0.25, 0)],
)  # fmt: skip
def test_treatments_weigh_the_kept_gradients(gradients: Gradients, weight: float, constant: int) -> None:
    found = micro_batch_peak(STEP.table, LAYERS, SIZES, gradients, all_gradients=constant, kept_share=0.25)

    assert found.nbytes.tolist() == pytest.approx(by_hand(weight, nothing() + constant), abs=1)


def test_updates_add_to_the_rows_of_their_parameter() -> None:
    updates = np.arange(1, len(STEP.table.parameters) + 1, dtype=np.float64) * 1e9
    found = micro_batch_peak(STEP.table, LAYERS, SIZES, Gradients.RELEASED, update_bytes=updates)

    added = np.array([updates[p] if p >= 0 else 0.0 for p in STEP.table.row_parameter])
    assert found.nbytes.tolist() == by_hand(0.0, added)


def test_gathered_weights_add_by_region() -> None:
    buffers = FsdpBuffers(outside_layers=10**9, forward_layer=3 * 10**9, backward_layer=2 * 10**9)
    found = micro_batch_peak(STEP.table, LAYERS, SIZES, Gradients.KEPT, gathered=buffers)

    values = (buffers.outside_layers, buffers.forward_layer, buffers.backward_layer)
    added = np.array([float(values[row_region(STEP.table, j)]) for j in range(len(STEP.table.row_label))])
    assert found.nbytes.tolist() == by_hand(1.0, added)


def test_configurations_beyond_one_chunk_are_answered_alike() -> None:
    many = np.tile(SIZES, (2000, 1))
    few = micro_batch_peak(STEP.table, LAYERS, SIZES, Gradients.KEPT)

    found = micro_batch_peak(STEP.table, LAYERS, many, Gradients.KEPT)
    assert found.nbytes.tolist() == few.nbytes.tolist() * 2000
    assert found.row.tolist() == few.row.tolist() * 2000


def test_sizes_are_rounded_one_by_one() -> None:
    sizes = rounded_sizes(STEP.table, STEP.symbols(2, 3))

    assert (sizes % 512 == 0).all()
    assert (sizes >= 0).all()


def test_inputs_labels_and_loss_are_there_while_the_optimizer_steps() -> None:
    """Token ids and labels of 8 b s, the loss of one number, and the padded labels are the most it can be."""
    left = live_during_step(STEP.table, LAYERS, SIZES)

    ids = -(-8 * BATCHES * 130 // 512) * 512
    assert (left >= 2 * ids + 512).all()
    assert (left <= 4 * ids + 4096).all()
