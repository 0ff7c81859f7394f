"""The conditioning of a network: everything it receives besides x_t and t.

One object carries it from the data to the network. It is passed by name, and moved, sliced and
concatenated as one. A new kind of conditioning is a field here, with a line in `evaluate`; the code
in between (samplers, guidance, losses, editing, training) needs no change.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddpm_sa.errors import UserError

NAMES_SHOWN = 8  # in a message; ImageNet has a thousand


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Condition:
    """The conditioning of a batch of B images; empty for an unconditional network.

    Attributes:
        class_labels: (B,), int64, or None.
        image: Channels that the network sees behind those of x_t, (B, K, H, W), float32, from
            `conditions.format.ConditionFormat.assemble`; or None.
    """

    class_labels: Tensor | None = None
    image: Tensor | None = None

    def evaluate(self, network: Callable[..., Any], x_t: Tensor, t: Tensor) -> Any:
        """Call a network as UNet and UNet2DModel are called; returns what it returns.

        Args:
            network: (x_t, t), or (x_t, t, class_labels=...) where there are labels.
            x_t: (B, C, H, W); the network receives C + K channels.
            t: (B,).
        """
        if self.image is not None:
            x_t = torch.cat([x_t, self.image.to(x_t.dtype)], dim=1)
        if self.class_labels is None:
            return network(x_t, t)
        return network(x_t, t, class_labels=self.class_labels)

    def replace(self, **changes: Tensor | None) -> "Condition":
        """The same but for some fields."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str) -> "Condition":
        """The same on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def __getitem__(self, images: slice) -> "Condition":
        """The condition of some images of the batch."""
        return self._map(lambda tensor: tensor[images])

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Condition":
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Condition(**{k: None if v is None else change(v) for k, v in fields.items()})


NO_CONDITION = Condition()
"""The conditioning of an unconditional network."""


def concatenate(conditions: Sequence[Condition]) -> Condition:
    """The condition of several batches in a row; all have the same fields."""
    fields = {
        field.name: [getattr(condition, field.name) for condition in conditions]
        for field in dataclasses.fields(Condition)
    }
    return Condition(
        **{name: None if parts[0] is None else torch.cat(parts) for name, parts in fields.items()}
    )


def checked_labels(
    class_labels: Any, num_images: int, num_classes: int, names: Sequence[str] | None = None
) -> Tensor:
    """Class labels as `Condition` has them.

    Args:
        class_labels: One class for all images, or a sequence (list, array, tensor) with one for
            each. An integer is an index; a string is a name, or the index if no class has that
            name.
        num_images: B.
        num_classes: Labels are 0 ... num_classes - 1.
        names: Of the classes 0, 1, ..., or None.

    Raises:
        ValueError: If they are neither integers nor names, out of range, or not one per image.
    """
    labels = np.asarray(class_labels)
    if labels.dtype.kind in "UO" and labels.ndim < 2:  # with integers and strings, all are strings
        given = [class_labels] if labels.ndim == 0 else list(class_labels)
        indices = [_class_index(label, num_classes, names or ()) for label in given]
        labels = np.asarray(indices if labels.ndim else indices[0])
    if labels.ndim > 1 or (labels.size and labels.dtype.kind not in "iu"):
        raise UserError(f"class_labels={class_labels!r} must be integers or names of classes")
    if labels.ndim == 0:
        labels = labels.repeat(num_images)
    if len(labels) != num_images:
        raise UserError(f"{len(labels)} class_labels for {num_images} images")
    for label in labels:
        if not 0 <= label < num_classes:
            raise UserError(f"class label {label} is not among 0 ... {num_classes - 1}")
    return torch.from_numpy(labels.astype(np.int64))


def _class_index(label: Any, num_classes: int, names: Sequence[str]) -> Any:
    """The index of a class that is given by its name; anything but a string as it is."""
    if not isinstance(label, str):
        return label
    # A class may be called "3" and not be the third: its name is what people see.
    if label in names:
        return list(names).index(label)
    if label.isdecimal() and len(label) < 10 and int(label) < num_classes:
        return int(label)
    if not names:
        raise UserError(
            f"class {label!r}: the classes of this model have no names; give a number, 0 ... "
            f"{num_classes - 1}"
        )
    first = ", ".join(names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} others" if len(names) > NAMES_SHOWN else ""
    raise UserError(
        f"no class is called {label!r}; there are {first}{more}, or 0 ... {len(names) - 1}"
    )
