"""The page of architectures is what its results say."""

from benchmarks.architectures import PAGE, load_results, page

LEAST, POINTS = 60, 6


def test_the_page_is_what_make_docs_architectures_writes() -> None:
    assert PAGE.read_text() == page()


def test_enough_classes_are_exact_at_six_points_or_more() -> None:
    rows = load_results().values()

    assert sum(row["status"] == "exact" and row["held_out"] >= POINTS for row in rows) >= LEAST


def test_every_exact_class_was_held_out_at_six_points_or_more() -> None:
    rows = load_results().values()

    assert [
        row["architecture"] for row in rows if row["status"] == "exact" and row["held_out"] < POINTS
    ] == []


def test_what_is_not_exact_says_why() -> None:
    rows = load_results().values()

    assert [row["architecture"] for row in rows if row["status"] != "exact" and not row["reason"]] == []
