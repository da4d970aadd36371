"""Few numbers for many: what of a large answer is recorded, and how two records are compared."""

import json
from pathlib import Path

import numpy as np

SAMPLES = 24
Arrays = dict[str, np.ndarray]


def digest(arrays: Arrays) -> Arrays:
    """Of each array some numbers, in its own dtype's sense.

    Float: samples at even distances and the largest magnitude; of a gradient, length and one projection.
    Masks (N, H, W): areas. Label and id maps: number of pixels of each value. Whatever is short: all of it.
    """
    return {name: _digest(name, array).astype(np.float32) for name, array in arrays.items()}


def _digest(name: str, array: np.ndarray) -> np.ndarray:
    flat = array.reshape(-1)
    if array.dtype == bool and array.ndim == 3:
        return array.sum((1, 2))
    if array.size <= SAMPLES:
        return flat
    if name.startswith("gradient"):
        wide = flat.astype(np.float64)
        return np.array([np.linalg.norm(wide), wide @ np.cos(np.arange(flat.size))])
    if array.dtype.kind == "i" and array.ndim == 2 and flat.min() >= 0:
        return np.bincount(flat.astype(np.int64))
    every = max(1, flat.size // SAMPLES)
    return np.concatenate([flat[::every][:SAMPLES], [np.abs(flat.astype(np.float64)).max()]])


def save(path: Path, arrays: Arrays) -> None:
    """One npz of two entries: an entry per array would be mostly headers."""
    index = json.dumps({name: len(array) for name, array in arrays.items()})
    values = np.concatenate(list(arrays.values()))
    np.savez_compressed(path, index=np.frombuffer(index.encode(), dtype=np.uint8), values=values)


def load(path: Path) -> Arrays:
    """What `save` wrote."""
    with np.load(path) as file:
        index = json.loads(file["index"].tobytes())
        values = file["values"]
    ends = np.cumsum(list(index.values()))[:-1]
    return dict(zip(index, np.split(values, ends), strict=True))


def difference(name: str, ours: np.ndarray, recorded: np.ndarray) -> float:
    """Largest difference: relative to the largest number recorded, or in pixels for areas and histograms."""
    if ours.shape != recorded.shape:
        return float("inf")
    if not ours.size:
        return 0.0
    found = float(np.abs(ours.astype(np.float64) - recorded).max())
    kind = name.split("/")[0]
    if kind in ("instance_masks", "panoptic_ids", "panoptic_segments", "instance_classes"):
        return found
    return found / max(float(np.abs(recorded).max()), 1e-6)
