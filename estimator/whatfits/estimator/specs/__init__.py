"""The specs: immutable, validated descriptions of questions and answers."""

from whatfits.estimator.specs.enums import (
    ActivationCheckpointing,
    AllocatorMode,
    Attention,
    Basis,
    Dtype,
    Framework,
    KeepOutputs,
    Loss,
    Method,
    Objective,
    Offload,
    OptimizerImplementation,
    OptimizerName,
    PeakPhase,
    Precision,
    Verdict,
)
from whatfits.estimator.specs.estimate import (
    DeviceBreakdown,
    DeviceBytes,
    Estimate,
    MemoryBreakdown,
    MemoryEstimate,
    Provenance,
    Seconds3,
    StepTimeParts,
    TimeEstimate,
)
from whatfits.estimator.specs.explanation import (
    ExplainedStep,
    Explanation,
    LiveGroup,
    StepPart,
    TimelinePoint,
)
from whatfits.estimator.specs.hardware import GpuSpec, HardwareSpec, LinkSpec
from whatfits.estimator.specs.model import ModelSpec
from whatfits.estimator.specs.parallelism import ParallelismSpec
from whatfits.estimator.specs.plan import Candidate, Plan, PlanRequest, Rejection
from whatfits.estimator.specs.precision import PrecisionDtypes, expand_precision
from whatfits.estimator.specs.rules import assumptions_of, check_model, check_optimizer, check_run
from whatfits.estimator.specs.run import RunSpec
from whatfits.estimator.specs.support import (
    require_kernel,
    require_supported,
    require_supported_gpu,
    require_supported_request,
)
from whatfits.estimator.specs.training import (
    DEFAULT_SEQ_LEN,
    AdapterSpec,
    LoopSpec,
    OptimizerSpec,
    TrainingSpec,
)
from whatfits.estimator.specs.validation import describe_errors, input_errors

__all__ = [
    "DEFAULT_SEQ_LEN",
    "ActivationCheckpointing",
    "AdapterSpec",
    "AllocatorMode",
    "Attention",
    "Basis",
    "Candidate",
    "DeviceBreakdown",
    "DeviceBytes",
    "Dtype",
    "Estimate",
    "ExplainedStep",
    "Explanation",
    "Framework",
    "GpuSpec",
    "HardwareSpec",
    "KeepOutputs",
    "LinkSpec",
    "LiveGroup",
    "LoopSpec",
    "Loss",
    "MemoryBreakdown",
    "MemoryEstimate",
    "Method",
    "ModelSpec",
    "Objective",
    "Offload",
    "OptimizerImplementation",
    "OptimizerName",
    "OptimizerSpec",
    "ParallelismSpec",
    "PeakPhase",
    "Plan",
    "PlanRequest",
    "Precision",
    "PrecisionDtypes",
    "Provenance",
    "Rejection",
    "RunSpec",
    "Seconds3",
    "StepPart",
    "StepTimeParts",
    "TimeEstimate",
    "TimelinePoint",
    "TrainingSpec",
    "Verdict",
    "assumptions_of",
    "check_model",
    "check_optimizer",
    "check_run",
    "describe_errors",
    "expand_precision",
    "input_errors",
    "require_kernel",
    "require_supported",
    "require_supported_gpu",
    "require_supported_request",
]
