"""Matching the names of a checkpoint with those of a model, where one of the two has longer prefixes."""

import logging
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any


def match_names(model_shapes: dict[str, tuple[int, ...]], weights: dict[str, Any]) -> dict[str, Any]:
    """Rename weights to the parameters they fit: `layers.0.weight` becomes `backbone.layers.0.weight`.

    A parameter takes the weight of the same name, else the one with the longest name that ends its own after a dot.

    Args:
        model_shapes: the shape of each parameter.
        weights: tensors by name.

    Returns:
        The weights under their new names, with the `_metadata` of the given ones; those that fit nothing keep theirs.

    Raises:
        ValueError: a weight fits two parameters.
    """
    logger = logging.getLogger(__name__)
    new_names: dict[str, str] = {}
    for parameter, shape in model_shapes.items():
        name = next((ending for ending in _endings(parameter) if ending in weights), None)
        if name is None:
            continue
        if tuple(weights[name].shape) != tuple(shape):
            logger.warning("Shape of %s in checkpoint is %s, while", name, tuple(weights[name].shape))
            logger.warning("shape of %s in model is %s: it is skipped.", parameter, tuple(shape))
            continue
        if name in new_names:
            raise ValueError(
                "Cannot match one checkpoint key to multiple keys in the model. "
                f"{name!r} fits {new_names[name]!r} and {parameter!r}."
            )
        new_names[name] = parameter
    if not new_names:
        logger.warning("No weights in checkpoint matched with model.")
        return weights
    matched = OrderedDict((new_names.get(name, name), value) for name, value in weights.items())
    if hasattr(weights, "_metadata"):
        matched._metadata = weights._metadata
    return matched


def _endings(name: str) -> Iterator[str]:
    """`a.b.c`, `b.c`, `c`."""
    while name:
        yield name
        name = name.partition(".")[2]
