"""The large-scale-jitter mapper, against two plain ones.

python benchmarks/mapper.py

"published" is the published order: annotations are transformed one by one, and each is drawn on a whole window.
"upscaled" draws on a canvas as large as the resized image, and cuts the window out of every mask.
"""

import copy
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from common import CONFIGS, ROOT, alternate, arguments, configuration, image, report
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, polygons_to_bitmask

from mask2former.data.mappers import COCOInstanceNewBaselineDatasetMapper

IMAGES = 20


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    mapper = COCOInstanceNewBaselineDatasetMapper(configuration(ROOT / "configs" / CONFIGS["r50"]), True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.jpg"
        cv2.imwrite(str(file), image(480, 640).permute(1, 2, 0).numpy())
        sample = {"file_name": str(file), "height": 480, "width": 640, "annotations": annotations(20)}

        def run(function: Any) -> list[Any]:
            np.random.seed(0)
            return [function(sample) for _ in range(IMAGES)]

        sides = {
            "published": lambda: run(lambda x: published(mapper.augmentations, x)),
            "upscaled": lambda: run(lambda x: upscaled(mapper.augmentations, x)),
            "ours": lambda: run(mapper),
        }
        expected = sides["published"]()
        agreement = {name: agree(expected, sides[name]()) for name in ("upscaled", "ours")}
        measured = alternate(sides, args.repeats)
    rows = [
        {
            "side": name,
            "images/s and core": IMAGES / times["cpu"],
            "of published": measured["published"]["cpu"] / times["cpu"],
            "of upscaled": measured["upscaled"]["cpu"] / times["cpu"],
            "against published": agreement.get(name, ""),
        }
        for name, times in measured.items()
    ]
    report(f"640x480, 20 polygons, {IMAGES} states of the random numbers", rows, args.json)


def agree(expected: list[dict[str, Any]], examples: list[dict[str, Any]]) -> str:
    """What differs; targets without a pixel, which the published mapper keeps, are left out."""
    images = pixels = total = 0
    for theirs, ours in zip(expected, examples, strict=True):
        kept = theirs["instances"][theirs["instances"].gt_masks.flatten(1).any(1).bool()]
        assert kept.gt_classes.equal(ours["instances"].gt_classes), "not the same targets"
        images += int(not theirs["image"].equal(ours["image"]))
        pixels += int((kept.gt_masks != ours["instances"].gt_masks).sum())
        total += int(kept.gt_masks.sum())
    return f"{images} images, {pixels} of {total} pixels of masks differ"


def annotations(count: int) -> list[dict[str, Any]]:
    """Stars of 40 corners."""
    rng = np.random.default_rng(0)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    result = []
    for n in range(count):
        radius = rng.uniform(15, 90) * rng.uniform(0.7, 1.2, 40)
        x = np.clip(rng.uniform(60, 580) + radius * np.cos(angle), 0, 640)
        y = np.clip(rng.uniform(60, 420) + radius * np.sin(angle), 0, 480)
        polygon = np.stack([x, y], 1).ravel().tolist()
        result.append({"bbox": [0, 0, 9, 9], "bbox_mode": 1, "category_id": n, "segmentation": [polygon], "iscrowd": 0})
    return result


def published(augmentations: list[Any], sample: dict[str, Any]) -> dict[str, Any]:
    sample = copy.deepcopy(sample)
    picture, transforms = read(augmentations, sample)
    size = picture.shape[:2]
    # This mapper has always made a mask of the padding, too.
    sample["padding_mask"] = torch.from_numpy(
        transforms.apply_segmentation(np.zeros((sample["height"], sample["width"]), np.uint8)) != 0
    )
    moved = [utils.transform_instance_annotations(a, transforms, size) for a in sample.pop("annotations")]
    instances = utils.annotations_to_instances([a for a in moved if not a["iscrowd"]], size)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances = utils.filter_empty_instances(instances)
    masks = [torch.from_numpy(polygons_to_bitmask(polygons, *size).astype(np.uint8)) for polygons in instances.gt_masks]
    instances.gt_masks = torch.stack(masks)
    return sample | {"image": planes(picture), "instances": instances}


def upscaled(augmentations: list[Any], sample: dict[str, Any]) -> dict[str, Any]:
    sample = copy.deepcopy(sample)
    picture, transforms = read(augmentations, sample)
    steps = transforms.transforms
    resize = next(i for i, step in enumerate(steps) if hasattr(step, "new_h"))
    height, width = steps[resize].new_h, steps[resize].new_w
    masks = []
    for annotation in sample["annotations"]:
        polygons = [np.asarray(polygon).reshape(-1, 2) for polygon in annotation["segmentation"]]
        for step in steps[: resize + 1]:
            polygons = step.apply_polygons(polygons)
        mask = polygons_to_bitmask([polygon.reshape(-1) for polygon in polygons], height, width).astype(np.uint8)
        for step in steps[resize + 1 :]:
            mask = step.apply_segmentation(mask)
        masks.append(torch.from_numpy(mask == 1))
    instances = Instances(picture.shape[:2])
    instances.gt_masks = torch.stack(masks).to(torch.uint8)
    instances.gt_classes = torch.tensor([annotation["category_id"] for annotation in sample.pop("annotations")])
    instances = instances[instances.gt_masks.flatten(1).any(1).bool()]
    instances.gt_boxes = BitMasks(instances.gt_masks).get_bounding_boxes()
    return sample | {"image": planes(picture), "instances": instances}


def read(augmentations: list[Any], sample: dict[str, Any]) -> tuple[np.ndarray, T.TransformList]:
    picture = utils.read_image(sample["file_name"], "RGB")
    utils.check_image_size(sample, picture)
    return T.apply_transform_gens(augmentations, picture)


def planes(picture: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(picture.transpose(2, 0, 1)))


if __name__ == "__main__":
    main()
