"""YAML with positions: every refusal names file, line and column; every value is plain Python."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import SuiteError
from attnbench.yaml_source import parse_override, read_settings, show_path, show_value


def write(folder: Path, text: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_values_are_plain_python(tmp_path: Path) -> None:
    """Numbers, booleans and text lose ruamel's classes, so that JSON and pydantic see what was meant."""
    text = "a: 1e-4\nb: 100_600\nc: true\nd: yes\ne: 2024-01-01\nf: [1, {g: null}]\nh: 'x'\n"
    data = read_settings(write(tmp_path, text)).data
    assert data == {
        "a": 1e-4, "b": 100_600, "c": True, "d": "yes", "e": "2024-01-01", "f": [1, {"g": None}], "h": "x",
    }  # fmt: skip
    plain = (int, float, bool, str, list, dict)
    assert all(type(value) in plain for value in data.values())


def test_origins_count_lines_and_columns_from_one(tmp_path: Path) -> None:
    """Every key and list item knows its place; what was merged in knows its surroundings' place."""
    settings = read_settings(write(tmp_path, "a: &x {b: 1}\nc:\n  - 5\n  - {d: 2}\ne:\n  <<: *x\n  f: 2\n"))
    assert settings.origin(("c", 1, "d")).where.endswith("some.yaml:4:6")
    assert settings.origin(("c", 0)).where.endswith("some.yaml:3:5")
    assert settings.origin(("e", "b")).where.endswith("some.yaml:5:1")
    assert settings.origin(("nowhere",)).where.endswith("some.yaml:1:1")


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", "1:1", "the file is empty"),
        ("# only a comment\n", "1:1", "the file is empty"),
        ("- a\n", "1:1", "got a list of 1"),
        ("a: 1\nb: 2\na: 3\n", "3:1", "duplicate key 'a'"),
        ("a: [1,\nb: 2", "2:5", "expected ',' or ']'"),
        ("a:\n\tb: 1\n", "2:1", "cannot start any token"),
        ("a: 'x", "1:6", "end of stream"),
        ("a: 1\n---\nb: 2\n", "2:1", "single document"),
        ("a: *nope\n", "1:4", "undefined alias"),
        ("a: 1\nb: !thing 3\n", "2:1", "tags are not supported"),
        ("a: 1\nb: {c: .nan}\n", "2:5", "numbers must be finite"),
        ("a: 1\n2: 3\n", "1:1", "the key 2, which is not text"),
        ("a: !!int x\n", "1:1", "invalid literal"),
        ("a: 2024-13-45\n", "1:1", "month must be in 1..12"),
    ],
)
def test_bad_yaml_names_file_line_and_column(tmp_path: Path, text: str, place: str, says: str) -> None:
    """A file that is no mapping of settings is one SuiteError with its position."""
    with pytest.raises(SuiteError) as caught:
        read_settings(write(tmp_path, text))
    message = str(caught.value)
    assert f"some.yaml:{place}: " in message
    assert says in message
    assert "\n" not in message


def test_unreadable_files_are_suite_errors(tmp_path: Path) -> None:
    """Missing files, folders and bytes that are no text are refused by name."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00a")
    for path, says in (
        (binary, "not UTF-8"),
        (tmp_path, "directory"),
        (tmp_path / "no.yaml", "No such file"),
    ):
        with pytest.raises(SuiteError, match=says):
            read_settings(path)


def test_a_few_lines_cannot_describe_billions_of_values(tmp_path: Path) -> None:
    """Aliases of aliases grow exponentially; reading them stops."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(SuiteError, match="more values than a suite can need"):
        read_settings(write(tmp_path, "\n".join(lines)))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever stands in the file, the only exception is SuiteError."""
    path = tmp_path_factory.getbasetemp() / "wild.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        read: object = read_settings(path).data
    except SuiteError as error:
        read = str(error)
    assert isinstance(read, dict) or "wild.yaml" in str(read)


def test_paths_are_shown_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error about a file below the working directory shows the path as one would type it."""
    (tmp_path / "suites").mkdir()
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "suites", "- a")
    with pytest.raises(SuiteError, match=r"^suites/some\.yaml:1:1: "):
        read_settings(path)


def test_overrides_read_their_values_as_yaml() -> None:
    """`key=value` splits at the first equals sign; keys of the matrix keep their dots."""
    assert parse_override("train.lr=1e-4", 0)[:2] == (("train", "lr"), 1e-4)
    assert parse_override("a.b={c: [1, x]}", 0)[:2] == (("a", "b"), {"c": [1, "x"]})
    assert parse_override("data.path=/x=y", 0)[:2] == (("data", "path"), "/x=y")
    assert parse_override("matrix.model.attention=[softmax]", 0)[0] == ("matrix", "model.attention")
    assert parse_override("matrix={}", 0)[:2] == (("matrix",), {})


@pytest.mark.parametrize("text", ["train", "=3", "train..lr=3", "train.lr=[1", "train.lr=.inf", ".=1"])
def test_bad_overrides_name_themselves(text: str) -> None:
    """An override has no line; its error quotes it."""
    with pytest.raises(SuiteError, match=r"^override '"):
        parse_override(text, 0)


def test_assigning_moves_the_origin(tmp_path: Path) -> None:
    """After an override, errors about the value point at the override and sort behind the file's."""
    settings = read_settings(write(tmp_path, "a: {b: {c: 1}}\n"))
    before = settings.origin(("a", "b", "c"))
    settings.assign(*parse_override("a.b={c: 2}", 0))
    after = settings.origin(("a", "b", "c"))
    assert settings.data == {"a": {"b": {"c": 2}}}
    assert after.where == "override 'a.b={c: 2}'"
    assert before < after


def test_assigning_into_a_scalar_is_refused(tmp_path: Path) -> None:
    """Nothing can be set inside a number."""
    settings = read_settings(write(tmp_path, "train: {steps: 600}\n"))
    with pytest.raises(
        SuiteError, match=r"train\.steps\.x cannot be set: train\.steps is 600, not a mapping"
    ):
        settings.assign(*parse_override("train.steps.x=1", 0))


def test_values_and_paths_are_shown_as_yaml_spells_them() -> None:
    """Messages speak the user's language, not Python's."""
    assert [show_value(v) for v in (None, True, False, 1.5, "x")] == ["null", "true", "false", "1.5", "'x'"]
    assert show_value({"a": 1}) == "a mapping of 1"
    assert len(show_value("x" * 1000)) == 60
    assert show_path(("a", 1, "b")) == "a[1].b"
