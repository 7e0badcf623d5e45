"""What a user's own module does to the child is said in a typed error, and ends with the child."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.profiler.processes import wait_until_gone
from whatfits.profiler.trace.child_process import (
    TraceChild,
    TraceEndedError,
    TraceFailedError,
    TraceMemoryError,
    TraceTimeoutError,
)
from whatfits.profiler.trace.options import StepOptions

TWO_GIB = 2**31


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, where children look for modules."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(Path(__file__).with_name("hostile.py"), place)
    with contextlib.chdir(place):
        yield place


@pytest.fixture(scope="module")
def child(folder: Path) -> Iterator[TraceChild]:
    with TraceChild(memory_bytes=TWO_GIB) as started:
        yield started


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("mute", "MuteError: it does not say what"),
        ("stops", "SystemExit: stop"),
        ("talks", r"ValueError: x{500}\.\.\.$"),
        ("endless", "RecursionError"),
        ("nothing", "hostile has no function nothing"),
    ],
)
def test_what_a_factory_raises_is_said_and_the_child_goes_on(
    child: TraceChild, factory: str, said: str
) -> None:
    with pytest.raises(TraceFailedError, match=said):
        child.describe_own(f"hostile:{factory}")
    assert child.describe_own("hostile:good").num_parameters == 3 * (8 * 8 + 8)


@pytest.mark.parametrize("factory", ["allocates", "grows"])
def test_more_memory_than_allowed_is_refused(child: TraceChild, factory: str) -> None:
    with pytest.raises(TraceMemoryError, match="more than the 2 GiB"):
        child.describe_own(f"hostile:{factory}")


@pytest.mark.parametrize("factory", ["prints", "copies"])
def test_only_the_child_answers(child: TraceChild, factory: str) -> None:
    """Neither what is printed nor a copy that a factory forks off is taken for an answer."""
    options = StepOptions(architecture="Layers", factory=f"hostile:{factory}")
    plain = StepOptions(architecture="Layers", factory="hostile:good")

    assert child.describe_own(f"hostile:{factory}").architecture == "Layers"
    assert child.trace({"L": 3, "b": 2, "s": 16}, options) == child.trace({"L": 3, "b": 2, "s": 16}, plain)


def test_a_forward_that_raises_is_said(child: TraceChild) -> None:
    options = StepOptions(architecture="Breaks", factory="hostile:breaks")

    with pytest.raises(TraceFailedError, match="RuntimeError: forward is broken"):
        child.trace({"L": 3, "b": 2, "s": 16}, options)


def test_a_module_that_never_ends_is_ended(folder: Path) -> None:
    with TraceChild(timeout_seconds=60) as child:
        child._timeout_seconds = 1.0  # of what is asked; starting takes as long as it takes
        with pytest.raises(TraceTimeoutError, match="no answer within 1 s"):
            child.describe_own("hostile:loops")
    assert wait_until_gone(child._process.pid)


def test_a_flood_of_output_ends_before_the_disk_does(folder: Path) -> None:
    with TraceChild() as child, pytest.raises(TraceFailedError, match="File too large"):
        child.describe_own("hostile:floods")


def test_nonsense_in_the_place_of_an_answer_is_said(folder: Path) -> None:
    with TraceChild() as child, pytest.raises(TraceEndedError, match=r"answered b'\[1\]'"):
        child.describe_own("hostile:answers")


def test_what_a_child_that_ends_leaves_behind_is_gone(folder: Path) -> None:
    """At once, although what it left keeps its standard output open; a session of its own saves nobody."""
    with (
        TraceChild(timeout_seconds=300) as child,
        pytest.raises(TraceEndedError, match="ended with status 0"),
    ):
        child.describe_own("hostile:leaves")

    left = [int(line) for line in (folder / "pids").read_text().split()]
    assert len(left) == 2
    assert all(map(wait_until_gone, left))
