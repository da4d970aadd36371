"""Make ADE20K's instances in COCO's format: ADEChallengeData2016/ade20k_instance_{train,val}.json.

    python datasets/prepare_ade20k_ins_seg.py [--check] [--jobs N] [--datasets FOLDER]

In annotations_instance/*.png the first channel is one of the 100 classes, from 1, and the second the number of the
instance in its image; 0 is nothing. The json numbers the classes as the 150 semantic ones, from 0.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _runner import Item, Record, Step, main, need, pair, read_image, same_size
from _segments import image_record, instance, instances_step

from mask2former.data.datasets.register_ade20k import ADE20K_INSTANCE_CATEGORIES


def instance_masks(path: Path) -> list[tuple[int, np.ndarray]]:
    """Category id and (H, W) mask of each instance, by its number."""
    pixels = read_image(path, "RGB")
    classes, numbers = pixels[..., 0], pixels[..., 1]
    found = []
    for number in np.unique(numbers[numbers > 0]).tolist():
        mask = numbers == number
        present = np.unique(classes[mask]).tolist()
        if len(present) != 1 or not 1 <= present[0] <= len(ADE20K_INSTANCE_CATEGORIES):
            raise ValueError(
                f"{path}: instance {number} has the classes {present}, expected one of 1 to "
                f"{len(ADE20K_INSTANCE_CATEGORIES)}: download annotations_instance again."
            )
        found.append((ADE20K_INSTANCE_CATEGORIES[present[0] - 1]["id"], mask))
    return found


def convert(item: Item) -> Record:
    source, image = item.inputs["instances"], item.inputs["image"]
    pixels = read_image(source)
    same_size(pixels, source, image)
    return {
        "image": image_record(item, pixels.shape),
        "annotations": [instance(mask, category) for category, mask in instance_masks(source)],
    }


def plan(root: Path) -> list[Step]:
    ade = root / "ADEChallengeData2016"
    steps = []
    for split, folder in (("train", "training"), ("val", "validation")):
        images, instances = ade / "images" / folder, ade / "annotations_instance" / folder
        need(images, instances)
        pairs, problems = pair(images, instances, (".jpg", ".png"))
        items = [Item(name, {"image": image, "instances": png}) for name, image, png in pairs]
        title, target = f"ADE20K instances, {folder}", ade / f"ade20k_instance_{split}.json"
        steps.append(instances_step(title, items, convert, target, ADE20K_INSTANCE_CATEGORIES, problems))
    return steps


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
