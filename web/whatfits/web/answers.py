"""What the pages read of the API's answers; everything else in them is ignored."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Answer(BaseModel):
    """Base: frozen, and tolerant of what a newer server adds."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Answer):
    """A 90% interval with its median."""

    low: float
    median: float
    high: float


class Memory(Answer):
    device_bytes: Interval
    usable_bytes: int
    headroom_bytes: int
    peak_phase: str
    breakdown: dict[str, int]
    device_breakdown: dict[str, int]


class Time(Answer):
    step_time_seconds: Interval
    tokens_per_second: float


class Provenance(Answer):
    basis: str
    assumptions: tuple[str, ...]


class OptimizerChoice(Answer):
    name: str
    rank: int | None = None
    implementation: str


class Training(Answer):
    micro_batch_size: int
    seq_len: int
    grad_accum_steps: int
    optimizer: OptimizerChoice
    layerwise_update: bool
    activation_checkpointing: str


class Parallelism(Answer):
    dp_replicate_degree: int
    dp_shard_degree: int
    zero_stage: int
    tp_degree: int
    pp_degree: int
    cp_degree: int
    gradient_as_bucket_view: bool


class Hardware(Answer):
    gpu: str
    num_gpus: int


class Spec(Answer):
    training: Training
    parallelism: Parallelism
    hardware: Hardware


class Estimate(Answer):
    fits: str
    memory: Memory
    time: Time
    provenance: Provenance


class Candidate(Answer):
    spec: Spec
    estimate: Estimate
    pareto: bool
    reasons: tuple[str, ...]


class Rejection(Answer):
    optimizer: str
    rank: int | None = None
    placement: str
    why: str
    smallest_change_that_fits: str | None


class Plan(Answer):
    candidates: tuple[Candidate, ...]
    rejected: tuple[Rejection, ...]
    searched: int
    elapsed_seconds: float
    assumptions: tuple[str, ...] = ()


class FieldProblem(Answer):
    pointer: str | None = None
    """Null for what is no part of a body, such as a query parameter."""
    field: str = ""
    value: Any = None  # whatever JSON was sent
    detail: str
    accepted: str | None = None
    suggestions: tuple[str, ...] = ()


class Problem(Answer):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] = ()


class Model(Answer):
    name: str
    num_parameters: int


class Gpu(Answer):
    id: str
    name: str


class Optimizer(Answer):
    name: str
    title: str
