"""Where data sets are looked up by name: how to load them, and what is known about them."""

import logging
from collections import UserDict
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Name to loading function. A function runs only when its data is asked for, and each time that it is."""

    def register(self, name: str, func: Callable[[], Any]) -> None:
        """Make `name` stand for the data that `func` returns: dataset dicts, or a torch Dataset."""
        assert callable(func), f"Register a function that loads {name!r}, not a {type(func).__name__}!"
        assert name not in self.data, f"Dataset '{name}' is already registered!"
        self.data[name] = func

    def get(self, name: str) -> Any:  # type: ignore[override]
        """Load the data set `name`; KeyError, with the names there are, if nobody registered it."""
        if name not in self.data:
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {', '.join(self.data)}")
        return self.data[name]()

    def list(self) -> list[str]:
        """All registered names."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forget `name`."""
        del self.data[name]

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.data)})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()

# Names that older data sets and scripts still use.
_RENAMED = {
    "class_names": "thing_classes",
    "dataset_id_to_contiguous_id": "thing_dataset_id_to_contiguous_id",
    "stuff_class_names": "stuff_classes",
}


@cache  # so that it warns once
def _current_name(key: str) -> str:
    if key not in _RENAMED:
        return key
    logging.getLogger(__name__).warning(f"Metadata '{key}' was renamed to '{_RENAMED[key]}'!")
    return _RENAMED[key]


class Metadata:
    """Facts about one data set (class names, colours, folders, ...) as attributes, each of which is set once.

    Setting an attribute again is allowed only to an equal value: two parts of a program that disagree about
    the classes of a data set should hear of it. `del` an attribute to really replace it.
    """

    name: str = "N/A"

    def __init__(self, **kwargs: Any) -> None:
        self.set(**kwargs)

    def __getattr__(self, key: str) -> Any:
        # Reached only when ordinary lookup fails. Dunder names are asked for by copy and pickle, not by people.
        if key in _RENAMED:
            return getattr(self, _current_name(key))
        known = sorted(self.__dict__)
        if len(known) > 1:
            raise AttributeError(
                f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. "
                f"Available keys are {known}."
            )
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}': metadata is empty. "
            "Is the name spelled right, and has the module that registers it been imported?"
        )

    def __setattr__(self, key: str, value: Any) -> None:
        key = _current_name(key)
        if key in self.__dict__:
            old = self.__dict__[key]
            assert old == value, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set to a different value!\n"
                f"{old} != {value}"
            )
        self.__dict__[key] = value

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes; returns itself."""
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute, or `default`."""
        return getattr(self, key, default)

    def as_dict(self) -> dict[str, Any]:
        """All attributes as a new (shallow) dict."""
        return dict(self.__dict__)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Metadata({', '.join(f'{key}={value!r}' for key, value in self.__dict__.items())})"


class _MetadataCatalog(UserDict):
    """Name to Metadata; a name never seen before gets an empty one."""

    def get(self, name: str) -> Metadata:  # type: ignore[override]
        """The one Metadata object of `name`."""
        assert name, "A dataset needs a name that is not empty!"
        return self.data.setdefault(name, Metadata(name=name))

    def list(self) -> list[str]:
        """All names that metadata was asked for."""
        return list(self.data)

    def remove(self, name: str) -> None:
        """Forget what is known about `name`."""
        del self.data[name]

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.data)})"

    __str__ = __repr__


MetadataCatalog = _MetadataCatalog()
