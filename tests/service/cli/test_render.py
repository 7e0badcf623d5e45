"""What a person reads: the figures of the answer, in words and units that fit them."""

import pytest

from tests.service.cli.answers import make_estimate, make_plan
from whatfits.estimator.specs import ParallelismSpec, Verdict
from whatfits.service.cli.render_estimate import render_estimate
from whatfits.service.cli.render_plan import render_plan
from whatfits.service.cli.wording import word_placement


@pytest.mark.parametrize(
    ("parallelism", "words"),
    [
        (ParallelismSpec(), "1 GPU"),
        (ParallelismSpec(dp_replicate_degree=8), "DDP x8"),
        (ParallelismSpec(dp_shard_degree=8, zero_stage=3), "FSDP x8"),
        (ParallelismSpec(dp_shard_degree=8, zero_stage=1), "ZeRO-1 x8"),
        (ParallelismSpec(dp_replicate_degree=2, dp_shard_degree=4, zero_stage=3), "DDP x2 of FSDP x4"),
        (ParallelismSpec(tp_degree=2, pp_degree=4), "TP x2, PP x4"),
    ],
)
def test_placements_have_names(parallelism: ParallelismSpec, words: str) -> None:
    assert word_placement(parallelism) == words


def test_a_plan_shows_each_candidate_with_interval_verdict_and_basis(
    capsys: pytest.CaptureFixture[str],
) -> None:
    render_plan(make_plan(Verdict.YES, Verdict.UNCERTAIN))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "8 x a100-80gb-sxm, 79.00 GiB usable each, 2048 tokens a sequence; searched 1,904"
    )
    rows = [line.split() for line in lines if "apollo rank 256" in line]
    expected = (
        "* apollo rank 256, layer-wise DDP x8 4 none 62.0 (60.0-64.0) {} 8,000 (4,000-16,000) analytical"
    )
    assert rows == [
        ["1", *expected.format("yes").split()],
        ["2", *expected.format("uncertain").split()],
    ]


def test_a_plan_says_why_the_rest_fails_and_what_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    render_plan(make_plan(Verdict.YES))
    out = capsys.readouterr().out
    assert "  - adamw, DDP x8: needs 101 GiB of 79 GiB. Fits: full checkpointing.\n" in out
    assert "  - SXM form factor\n" in out


def test_a_plan_in_which_nothing_fits_says_so_first(capsys: pytest.CaptureFixture[str]) -> None:
    render_plan(make_plan())
    assert capsys.readouterr().out.startswith("Nothing fits; searched 1,904 configurations in 12 ms.")


@pytest.mark.parametrize(
    ("verdict", "words"),
    [(Verdict.YES, "fits"), (Verdict.NO, "does not fit"), (Verdict.UNCERTAIN, "uncertain")],
)
def test_an_estimate_opens_with_its_verdict(
    verdict: Verdict, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    render_estimate(make_estimate(verdict))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{words} (probability 0.998): 62.0 (60.0-64.0) GiB of 79.00 GiB usable, 17.00 GiB left"


def test_an_estimate_shows_every_byte_and_leaves_out_what_is_zero(capsys: pytest.CaptureFixture[str]) -> None:
    render_estimate(make_estimate())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["weights", "16,106,127,360", "15.00", "GiB", "25.0%"] in rows
    assert ["activations", "48,318,382,080", "45.00", "GiB", "75.0%"] in rows
    assert ["total", "64,424,509,440", "60.00", "GiB"] in rows
    assert ["total", "66,571,993,088", "62.00", "GiB"] in rows
    assert not [row for row in rows if row[:1] == ["gradients"]]


def test_an_estimate_tells_the_peaks_apart_and_admits_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    render_estimate(make_estimate())
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["requested", "(live", "tensors)", "62,277,025,792", "58.00", "GiB"] in rows
    assert ["reserved", "(max_memory_reserved)", "-", "-"] in rows
    assert ["MFU", "not", "defined"] in rows


def test_sentences_are_printed_as_they_are_and_not_read_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    render_estimate(make_estimate())
    assert "  - the [bold] sentence\n" in capsys.readouterr().out
