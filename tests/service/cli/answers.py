"""Answers written by hand, for tests of what is printed; the figures are round so that a reader can check them."""

from whatfits.estimator.specs import (
    Basis,
    Candidate,
    DeviceBreakdown,
    DeviceBytes,
    Estimate,
    HardwareSpec,
    MemoryBreakdown,
    MemoryEstimate,
    OptimizerName,
    OptimizerSpec,
    ParallelismSpec,
    PeakPhase,
    Plan,
    Provenance,
    Rejection,
    RunSpec,
    Seconds3,
    StepTimeParts,
    TimeEstimate,
    TrainingSpec,
    Verdict,
)
from whatfits.estimator.units import GIB

RUN = RunSpec(
    model="llama-7b",
    training=TrainingSpec(
        micro_batch_size=4,
        optimizer=OptimizerSpec(name=OptimizerName.APOLLO, rank=256),
        layerwise_update=True,
    ),
    parallelism=ParallelismSpec(dp_replicate_degree=8),
    hardware=HardwareSpec(gpu="a100-80gb-sxm", num_gpus=8),
)


def make_estimate(fits: Verdict = Verdict.YES) -> Estimate:
    """62 GiB (60 to 64) on the device of 79 GiB usable; 8,000 tokens/s with a step of 2 s (1 to 4)."""
    return Estimate(
        fits=fits,
        fit_probability=0.998,
        memory=MemoryEstimate(
            peak_requested_bytes=58 * GIB,
            peak_allocated_bytes=60 * GIB,
            peak_reserved_bytes=None,
            required_reserved_bytes=61 * GIB,
            alloc_retries_expected=False,
            device_bytes=DeviceBytes(low=60 * GIB, median=62 * GIB, high=64 * GIB),
            usable_bytes=79 * GIB,
            headroom_bytes=17 * GIB,
            peak_phase=PeakPhase.BACKWARD,
            breakdown=MemoryBreakdown(weights=15 * GIB, activations=45 * GIB),
            device_breakdown=DeviceBreakdown(
                allocated=60 * GIB, allocator_overhead=GIB, context=GIB // 2, communicators=GIB // 2
            ),
        ),
        time=TimeEstimate(
            step_time_seconds=Seconds3(low=1.0, median=2.0, high=4.0),
            tokens_per_second=8000.0,
            tokens_per_second_per_gpu=1000.0,
            mfu=None,
            parts=StepTimeParts(
                compute=1.5, exposed_communication=0.5, pipeline_bubble=0.0, optimizer_step=0.0
            ),
        ),
        provenance=Provenance(
            basis=Basis.ANALYTICAL,
            profile="llama",
            stack={"torch": "2.13.0"},
            kernel="flash",
            assumptions=("the [bold] sentence",),
        ),
        spec=RUN,
    )


def make_plan(*verdicts: Verdict) -> Plan:
    """One candidate for each verdict, and one rejection with a remedy."""
    return Plan(
        candidates=tuple(
            Candidate(spec=RUN, estimate=make_estimate(verdict), pareto=True) for verdict in verdicts
        ),
        rejected=(
            Rejection(
                optimizer=OptimizerName.ADAMW,
                placement="DDP x8",
                why="needs 101 GiB of 79 GiB.",
                smallest_change_that_fits="full checkpointing.",
            ),
        ),
        searched=1904,
        elapsed_seconds=0.012,
        assumptions=("SXM form factor",),
    )
