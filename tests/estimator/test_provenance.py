"""What an answer says about itself."""

from tests.estimator.memory.steps import make_step
from tests.factories import make_gpu, make_run
from whatfits.estimator.memory.compose import StepMemory
from whatfits.estimator.memory.placement import Placement
from whatfits.estimator.provenance import LOOP_ASSUMPTIONS, provenance_of
from whatfits.estimator.specs import Basis, GpuSpec


def with_gpu(step: StepMemory, gpu: GpuSpec) -> StepMemory:
    return StepMemory(table=step.table, optimizer=step.optimizer, gpu=gpu)


def test_profile_stack_and_kernel_are_named() -> None:
    step = make_step()
    found = provenance_of(make_run(), step, ("a note.",))

    assert found.basis is Basis.ANALYTICAL
    assert (found.profile, found.stack, found.kernel) == (step.table.key.slug, step.table.stack, "flash")
    assert found.assumptions == ("a note.", *LOOP_ASSUMPTIONS)


def test_sharding_is_an_assumption() -> None:
    step = make_step(placement=Placement.FSDP, shard_degree=2)

    assert any(text.startswith("FSDP") for text in provenance_of(make_run(), step, ()).assumptions)


def test_an_estimated_total_is_an_assumption_unless_capped() -> None:
    step = with_gpu(make_step(), make_gpu(total_bytes_is_estimate=True))
    capped = make_run(hardware={"memory_cap_bytes": 10**9})

    assert any(step.gpu.id in text for text in provenance_of(make_run(), step, ()).assumptions)
    assert not any(step.gpu.id in text for text in provenance_of(capped, step, ()).assumptions)
