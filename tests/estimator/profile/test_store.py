"""Where profiles are looked for, in which order, and what is said when there is none."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from whatfits.estimator import estimate_run
from whatfits.estimator.errors import InputError, UnsupportedError
from whatfits.estimator.profile import (
    DEFAULT_STACK,
    EventProgram,
    MissingProfileError,
    ProfileKey,
    SizeExpression,
    load_program,
    load_table,
    trace_command,
)
from whatfits.estimator.profile.store import (
    find_stack,
    known_stacks,
    save_class,
    stack_folder,
    user_profiles,
)
from whatfits.estimator.specs import RunSpec

KEY = ProfileKey(
    architecture="LlamaForCausalLM",
    precision="bf16",
    attention="sdpa",
    checkpointing="none",
    loss="standard",
    micro_batch="one",
    kv_heads="full",
    tied=False,
)
OTHER = replace(KEY, sequence="other")
ODD, MIXED = replace(KEY, sequence="odd_eights"), replace(KEY, sequence="eights_and_other")
NEW_STACK = {"torch": "2.14", "transformers": "5.30"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's."""
    monkeypatch.setenv("WHATFITS_PROFILES", str(tmp_path))
    return user_profiles()


@pytest.fixture(scope="module")
def program() -> EventProgram:
    return load_program(KEY)


def marked(program: EventProgram, number: int, key: ProfileKey = KEY) -> EventProgram:
    """The same program with a buffer by which it is known again."""
    return replace(program, key=key, buffers=(("mark", SizeExpression(((number, ()),))),))


def mark_of(key: ProfileKey, stack: dict[str, str]) -> int:
    values = {load(key, stack).buffers[0][1].evaluate({}) for load in (load_table, load_program)}
    (value,) = values
    return int(value)


def test_the_folder_is_the_one_named_or_the_platforms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert user_profiles().parent == tmp_path
    monkeypatch.delenv("WHATFITS_PROFILES")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_profiles().parent == Path("/data/whatfits/profiles")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # to be ignored, says the specification
    assert user_profiles().parent == Path("~/.local/share/whatfits/profiles").expanduser()


def test_what_the_user_traced_comes_before_what_is_shipped(program: EventProgram, folder: Path) -> None:
    shipped = load_program(KEY).buffers
    save_class([marked(program, 3)], folder / stack_folder(DEFAULT_STACK))

    assert mark_of(KEY, DEFAULT_STACK) == 3
    save_class([marked(program, 5)], folder / stack_folder(DEFAULT_STACK))
    assert mark_of(KEY, DEFAULT_STACK) == 5
    shutil.rmtree(folder)
    assert load_program(KEY).buffers == shipped


def test_a_traced_stack_is_known_and_found_by_its_versions(program: EventProgram, folder: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"no profile was traced with torch 2\.14"):
        find_stack({"torch": "2.14"})

    save_class([marked(program, 7)], folder / stack_folder(NEW_STACK))

    assert known_stacks()[0] == DEFAULT_STACK
    assert NEW_STACK in known_stacks()
    assert find_stack({"torch": "2.14"}) == find_stack({"transformers": "5.30.1"}) == NEW_STACK
    assert find_stack(None) == find_stack({}) == find_stack({"torch": "2.13"}) == DEFAULT_STACK
    assert mark_of(KEY, NEW_STACK) == 7


def test_a_program_for_multiples_of_8_answers_for_others_unless_they_have_their_own(
    program: EventProgram, folder: Path
) -> None:
    place = folder / stack_folder(NEW_STACK)
    save_class([marked(program, 1)], place)
    assert mark_of(OTHER, NEW_STACK) == mark_of(KEY, NEW_STACK) == 1

    assert mark_of(ODD, NEW_STACK) == mark_of(MIXED, NEW_STACK) == 1

    save_class([marked(program, 2), marked(program, 3, OTHER), marked(program, 5, ODD)], place)
    assert [mark_of(key, NEW_STACK) for key in (KEY, OTHER, ODD)] == [2, 3, 5]
    with pytest.raises(MissingProfileError):
        mark_of(MIXED, NEW_STACK)

    save_class([marked(program, 6, MIXED)], place)
    assert [mark_of(key, NEW_STACK) for key in (KEY, OTHER, ODD, MIXED)] == [2, 3, 5, 6]

    save_class([marked(program, 4)], place)
    assert [mark_of(key, NEW_STACK) for key in (KEY, OTHER, ODD)] == [4] * 3
    assert mark_of(MIXED, NEW_STACK) == 6


def test_a_missing_class_names_the_stacks_that_have_it_and_the_command() -> None:
    with pytest.raises(MissingProfileError) as raised:
        load_table(KEY, NEW_STACK)

    error = raised.value.for_model("llama-7b")
    assert "torch 2.13, transformers 5.23" in error.accepted
    assert error.reason == (
        f"no profile of {KEY.slug} was traced with torch 2.14, transformers 5.30; "
        "`whatfits trace llama-7b --python /path/to/python --precision bf16 --attention sdpa "
        "--checkpointing none --micro-batch-size 1` in an environment that has them makes it"
    )


def test_an_estimate_without_a_profile_names_the_command_for_its_model() -> None:
    run = {"model": "llama-7b", "hardware": {"gpu": "a100-80gb-sxm"}, "stack": {"torch": "1.13"}}

    with pytest.raises(UnsupportedError, match="`whatfits trace llama-7b --python"):
        estimate_run(RunSpec.model_validate(run))


def test_the_command_says_everything_that_makes_the_class() -> None:
    key = replace(
        OTHER,
        mask="padded",
        loss="chunked",
        dropout=True,
        micro_batch="many",
        adapter="dora:q_proj,v_proj",
        first_kernel="cudnn",
    )

    assert trace_command(key, "my config.json").split(" --")[1:] == [
        "python /path/to/python", "precision bf16", "attention sdpa", "checkpointing none",
        "micro-batch-size 2", "loss chunked", "mask padded", "first-kernel cudnn", "seq-len 2047",
        "dropout 0.1", "adapter dora", "lora-targets q_proj,v_proj",
    ]  # fmt: skip
    assert "whatfits trace 'my config.json' --python" in trace_command(key, "my config.json")


@pytest.mark.parametrize("content", [b"", b"not gzip", b"\x1f\x8b\x08\x00"])
def test_a_broken_file_of_the_users_is_named(program: EventProgram, folder: Path, content: bytes) -> None:
    place = folder / stack_folder(DEFAULT_STACK)
    save_class([program], place)
    path = place / f"{KEY.slug}.table.json.gz"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"WHATFITS_PROFILES: .*delete the file, or trace again") as raised:
        load_table(KEY)
    assert raised.value.value == str(path)


def test_nothing_half_written_is_left(program: EventProgram, folder: Path) -> None:
    place = folder / stack_folder(NEW_STACK)
    save_class([program], place)

    assert sorted(path.name for path in place.iterdir()) == [
        f"{KEY.slug}.program.json.gz",
        f"{KEY.slug}.table.json.gz",
    ]
