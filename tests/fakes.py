"""Stand-ins at the product's seams."""

from dataclasses import dataclass, field

from whatfits.estimator.catalog import resolve_plan_request, resolve_run
from whatfits.estimator.specs import (
    ActivationCheckpointing,
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
    PlanRequest,
    Provenance,
    Rejection,
    RunSpec,
    Seconds3,
    StepTimeParts,
    TimeEstimate,
    TrainingSpec,
    Verdict,
)
from whatfits.estimator.specs.support import require_supported, require_supported_request
from whatfits.estimator.units import GIB, MIB

_WEIGHTS = 24 * GIB


@dataclass(kw_only=True)
class FakePlanner:
    """Answers every valid question with three fixed candidates; checks names and rules as the estimator does."""

    failure: Exception | None = None
    """Raised instead of an answer."""
    nothing_fits: bool = False
    asked: list[RunSpec | PlanRequest] = field(default_factory=list)
    asked_to_explain: bool = False
    warmed_up: bool = False

    def estimate(self, run: RunSpec, *, explain: bool = False) -> Estimate:
        self._note(run)
        self.asked_to_explain = explain
        resolved = resolve_run(run)
        require_supported(resolved.run, resolved.model, resolved.gpu)
        return make_estimate(resolved.run, assumptions=resolved.assumptions)

    def plan(self, request: PlanRequest) -> Plan:
        self._note(request)
        resolved = resolve_plan_request(request)
        require_supported_request(request)
        fitting = () if self.nothing_fits else _candidates(resolved.model.name, resolved.hardware)
        return Plan(
            candidates=fitting,
            rejected=(
                Rejection(
                    optimizer=OptimizerName.ADAMW,
                    placement="DDP x8",
                    why="weights, gradients and states alone take 96.96 GiB of 79.15 GiB",
                    smallest_change_that_fits="FSDP over the 8 GPUs instead of DDP",
                ),
                Rejection(
                    optimizer=OptimizerName.GALORE_ADAMW,
                    rank=1280,
                    placement="DDP x8",
                    why="the optimizer step peaks at 81.20 GiB of 79.15 GiB",
                ),
            ),
            searched=1248,
            elapsed_seconds=0.043,
            assumptions=resolved.assumptions,
        )

    def warm_up(self) -> None:
        self.warmed_up = True

    def _note(self, question: RunSpec | PlanRequest) -> None:
        self.asked.append(question)
        if self.failure is not None:
            raise self.failure


def make_estimate(
    run: RunSpec,
    *,
    states: int = 2 * GIB,
    activations: int = 9 * GIB,
    fits: Verdict = Verdict.YES,
    tokens_per_second: float = 30_000.0,
    assumptions: tuple[str, ...] = (),
) -> Estimate:
    """An estimate whose parts sum as they must."""
    breakdown = MemoryBreakdown(
        weights=_WEIGHTS,
        gradients=_WEIGHTS,
        optimizer_states=states,
        activations=activations,
        logits_and_loss=750 * MIB,
        temporaries=610 * MIB,
        communication_buffers=3 * GIB,
        workspace=17 * MIB,
        rounding_and_remainders=4 * MIB,
    )
    device = DeviceBreakdown(
        allocated=breakdown.total, allocator_overhead=2 * GIB, context=500 * MIB, communicators=300 * MIB
    )
    usable = 79 * GIB + 150 * MIB
    return Estimate(
        fits=fits,
        fit_probability={Verdict.YES: 0.998, Verdict.UNCERTAIN: 0.61, Verdict.NO: 0.0}[fits],
        memory=MemoryEstimate(
            peak_requested_bytes=breakdown.total,
            peak_allocated_bytes=None,
            peak_reserved_bytes=None,
            required_reserved_bytes=None,
            alloc_retries_expected=None,
            device_bytes=DeviceBytes(
                low=device.total - GIB, median=device.total, high=device.total + 2 * GIB
            ),
            usable_bytes=usable,
            headroom_bytes=usable - device.total,
            peak_phase=PeakPhase.BACKWARD,
            breakdown=breakdown,
            device_breakdown=device,
        ),
        time=TimeEstimate(
            step_time_seconds=Seconds3(low=0.8, median=1.0, high=1.6),
            tokens_per_second=tokens_per_second,
            tokens_per_second_per_gpu=tokens_per_second / 8,
            mfu=0.41,
            parts=StepTimeParts(
                compute=0.7, exposed_communication=0.2, pipeline_bubble=0.0, optimizer_step=0.1
            ),
        ),
        provenance=Provenance(
            basis=Basis.ANALYTICAL,
            profile="llama-none",
            stack={"torch": "2.13.0", "transformers": "5.23.0"},
            kernel="flash",
            assumptions=("Two cuBLAS workspaces are live in training.", *assumptions),
        ),
        spec=run,
    )


def _candidates(model: str, hardware: HardwareSpec) -> tuple[Candidate, ...]:
    def run(training: TrainingSpec, parallelism: ParallelismSpec) -> RunSpec:
        return RunSpec(model=model, training=training, parallelism=parallelism, hardware=hardware)

    num_gpus = hardware.num_gpus
    shard = ParallelismSpec(dp_shard_degree=num_gpus, zero_stage=3)
    replicas = ParallelismSpec(dp_replicate_degree=num_gpus)
    fast = run(TrainingSpec(micro_batch_size=4, activation_checkpointing=ActivationCheckpointing.FULL), shard)
    lean = run(TrainingSpec(optimizer=OptimizerSpec(name=OptimizerName.APOLLO_MINI, rank=1)), replicas)
    tight = run(TrainingSpec(optimizer=OptimizerSpec(name=OptimizerName.APOLLO, rank=256)), replicas)
    return (
        Candidate(
            spec=fast,
            estimate=make_estimate(fast, states=6 * GIB, tokens_per_second=31_250.0),
            pareto=True,
            reasons=("The fastest that fits.",),
        ),
        Candidate(
            spec=lean,
            estimate=make_estimate(lean, states=64 * MIB, tokens_per_second=28_400.0),
            pareto=True,
            reasons=("The least memory.",),
        ),
        Candidate(
            spec=tight,
            estimate=make_estimate(
                tight,
                states=8 * GIB,
                activations=12 * GIB,
                fits=Verdict.UNCERTAIN,
                tokens_per_second=27_900.0,
            ),
            pareto=False,
        ),
    )
