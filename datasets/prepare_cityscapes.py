"""Make what Cityscapes' gtFine does not come with: *_labelTrainIds.png and cityscapes_panoptic_{train,val}[.json].

    python datasets/prepare_cityscapes.py [--check] [--jobs N] [--datasets FOLDER]

Needs `pip install cityscapesscripts`, whose table of labels and whose drawing of polygons it uses.
"""

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from _runner import Item, Record, Step, equal_labels, label_step, labels_within, main, need, read_image, same_size
from _segments import check_panoptic, extent, panoptic_json, panoptic_records, write_panoptic
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import id2label, labels
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from panopticapi.utils import rgb2id

SCORED = {label.id: label for label in labels if not label.ignoreInEval}
CATEGORIES = [
    {"id": label.id, "name": label.name, "color": list(label.color), "supercategory": label.category,
     "isthing": int(label.hasInstances)}
    for label in SCORED.values()
]  # fmt: skip
INSTANCE_FACTOR = 1000  # an instance is numbered label id * 1000 + count


def train_ids(item: Item) -> np.ndarray:
    """(H, W) uint8, drawn from the polygons by cityscapesscripts."""
    source = item.inputs["polygons"]
    try:
        content = json.loads(source.read_text())
    except ValueError as error:
        raise ValueError(f"{source} is not valid json ({error}): download gtFine again.") from error
    known = {label.name for label in labels}
    for item_ in content["objects"]:
        if item_["label"] not in known and item_["label"].removesuffix("group") not in known:
            raise ValueError(f"{source} has the label {item_['label']!r}, which Cityscapes does not know.")
    annotation = Annotation()
    annotation.fromJsonText(source.read_text())
    drawn = np.array(createLabelImage(annotation, "trainIds"))
    same_size(drawn, source, item.inputs["image"])
    return drawn


def segments_of(item: Item) -> tuple[np.ndarray, list[dict]]:
    """(H, W) ids, 0 where nothing is scored, and the segments; a thing that is not one instance is a crowd."""
    source = item.inputs["instances"]
    ids = read_image(source).astype(np.int64)
    same_size(ids, source, item.inputs["image"])
    label_of = {id_: id_ if id_ < INSTANCE_FACTOR else id_ // INSTANCE_FACTOR for id_ in np.unique(ids).tolist()}
    labels_within(np.array(list(label_of.values())), source, sorted(id2label))
    segments = []
    for id_, label in label_of.items():
        mask = ids == id_
        if label not in SCORED:
            ids[mask] = 0
            continue
        is_crowd = int(SCORED[label].hasInstances and id_ < INSTANCE_FACTOR)
        segments.append({"id": id_, "category_id": label, **extent(mask), "iscrowd": is_crowd})
    return ids, segments


def convert_panoptic(item: Item) -> Record:
    ids, segments = segments_of(item)
    return write_panoptic(item, ids, segments, f"{item.name}_gtFine_leftImg8bit.png")


def check_panoptic_item(item: Item, record: Record | None) -> None:
    ids, segments = segments_of(item)
    found = rgb2id(read_image(item.output, "RGB"))
    equal_labels(found.astype(ids.dtype), ids, item.output)
    listed = record["annotation"]["segments_info"]
    check_panoptic(ids, listed, item.output, SCORED)
    if {s["id"]: s["category_id"] for s in listed} != {s["id"]: s["category_id"] for s in segments}:
        raise ValueError(f"{item.output}: the json has other classes than {item.inputs['instances']}. Delete it and "
                         "run this script again.")  # fmt: skip


def plan(root: Path) -> list[Step]:
    city = root / "cityscapes"
    need(city / "leftImg8bit", city / "gtFine")
    steps = []
    for split in ("train", "val", "test"):
        found = gather(city, split)
        if split == "test" and not found.names:
            continue  # downloads without the images to be submitted are common
        drawn = [
            Item(name, {"image": image, "polygons": Path(f"{start}_gtFine_polygons.json")},
                 Path(f"{start}_gtFine_labelTrainIds.png"))
            for name, image, start in found.names
        ]  # fmt: skip
        steps.append(label_step(f"Cityscapes labels, {split}", drawn, train_ids, found.problems))
        if split == "test":
            continue
        target = city / "gtFine" / f"cityscapes_panoptic_{split}"
        panoptic = [
            Item(name, {"image": image, "instances": Path(f"{start}_gtFine_instanceIds.png")},
                 target / f"{name}_gtFine_panoptic.png")
            for name, image, start in found.names
        ]  # fmt: skip
        assemble = partial(panoptic_json, categories=CATEGORIES)
        json_file = target.with_suffix(".json")
        steps.append(
            Step(f"Cityscapes panoptic, {split}", panoptic, convert_panoptic, check_panoptic_item, json_file, assemble,
                 panoptic_records)
        )  # fmt: skip
    return steps


def gather(city: Path, split: str) -> SimpleNamespace:
    """Names, images and what their annotations start with; problems for images without annotations."""
    names, problems = [], []
    for image in sorted((city / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        name = image.name.removesuffix("_leftImg8bit.png")
        start = city / "gtFine" / split / image.parent.name / name
        needed = [Path(f"{start}_gtFine_{kind}") for kind in ("polygons.json", "instanceIds.png", "labelIds.png")]
        missing = [path for path in needed if not path.exists()]
        if missing:
            problems.append(f"{image} has no {missing[0]}: download gtFine again.")
        else:
            names.append((name, image, start))
    if not names and split != "test":
        problems.append(f"No */*_leftImg8bit.png in {city / 'leftImg8bit' / split}.")
    return SimpleNamespace(names=names, problems=problems)


def run(arguments: Sequence[str] | None = None) -> int:
    return main(__doc__, plan, arguments)


if __name__ == "__main__":
    sys.exit(run())
