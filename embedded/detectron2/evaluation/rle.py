"""COCO's compressed run lengths straight from masks and label maps, without a copy of each mask column by column.

COCO counts pixels down the columns: the runs of a mask are the distances between the places where it changes. Those
are few, so they are found in the order in which the pixels lie, many at a time, and put into order afterwards.
The text is the one that `pycocotools.mask.encode` writes.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch

_BLOCK = 1 << 20  # pixels looked at together: they and their changes stay in the processor's cache
_WORD = 8  # pixels compared with nothing at once


def encode_masks(masks: torch.Tensor) -> list[dict[str, Any]]:
    """(N, H, W) masks, anything but 0 is inside -> N compressed RLEs with `counts` as text."""
    masks = torch.as_tensor(masks)
    count, height, width = masks.shape
    step = max(1, _BLOCK // max(height * width, 1))
    rles = []
    for start in range(0, count, step):  # few at a time: the booleans of other types stay small too
        block = masks[start : start + step].bool().contiguous().numpy().view(np.uint8)
        places = _changes(block)
        rles += _rles(places // (height * width), places % (height * width), len(block), height, width)
    return rles


def encode_labels(labels: np.ndarray) -> dict[int, dict[str, Any]]:
    """(H, W) integers -> the compressed RLE of each number that occurs, in their order."""
    height, width = labels.shape
    places = _changes(np.ascontiguousarray(labels)[None])
    if labels.flat[0] == 0:  # a run starts at the first pixel, whatever its label
        places = np.concatenate([[0], places])
    rows, columns = places % height, places // height
    present, which = np.unique(labels[rows, columns], return_inverse=True)
    # A run begins a mask's inside at its first pixel, and ends it at the first pixel of the next run.
    owner = np.concatenate([which, which[:-1]])
    changes = np.concatenate([places, places[1:]])
    order = np.lexsort((changes, owner))
    rles = _rles(owner[order], changes[order], len(present), height, width)
    return dict(zip(present.tolist(), rles))


def run_starts(*maps: np.ndarray) -> np.ndarray:
    """The pixels, numbered y W + x, at which any of several (H, W) maps differs from the pixel before; and pixel 0."""
    size = maps[0].size
    differs = _zeros(size)
    for labels in maps:
        flat = labels.ravel()
        differs[1:size] |= flat[1:] != flat[:-1]
    differs[: min(size, 1)] = True
    return _places(differs)


def _zeros(size: int) -> np.ndarray:
    """At least so many booleans, a whole number of words."""
    return np.zeros(-(-size // _WORD) * _WORD, dtype=bool)


def _places(flags: np.ndarray) -> np.ndarray:
    """Where flags are set. Few are: whole words are looked at first."""
    words = flags.view(np.uint64)
    filled = np.flatnonzero(words != 0)
    inside = np.flatnonzero(words[filled].view(bool))
    return filled[inside // _WORD] * _WORD + inside % _WORD


def _changes(maps: np.ndarray) -> np.ndarray:
    """Where a map differs from the pixel before, down the columns; before the first pixel there is 0.

    Args:
        maps: (N, H, W) integers, contiguous.

    Returns:
        numbers n H W + x H + y, ascending.
    """
    _, height, width = maps.shape
    differs = _zeros(maps.size)
    grid = differs[: maps.size].reshape(maps.shape)
    np.not_equal(maps[:, 1:], maps[:, :-1], out=grid[:, 1:])
    if maps.size:
        np.not_equal(maps[:, 0, 1:], maps[:, -1, :-1], out=grid[:, 0, 1:])
        np.not_equal(maps[:, 0, 0], 0, out=grid[:, 0, 0])
    image, pixel = np.divmod(_places(differs), max(height * width, 1))
    row, column = np.divmod(pixel, max(width, 1))
    return np.sort(image * (height * width) + column * height + row)


def _rles(owner: np.ndarray, changes: np.ndarray, count: int, height: int, width: int) -> list[dict[str, Any]]:
    """Write the runs between changes as COCO does.

    Args:
        owner: which of the `count` masks each change is of, ascending.
        changes: x H + y where a mask changes, ascending in each mask.
    """
    size = np.bincount(owner, minlength=count) + 1  # runs of each mask: the last one ends with the mask
    stop = np.cumsum(size)
    edges = np.empty(stop[-1] if count else 0, dtype=np.int64)
    edges[stop - 1] = height * width
    edges[np.arange(len(changes)) + owner] = changes
    first = stop - size
    runs = np.diff(edges, prepend=0)
    runs[first] = edges[first]
    # From the fourth on, the difference to the run before the last is written.
    numbers = runs.copy()
    numbers[2:] -= runs[:-2]
    for head in range(3):
        short = first[size > head] + head
        numbers[short] = runs[short]
    text, ends = _text(numbers)
    bounds = [0, *ends[stop - 1].tolist()] if count else [0]
    return [{"size": [height, width], "counts": text[a:b]} for a, b in pairwise(bounds)]


def _text(numbers: np.ndarray) -> tuple[str, np.ndarray]:
    """Five bits for each character, lowest first, and a sixth that says whether more follow.

    Returns:
        the text, and where each number's characters end in it.
    """
    characters = np.zeros((len(numbers), 7), dtype=np.uint8)  # seven hold any 32-bit number; 0 is no character
    length = np.zeros(len(numbers), dtype=np.int64)
    pending, rest = np.arange(len(numbers)), numbers
    while len(pending):  # the numbers of which something is left
        bits, rest = rest & 31, rest >> 5
        more = np.where(bits & 16, rest != -1, rest != 0)
        characters[pending, length[pending]] = bits + 32 * more + 48
        length[pending] += 1
        pending, rest = pending[more], rest[more]
    return characters[characters != 0].tobytes().decode("ascii"), np.cumsum(length)
