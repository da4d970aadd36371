"""The objects of one image: any number of fields, all with one entry per object."""

from typing import Any

import torch
from torch import Tensor


def _select(values: Any, index: Any) -> Any:
    """`values[index]`, also for a plain list and a bool or int tensor."""
    if not isinstance(values, (list, tuple)) or isinstance(index, slice):
        return values[index]
    if isinstance(index, Tensor):
        index = index.nonzero().flatten() if index.dtype == torch.bool else index
        index = index.tolist()
    return type(values)(values[i] for i in index)


def _join(values: list[Any], name: str) -> Any:
    """Concatenate one field of several `Instances`."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values)
    if isinstance(first, (list, tuple)):
        return type(first)(entry for part in values for entry in part)
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(
        f"Field '{name}' holds {type(first).__name__}, which cannot be concatenated: "
        "expected a tensor, a list or a type with a static method `cat`."
    )


class Instances:
    """The objects of one image, as fields of equal length (`gt_boxes`, `gt_classes`, `scores`, ...).

    A field is set and read as an attribute; names that start with an underscore are ordinary attributes.
    Values may be tensors, lists or structures of this package. Indexing selects objects in every field.
    """

    def __init__(self, image_size: tuple[int, int], **fields: Any) -> None:
        """`image_size` is (height, width)."""
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in fields.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image the objects are in."""
        return self._image_size

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:
            self.set(name, value)

    def __getattr__(self, name: str) -> Any:
        # Only called for what is no ordinary attribute. While unpickling there are no fields yet.
        fields = self.__dict__.get("_fields", {})
        if name in fields:
            return fields[name]
        raise AttributeError(f"Cannot find field '{name}' in the given Instances!")

    def set(self, name: str, value: Any) -> None:
        """Add or replace a field.

        Raises:
            AssertionError: if its length differs from that of the other fields.
        """
        if self._fields:
            assert len(value) == len(self), (
                f"Adding a field of length {len(value)} to a Instances of length {len(self)}"
            )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Any:
        return self._fields[name]

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name; changing this dict changes the instances."""
        return self._fields

    def _with(self, fields: dict[str, Any]) -> "Instances":
        return Instances(self._image_size, **fields)

    def to(self, *args: Any, **kwargs: Any) -> "Instances":
        """A copy with every field that has a `to` moved."""
        moved = {k: v.to(*args, **kwargs) if hasattr(v, "to") else v for k, v in self._fields.items()}
        return self._with(moved)

    def __getitem__(self, index: int | slice | Tensor | list[int]) -> "Instances":
        """Select objects; an int gives `Instances` of length one.

        Raises:
            IndexError: for an int outside the range.
        """
        if isinstance(index, int):
            count = len(self)
            if not -count <= index < count:
                raise IndexError(f"Index {index} is out of range: there are {count} instances.")
            start = index % count
            index = slice(start, start + 1)
        return self._with({k: _select(v, index) for k, v in self._fields.items()})

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without any field have no length: set a field first.")

    def __iter__(self) -> None:
        raise NotImplementedError("Instances cannot be iterated: loop over range(len(instances)) or over a field.")

    @staticmethod
    def cat(instance_lists: list["Instances"]) -> "Instances":
        """Put the instances of several results on one image in a row.

        Raises:
            ValueError: for an empty list, different image sizes or fields, or a field that cannot be joined.
        """
        if len(instance_lists) == 0:
            raise ValueError("Instances.cat got an empty list, expected at least one Instances.")
        first = instance_lists[0]
        for other in instance_lists[1:]:
            if tuple(other.image_size) != tuple(first.image_size):
                raise ValueError(f"Instances of different image sizes: {first.image_size} and {other.image_size}.")
            if other._fields.keys() != first._fields.keys():
                raise ValueError(f"Instances of different fields: {list(first._fields)} and {list(other._fields)}.")
        if len(instance_lists) == 1:
            return first
        names = first._fields
        return first._with({name: _join([one._fields[name] for one in instance_lists], name) for name in names})

    def __str__(self) -> str:
        count = len(self) if self._fields else 0
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__
