"""The conditioning goes from the data to the network as one object."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm_sa.condition import NO_CONDITION, Condition, checked_labels, concatenate

X, T = torch.zeros(4, 1, 2, 2), torch.arange(4)


def test_a_network_is_told_labels_by_name_and_nothing_where_there_are_none() -> None:
    calls: list[dict[str, Any]] = []

    def network(x_t: Tensor, t: Tensor, **told: Any) -> SimpleNamespace:
        calls.append(told)
        return SimpleNamespace(sample=x_t)

    labels = torch.tensor([2, 0, 1, 1])
    NO_CONDITION.evaluate(network, X, T)
    Condition(class_labels=labels).evaluate(network, X, T)
    assert calls == [{}, {"class_labels": labels}]


def test_slices_and_concatenations_are_those_of_the_labels() -> None:
    condition = Condition(class_labels=torch.tensor([5, 6, 7]))
    parts = concatenate([condition[1:], condition[:1]])
    assert parts.class_labels is not None
    assert parts.class_labels.tolist() == [6, 7, 5]
    assert concatenate([NO_CONDITION, NO_CONDITION]).class_labels is None
    assert NO_CONDITION[:2].to("cpu").class_labels is None


@pytest.mark.parametrize("label", [1, np.int64(1), torch.tensor(1), [1, 1], np.array([1, 1])])
def test_labels_of_every_usual_type_are_taken(label: Any) -> None:
    labels = checked_labels(label, 2, 3)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1, 2], "3 class_labels for 2 images"),
        (3, "label 3 is not among 0 ... 2"),
        (-1, "label -1 is not among"),
        (1.5, "integers"),
        ("cat", "class 'cat': the classes of this model have no names; give a number, 0 ... 2"),
        ("3", "class '3'"),
        (["1", 5, "2"], "3 class_labels for 2 images"),
        ([True, False], "integers"),
        ([[0, 1]], "integers"),
    ],
)
def test_other_labels_are_refused(label: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_labels(label, 2, 3)


NAMES = ("7", "cat", "3", "0")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("cat", [1, 1]),
        (["cat", "7"], [1, 0]),
        (["cat", 3], [1, 3]),
        (np.array(["3", "cat"]), [2, 1]),
        ("3", [2, 2]),  # a name before an index
        (3, [3, 3]),
        ("1", [1, 1]),  # no class has this name
        ("0", [3, 3]),
    ],
)
def test_classes_are_given_by_name_and_strings_are_names_first(
    label: Any, expected: list[int]
) -> None:
    assert checked_labels(label, 2, 5, NAMES).tolist() == expected


def test_an_unknown_name_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="no class is called 'dog'; there are 7, cat, 3, 0, or 0 "):
        checked_labels("dog", 2, 4, NAMES)
    with pytest.raises(ValueError, match=r"there are cat, dog, or 0 \.\.\. 1$"):  # 2 is "no label"
        checked_labels("horse", 2, 3, ["cat", "dog"])
    many = [f"class{i}" for i in range(1000)]
    with pytest.raises(ValueError, match=r"class7 and 992 others, or 0 ... 999") as refusal:
        checked_labels(["class999", "class1000"], 2, 1000, many)
    assert len(str(refusal.value)) < 150
    for huge in ("9" * 5000, "-1", "1.0", "٣"):
        with pytest.raises(ValueError, match="no class is called"):
            checked_labels(huge, 2, 3, ["a", "b", "c"])
