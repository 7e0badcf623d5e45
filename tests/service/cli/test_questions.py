"""Questions from files and standard input: what is wrong with one is said, with its place."""

import io
import json
import sys
from pathlib import Path

import pytest

from whatfits.service.cli.failures import SpecFileError
from whatfits.service.cli.questions import drop_unset, read_spec


def test_reads_an_object_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"model": "llama-7b"}')
    assert read_spec(str(path)) == {"model": "llama-7b"}


def test_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'\xef\xbb\xbf{"model": "llama-7b"}')))
    assert read_spec("-") == {"model": "llama-7b"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model":', "not JSON: Expecting value, line 1, column 10"),
        (b"", "not JSON: Expecting value, line 1, column 1"),
        (b"[1, 2]", "a JSON object is expected, not list"),
        (b"\xff\xfe", "not UTF-8 text (byte 0)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"model": NaN}', "not JSON: NaN is not a JSON value"),
        (b'{"model": "a", "model": "b"}', 'the key "model" is given twice'),
    ],
    ids=["cut", "empty", "list", "binary", "deep", "nan", "twice"],
)
def test_names_what_is_wrong_with_a_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(SpecFileError) as caught:
        read_spec(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_names_a_file_that_is_not_there() -> None:
    with pytest.raises(SpecFileError, match=r"nosuch\.json: cannot be read \(No such file or directory\)"):
        read_spec("nosuch.json")


def test_a_config_in_place_of_the_model_becomes_its_content(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "run.json").write_text(json.dumps({"model": str(tmp_path / "config.json")}))
    assert read_spec(str(tmp_path / "run.json")) == {"model": config}


def test_only_what_was_given_is_passed_on() -> None:
    assert drop_unset(a=None, b=[], c={}, d=0, e=False, f="x") == {"d": 0, "e": False, "f": "x"}
