"""Make ADE20K's semantic labels for training: ADEChallengeData2016/annotations_detectron2.

    python datasets/prepare_ade20k_sem_seg.py [--check] [--jobs N] [--datasets FOLDER]

The released labels count from 1, with 0 for everything else. Here classes are 0 to 149, and 255 is ignored.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _runner import Item, Step, label_step, labels_within, main, need, pair, read_image, same_size

CLASSES = 150


def training_labels(item: Item) -> np.ndarray:
    """(H, W) uint8."""
    source = item.inputs["labels"]
    labels = read_image(source, "L")
    same_size(labels, source, item.inputs["image"])
    labels_within(labels, source, range(CLASSES + 1))
    return labels - np.uint8(1)  # unsigned: 0 becomes 255


def plan(root: Path) -> list[Step]:
    ade = root / "ADEChallengeData2016"
    steps = []
    for split in ("training", "validation"):
        images, labels = ade / "images" / split, ade / "annotations" / split
        need(images, labels)
        pairs, problems = pair(images, labels, (".jpg", ".png"))
        target = ade / "annotations_detectron2" / split
        items = [Item(name, {"image": i, "labels": png}, target / png.name) for name, i, png in pairs]
        steps.append(label_step(f"ADE20K semantic, {split}", items, training_labels, problems))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
