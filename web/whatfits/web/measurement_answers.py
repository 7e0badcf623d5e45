"""What the pages of measurements read of the API's answers; everything else in them is ignored."""

from typing import Any

from whatfits.web.answers import Answer, OptimizerChoice

__all__ = ["Agent", "Comparison", "Difference", "Measurement", "MeasurementList", "Result"]


class Training(Answer):
    micro_batch_size: int
    seq_len: int
    grad_accum_steps: int
    precision: str
    optimizer: OptimizerChoice
    activation_checkpointing: str


class Hardware(Answer):
    gpu: str
    num_gpus: int


class Run(Answer):
    # A name, or the content of a config.json, which holds arbitrary JSON.
    model: str | dict[str, Any]
    training: Training
    hardware: Hardware


class Request(Answer):
    spec: Run
    device: str
    num_layers: int | None


class Peaks(Answer):
    step: str
    phase: str
    peak_requested_bytes: int
    peak_allocated_bytes: int | None
    peak_active_bytes: int | None
    peak_reserved_bytes: int | None


class Times(Answer):
    forward: tuple[float, ...]
    loss: tuple[float, ...]
    backward: tuple[float, ...]
    optimizer_step: tuple[float, ...]
    step: tuple[float, ...]
    refresh_step: tuple[float, ...]


class Environment(Answer):
    device_name: str
    gpu_uuids: tuple[str, ...]
    driver: str | None
    packages: dict[str, str]
    python: str
    platform: str
    commit: str | None


class Result(Answer):
    outcome: str
    reached_step: int
    reached_phase: str | None
    num_layers: int
    num_parameters: int
    peaks: tuple[Peaks, ...]
    peak_requested_bytes: int
    peak_allocated_bytes: int | None
    peak_reserved_bytes: int | None
    times: Times
    tokens_per_second: float | None
    mfu: float | None
    environment: Environment
    traced_peak_requested_bytes: int | None
    notes: tuple[str, ...]


class Failure(Answer):
    kind: str
    message: str


class Difference(Answer):
    measured: float
    estimated: float
    difference_fraction: float | None


class Comparison(Answer):
    peak_requested_bytes: Difference | None
    peak_allocated_bytes: Difference | None
    peak_reserved_bytes: Difference | None
    device_used_bytes: Difference | None
    step_time_seconds: Difference | None
    same_device: bool


class Measurement(Answer):
    id: str
    campaign: str | None
    status: str
    queue: str
    request: Request
    result: Result | None
    failure: Failure | None
    warning: str | None
    agent: str | None
    attempts: int
    created_at: str
    finished_at: str | None
    source: str
    comparison: Comparison | None


class MeasurementList(Answer):
    items: tuple[Measurement, ...]
    next_cursor: str | None


class Agent(Answer):
    id: str
    queue: str
    host: str
    slot: str
    device_name: str
    heartbeat_at: str
    live: bool
