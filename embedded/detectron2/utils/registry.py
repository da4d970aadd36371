"""Registries of names, and the look-up of an object by its dotted path."""

import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object at the dotted path `name`, such as "torch.nn.Conv2d"; ImportError when there is none."""
    found = pydoc.locate(name)
    if found is None:
        raise ImportError(f"Cannot dynamically locate object {name}!")
    return found
