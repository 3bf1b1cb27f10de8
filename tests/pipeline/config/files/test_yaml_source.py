"""YAML text becomes plain data, and every part of it knows where it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.files.yaml_source import parse_yaml

FILE = Path("c.yaml")


def _problems(text: str) -> tuple[str, ...]:
    return parse_yaml(FILE, text).problems


def test_scalars_lists_and_mappings_become_plain_data() -> None:
    """YAML's scalars arrive as Python's."""
    source = parse_yaml(FILE, "a: [1, 2.5, x, true, null]\nb: {c: 'on'}\n")
    assert source.data == {"a": [1, 2.5, "x", True, None], "b": {"c": "on"}}
    assert source.problems == ()


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\n\n"])
def test_nothing_is_an_empty_mapping(text: str) -> None:
    """A file with no content says nothing, which is not an error of its own."""
    source = parse_yaml(FILE, text)
    assert (source.data, source.problems) == ({}, ())


def test_byte_order_mark_is_no_part_of_the_first_key() -> None:
    """A file that an editor saved with a byte order mark reads as it looks."""
    assert parse_yaml(FILE, "\ufeffa: 1\n").data == {"a": 1}


def test_keys_that_look_like_numbers_stay_as_written() -> None:
    """A key is text, whatever YAML would make of it as a value."""
    assert parse_yaml(FILE, "1: a\nnull: b\n2026-01-01: c\n").data == {"1": "a", "null": "b", "2026-01-01": "c"}


@pytest.mark.parametrize(
    ("location", "position"),
    [
        ((), "c.yaml:1:1"),
        (("a",), "c.yaml:1:4"),
        (("b", "c", 1), "c.yaml:3:10"),
        (("b", "c", 1, "absent"), "c.yaml:3:10"),
        (("b", "absent"), "c.yaml:3:3"),
        (("absent",), "c.yaml:1:1"),
    ],
)
def test_position_is_the_values_own_or_its_nearest_parents(location: tuple[str | int, ...], position: str) -> None:
    """A value's position is its beginning; an absent value has the position of its parent."""
    assert parse_yaml(FILE, "a: 1\nb:\n  c: [1, 2]\n").position(location) == position


@pytest.mark.parametrize(("key", "position"), [(("a",), "c.yaml:1:1"), (("b", "c"), "c.yaml:3:3")])
def test_key_position_is_where_the_key_begins(key: tuple[str | int, ...], position: str) -> None:
    """A key can be pointed at apart from its value."""
    assert parse_yaml(FILE, "a: 1\nb:\n  c: {d: 2}\n").key_position(key) == position


def test_every_duplicate_key_is_reported_at_its_own_position() -> None:
    """Duplicates do not hide each other."""
    found = _problems("a: 1\nb: 2\na: 3\nb: 4\n")
    assert found == (
        "c.yaml:3:1: duplicate key 'a'; remove one of them",
        "c.yaml:4:1: duplicate key 'b'; remove one of them",
    )


def test_equal_keys_of_different_mappings_are_no_duplicates() -> None:
    """A key may occur once a mapping."""
    assert _problems("a: {x: 1}\nb: {x: 1}\n") == ()


def test_alias_is_refused() -> None:
    """An alias is a problem, and its text has the fix."""
    (problem,) = _problems("a: &x [1]\nb: *x\n")
    assert problem.endswith(": anchors and aliases are not supported; write the value twice")


def test_alias_is_reported_on_its_own_line() -> None:
    """The position is the alias's, not that of the value it repeats."""
    (problem,) = _problems("a: &x [1]\nb: *x\n")
    assert problem.startswith("c.yaml:2:")


def test_alias_within_its_own_anchor_ends() -> None:
    """A structure that contains itself is refused, not followed for ever."""
    assert len(_problems("a: &x [*x]\n")) == 1


@pytest.mark.parametrize("key", ["[a]", "{a: b}"])
def test_key_that_is_no_word_is_refused(key: str) -> None:
    """A list or a mapping as a key is a problem at that key."""
    assert _problems(f"? {key}\n: 1\n") == ("c.yaml:1:3: a key must be a plain word",)


def test_impossible_date_is_reported_with_its_position() -> None:
    """An impossible date is a problem, not a traceback."""
    (problem,) = _problems("a: 1\nb: 2026-13-45\n")
    assert problem.startswith("c.yaml:2:4: cannot read '2026-13-45': month must be in 1..12")


@pytest.mark.parametrize("value", ["!!int abc", "!!int ''", "!!float ''", "!!bool x", "!!timestamp x"])
def test_value_that_is_not_of_its_tag_is_reported_with_its_position(value: str) -> None:
    """A tag that the value does not fit is a problem at that value, not a traceback."""
    (problem,) = _problems(f"a: 1\nb: {value}\n")
    assert problem.startswith("c.yaml:2:4: ")


@pytest.mark.parametrize("tag", ["!mine", "!!python/object/apply:os.system"])
def test_unknown_tag_is_refused_at_its_position(tag: str) -> None:
    """Tags that could construct objects construct nothing."""
    source = parse_yaml(FILE, f"a: 1\nb: {tag} x\n")
    (problem,) = source.problems
    assert problem.startswith("c.yaml:2:4: ")
    assert "x" not in str(source.data)


