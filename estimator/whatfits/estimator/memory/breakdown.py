"""What is live at a peak found in the table, by purpose."""

from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.peak import FloatArray, Gradients, row_region
from whatfits.estimator.profile import COLUMN_KINDS
from whatfits.estimator.specs import MemoryBreakdown, PeakPhase

__all__ = ["breakdown_at", "phase_at"]


def phase_at(memory: StepMemory, row: int) -> PeakPhase:
    """Part of the step a peak lies in."""
    if row < 0:
        return PeakPhase.OPTIMIZER_STEP
    table = memory.table
    return PeakPhase(table.labels[table.row_label[row]].phase)


def breakdown_at(
    memory: StepMemory, sizes: FloatArray, row: int, peak: int, *, later_micro_batch: bool
) -> MemoryBreakdown:
    """Terms that sum to the peak. `sizes` are one configuration's, `row` and `peak` as `StepMemory.peaks` found."""
    resting = memory.resting()
    tensors = memory.tensors
    table, layers = memory.table, tensors.model.num_layers
    counts = table.step_counts(layers) if row < 0 else table.counts(layers)[row]
    live = dict(zip(COLUMN_KINDS, (counts @ sizes).tolist(), strict=True))
    gradients = int(
        live["gradients_pending"] + _kept_bytes(memory, live["gradients_kept"], row, later_micro_batch)
    )
    communication = resting.communication_buffers + _gathered_bytes(memory, row)
    if row < 0 and memory.optimizer.loop.master_weights:
        gradients = memory.tensors.master_bytes
    elif row < 0 and memory.gradients is Gradients.RELEASED:
        gradients = 0
    terms = {
        "weights": resting.weights,
        "master_weights": resting.master_weights,
        "optimizer_states": resting.optimizer_states,
        "gradients": gradients,
        "activations": int(live["activations"]),
        "logits_and_loss": int(live["logits_and_loss"]),
        "communication_buffers": communication,
        "workspace": resting.workspace,
    }
    # What is left is the tensors of a running operation, of the optimizer's step or of a layer-wise update.
    return MemoryBreakdown(**terms, temporaries=peak - sum(terms.values()))


def _kept_bytes(memory: StepMemory, kept: float, row: int, later_micro_batch: bool) -> float:
    """Complete gradients at a row, under the treatment that applies there."""
    if row < 0 or later_micro_batch or memory.gradients is Gradients.ACCUMULATED:
        return 0.0 if memory.gradients is Gradients.RELEASED else float(memory.tensors.gradient_bytes)
    if memory.gradients is Gradients.RELEASED:
        return 0.0
    return kept * memory.tensors.kept_share


def _gathered_bytes(memory: StepMemory, row: int) -> int:
    """FSDP's gathered weights and reduce buffers at a row."""
    gathered = memory.tensors.fsdp
    if row < 0 or gathered is None:
        return 0
    return gathered.by_region[row_region(memory.table, row)]
