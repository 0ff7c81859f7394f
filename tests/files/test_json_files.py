import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm_sa.errors import UserError
from ddpm_sa.files.json_files import Number, check_choice, read_object, shown

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_whatever_json_holds_a_range_takes_or_refuses_it_in_one_line(value: Any) -> None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 7
    numbers = Number(low=1, high=7, whole=True)
    assert numbers.holds(value) == fits
    if not fits:
        with pytest.raises(UserError) as refusal:
            numbers.check("levels", value)
        said = str(refusal.value)
        assert said.startswith("levels=")
        assert said.endswith(" must be a whole number from 1 to 7")
        assert "\n" not in said
        assert len(said) < 200


@pytest.mark.parametrize(
    ("numbers", "inside", "outside"),
    [
        (Number(), [0, -1.5, 10**400], [math.nan, math.inf, -math.inf, "1", None, True]),
        (Number(low=0, high=1), [0, 1, 0.5], [-1e-9, 1.1]),
        (Number(low=0, high=1, inside=True), [0.5], [0, 1, math.nan]),
        (Number(low=2, whole=True, optional=True), [2, None, 10**400], [1, 2.0, False]),
    ],
    ids=str,
)
def test_ranges_hold_what_they_say(numbers: Number, inside: list[Any], outside: list[Any]) -> None:
    assert all(map(numbers.holds, inside))
    assert not any(map(numbers.holds, outside))


def test_a_choice_is_told_from_a_number_that_equals_it() -> None:
    check_choice("thresholding", True, (True, False))
    with pytest.raises(UserError, match="thresholding=1 is unknown; known are True, False"):
        check_choice("thresholding", 1, (True, False))
    with pytest.raises(UserError, match=r"kind=\['a'\] is unknown; known are a, null"):
        check_choice("kind", ["a"], ("a", None))


def test_long_values_are_shortened() -> None:
    assert len(shown([0.1] * 1000)) < 60
    assert len(shown("a" * 1000)) < 100


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 10**5, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=lambda content: repr(content[:8]),
)
def test_what_is_no_object_is_refused_by_its_path(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read_object(path)
    assert str(refusal.value).startswith(f"{path} ")
    assert "\n" not in str(refusal.value)


def test_objects_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"label": "Ø"}, ensure_ascii=False), "utf-8")
    assert read_object(tmp_path / "a.json") == {"label": "Ø"}