def test_syntax_error_is_reported_with_its_position() -> None:
    """Text that is no YAML is one problem, at the place where the parser stopped."""
    source = parse_yaml(FILE, "a: 1\nb: [1\n")
    (problem,) = source.problems
    assert problem.startswith("c.yaml:3:1: not valid YAML: ")
    assert source.data is None


def test_second_document_is_refused() -> None:
    """A file is one document."""
    (problem,) = _problems("a: 1\n---\nb: 2\n")
    assert problem == "c.yaml:2:1: not valid YAML: expected a single document in the stream, but found another document"


def test_control_character_is_reported_with_its_position() -> None:
    """A character that YAML forbids is reported where it stands, in one line."""
    (problem,) = _problems("a: 1\nb: \x07\n")
    assert problem.startswith("c.yaml:2:4: not valid YAML: ")
    assert "\n" not in problem


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_reported(opening: str) -> None:
    """Nesting that exhausts the parser is a problem, not a traceback."""
    (problem,) = _problems(opening * 5000)
    assert "not valid YAML" in problem


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_parses_or_is_a_positioned_problem(text: str) -> None:
    """No text is a traceback: there are data, or problems that begin with file:line:column."""
    source = parse_yaml(FILE, text)
    assert all(re.match(r"c\.yaml:[1-9]\d*:[1-9]\d*: ", problem) for problem in source.problems)


_PIECES = [
    "a",
    ":",
    " ",
    "\n",
    "-",
    "[",
    "]",
    "{",
    "}",
    ",",
    "&x",
    "*x",
    "!!int",
    "!!bool",
    "!",
    "'",
    '"',
    "|",
    "?",
    "1",
]


@given(st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
@settings(deadline=None)
def test_any_mix_of_yaml_signs_parses_or_is_a_positioned_problem(text: str) -> None:
    """Text made of YAML's own signs never is a traceback."""
    source = parse_yaml(FILE, text)
    assert all(re.match(r"c\.yaml:[1-9]\d*:[1-9]\d*: ", problem) for problem in source.problems)


_SCALARS = st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(st.characters(codec="ascii"), max_size=8)
_KEYS = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=6)
_DATA = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("0500", "500"),
        ("-010", "it in decimal digits"),
        ("+007", "7"),
        ("5_00", "500"),
        ("0x1F4", "it in decimal digits"),
        ("0b11", "it in decimal digits"),
        ("1:30", "it in decimal digits"),
        ("1:30.5", "it in decimal digits"),
        ("1_0.5", "it in decimal digits"),
    ],
)
def test_number_that_versions_of_yaml_read_differently_is_refused(text: str, write: str) -> None:
    """`0500` is 320 in YAML 1.1 and 500 in YAML 1.2, so neither is taken."""
    source = parse_yaml(FILE, f"a: {{b: {text}}}\n")
    assert source.problems == (
        (
            f"c.yaml:1:8: expected a number in decimal digits, got {text}, which YAML may read as another number; "
            f"write {write}, or '{text}' in quotes for text"
        ),
    )
    assert source.unreadable == {("a", "b")}
    assert parse_yaml(FILE, f"a: '{text}'\n").data == {"a": text}


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("-1", -1), ("+2", 2), ("500", 500), ("0.5", 0.5), (".5", 0.5), ("5.", 5.0), ("1e-5", 1e-5), ("-0", 0)],
)
def test_decimal_number_is_read(text: str, number: float) -> None:
    """Decimal digits are a number in every version of YAML."""
    assert parse_yaml(FILE, f"a: {text}\n").data == {"a": number}


def test_tab_is_refused_with_the_remedy() -> None:
    """A tab in an indentation is named as such."""
    (problem,) = _problems("a:\n\tb: 1\n")
    assert problem.startswith("c.yaml:2:1: not valid YAML: ")
    assert problem.endswith("; indent and separate with spaces, not with a tab")


@given(st.dictionaries(_KEYS, _DATA, max_size=4))
@settings(deadline=None)
def test_plain_data_comes_back_as_it_was_written(data: dict[str, object]) -> None:
    """Plain data in a YAML writer's form is read back unchanged."""
    text = yaml.dump(data, Dumper=_WithoutAliases)
    source = parse_yaml(FILE, text)
    assert (source.data, source.problems) == (data, ())


class _WithoutAliases(yaml.SafeDumper):
    """A YAML writer that repeats shared values."""

    def ignore_aliases(self, data: object) -> bool:
        """Write every value out."""
        del data
        return True


# PyYAML writes YAML 1.1, in which 0E0 is text without quotes; the reader knows the numbers of YAML 1.2 as well.
_WithoutAliases.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[\d.]+[eE][-+]?\d+$"), list("-+.0123456789")
)


def test_text_that_looks_like_a_number_comes_back_as_text() -> None:
    """Quotes keep what YAML 1.2 would read as a number (found by the test above)."""
    assert parse_yaml(FILE, "a: '0E0'\nb: 0E0\n").data == {"a": "0E0", "b": 0.0}
