"""The table of optimizers, its default ranks, and what is built from a spec."""

import pytest

from whatfits.estimator.memory.optimizers import (
    OPTIMIZERS,
    AdamW8bit,
    AdamWForeach,
    AdamWForLoop,
    AdamWFused,
    Apollo,
    GaLoreAdamW,
    ParameterRole,
    ParameterTensor,
    StepPhase,
    build_optimizer_program,
)
from whatfits.estimator.memory.optimizers.fira import Fira
from whatfits.estimator.specs import OptimizerImplementation, OptimizerName, OptimizerSpec
from whatfits.estimator.specs.own_code import OWN_CODE_OPTIMIZERS


def test_table_lists_every_name_a_spec_accepts() -> None:
    assert list(OPTIMIZERS) == list(OptimizerName)


def test_the_rules_accept_own_code_exactly_where_there_is_a_program_of_it() -> None:
    with_own = {
        name
        for name, facts in OPTIMIZERS.items()
        if OptimizerImplementation.WHATFITS in facts.implementations
    }

    assert with_own == OWN_CODE_OPTIMIZERS


@pytest.mark.parametrize("name", [OptimizerName(name) for name in OPTIMIZERS])
def test_every_optimizer_builds_and_answers(name: OptimizerName) -> None:
    program = build_optimizer_program(OptimizerSpec(name=name), param_dtype_bytes=2, hidden_size=64)
    # Four, of which FRUGAL has one state-full at a time.
    matrices = [
        ParameterTensor(name=f"w{index}", shape=(128, 64), role=ParameterRole.linear) for index in range(4)
    ]

    state = program.state_bytes(matrices)

    assert (state == 0) is (name in (OptimizerName.SGD, OptimizerName.LOMO, OptimizerName.MEZO))
    assert program.transient_bytes(matrices, StepPhase.first) >= state


@pytest.mark.parametrize(
    ("hidden_size", "rank"), [(512, 128), (1024, 256), (2048, 512), (4096, 1024)], ids=str
)
def test_galore_ranks_of_the_paper(hidden_size: int, rank: int) -> None:
    """arXiv:2403.03507, Table 2 (60M, 350M, 1B) and the 7B script."""
    program = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.GALORE_ADAMW), param_dtype_bytes=2, hidden_size=hidden_size
    )

    assert isinstance(program, GaLoreAdamW)
    assert program.rank == rank


@pytest.mark.parametrize(
    ("hidden_size", "rank"), [(512, 128), (768, 192), (1024, 256), (2048, 256), (4096, 256)], ids=str
)
def test_apollo_ranks_of_the_scripts(hidden_size: int, rank: int) -> None:
    """zhuhanqing/APOLLO, scripts/pretrain_c4: 60M, 130M, 350M, 1B, 7B."""
    program = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.APOLLO), param_dtype_bytes=2, hidden_size=hidden_size
    )

    assert isinstance(program, Apollo)
    assert program.rank == rank


@pytest.mark.parametrize(("hidden_size", "rank"), [(512, 128), (1024, 256), (2048, 512)], ids=str)
def test_fira_ranks_of_the_paper(hidden_size: int, rank: int) -> None:
    """arXiv:2410.01623, Table 3: 60M, 350M, 1B."""
    program = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.FIRA), param_dtype_bytes=2, hidden_size=hidden_size
    )

    assert program == Fira(param_dtype_bytes=2, rank=rank)


def test_frugal_keeps_states_of_a_quarter_of_the_linear_tensors() -> None:
    """fzmushko/FRUGAL, scripts/benchmark_c4: density 0.25; of 28 equal tensors 7 have two fp32 moments."""
    program = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.FRUGAL), param_dtype_bytes=4, hidden_size=768
    )
    matrices = [
        ParameterTensor(name=str(index), shape=(768, 768), role=ParameterRole.linear) for index in range(28)
    ]

    assert program.state_bytes(matrices) == 7 * 2 * 4 * 768 * 768


def test_settings_reach_the_program() -> None:
    galore = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.GALORE_ADAMW, rank=7, projection_update_interval=11),
        param_dtype_bytes=4,
        hidden_size=64,
    )
    bits = build_optimizer_program(
        OptimizerSpec(name=OptimizerName.ADAMW_8BIT, block_size=2048),
        param_dtype_bytes=2,
        hidden_size=64,
        fp32_embeddings=True,
    )

    assert galore == GaLoreAdamW(param_dtype_bytes=4, rank=7, update_interval=11)
    assert bits == AdamW8bit(param_dtype_bytes=2, block_size=2048, fp32_embeddings=True)


def test_implementation_chooses_the_adamw() -> None:
    built = [
        type(
            build_optimizer_program(
                OptimizerSpec(name=OptimizerName.ADAMW, implementation=implementation),
                param_dtype_bytes=2,
                hidden_size=64,
            )
        )
        for implementation in (
            OptimizerImplementation.FOR_LOOP,
            OptimizerImplementation.FOREACH,
            OptimizerImplementation.FUSED,
        )
    ]

    assert built == [AdamWForLoop, AdamWForeach, AdamWFused]


def test_a_program_is_built_once_per_setting() -> None:
    """What it has evaluated for one candidate of a plan serves the next."""
    spec = OptimizerSpec(name=OptimizerName.APOLLO, rank=8)

    first = build_optimizer_program(spec, param_dtype_bytes=2, hidden_size=64)

    assert build_optimizer_program(spec, param_dtype_bytes=2, hidden_size=128) is first
