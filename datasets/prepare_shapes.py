"""Make "shapes", a synthetic data set to learn panoptic, instance and semantic segmentation from, in standard formats.

    python datasets/prepare_shapes.py [--output datasets/shapes] [--train 600] [--val 100] [--size 128] [--seed 0]
    python datasets/prepare_shapes.py --check

Things of eight classes lie on textured stuff of five. Each image comes from one map of segments, which becomes

    {train,val}/images/000001.jpg     the picture
    {train,val}/instances.json        COCO instances: polygons; RLE for what is occluded, holed or a crowd
    {train,val}/panoptic.json         COCO panoptic, with panoptic/000001.png (the id of each pixel)
    {train,val}/semantic/000001.png   the class of each pixel, 255 = ignore

The same seed gives the same files. They are written to a folder beside the output that takes its name at the end.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from _segments import extent, run_lengths
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from shapes_scene import THINGS, Array, Scene, Segment, develop, make_scene
from tqdm import tqdm

from mask2former.data.datasets.register_shapes import SHAPES_CATEGORIES

FORMAT = 1  # raise when the pictures change, so that old folders are made anew
IGNORE = 255
SPLITS = ("train", "val")


# ---- files


def uncompressed_rle(mask: Array) -> dict[str, Any]:
    """Run lengths as COCO writes them for crowds: column by column, zeros first."""
    pixels = np.concatenate([[0], mask.ravel(order="F").astype(np.int8)])
    ends = [*np.flatnonzero(np.diff(pixels)).tolist(), mask.size]
    return {"size": list(mask.shape), "counts": np.diff([0, *ends]).tolist()}


def segmentation_of(segment: Segment, mask: Array) -> Any:
    if segment.is_crowd:
        return uncompressed_rle(mask)
    is_whole = segment.polygon is not None and int(mask.sum()) == segment.area
    return [segment.polygon] if is_whole else run_lengths(mask)


def segment_ids(rng: np.random.Generator, count: int) -> list[int]:
    """Distinct ids over 0: small ones, or any colour, so also beyond 65,535."""
    if rng.random() < 0.5:
        return list(range(1, count + 1))
    ids = {int(rng.integers(65536, 256**3))} if count else set()
    while len(ids) < count:
        ids.add(int(rng.integers(1, 256**3)))
    return sorted(ids)


def describe(scene: Scene, image_id: int, ids: list[int]) -> tuple[list[dict], list[dict], Array, Array]:
    """Instances and panoptic segments for the json files; (H, W) panoptic ids and (H, W) classes for the PNG files."""
    panoptic = np.zeros(scene.owner.shape, np.int64)
    semantic = np.full(scene.owner.shape, IGNORE, np.uint8)
    instances, segments = [], []
    for position, (segment, id_) in enumerate(zip(scene.segments, ids), start=1):
        mask = scene.owner == position
        if not mask.any():
            continue
        panoptic[mask] = id_
        semantic[mask] = SHAPES_CATEGORIES.index(segment.category)
        shared = {"category_id": segment.category["id"], **extent(mask), "iscrowd": int(segment.is_crowd)}
        segments.append({"id": id_, **shared})
        if segment.category["isthing"]:
            instances.append({"image_id": image_id, **shared, "segmentation": segmentation_of(segment, mask)})
    return instances, segments, panoptic, semantic


def write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    """Make the images of one split, and all that describes them."""
    for part in ("images", "panoptic", "semantic"):
        (folder / part).mkdir(parents=True)
    images, instances, panoptic = [], [], []
    for image_id in tqdm(range(1, count + 1), desc=f"shapes {split}", unit="image", disable=None):
        rng = np.random.default_rng([seed, SPLITS.index(split), image_id])
        scene = make_scene(rng, size)
        ids = segment_ids(rng, len(scene.segments))
        its_instances, segments, panoptic_ids, classes = describe(scene, image_id, ids)

        stem = f"{image_id:06d}"
        height, width = scene.owner.shape
        Image.fromarray(develop(rng, scene.rgb)).save(
            folder / "images" / f"{stem}.jpg", quality=int(rng.integers(80, 96))
        )
        Image.fromarray(id2rgb(panoptic_ids)).save(folder / "panoptic" / f"{stem}.png")
        Image.fromarray(classes).save(folder / "semantic" / f"{stem}.png")
        images.append({"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width})
        panoptic.append({"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments})
        instances += [{"id": len(instances) + n, **anno} for n, anno in enumerate(its_instances, start=1)]

    info = {"description": "shapes: synthetic things and stuff", "version": str(FORMAT)}
    for name, annotations, categories in (
        ("instances", instances, THINGS),
        ("panoptic", panoptic, SHAPES_CATEGORIES),
    ):
        content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(content))


def make(output: Path, settings: dict[str, int]) -> bool:
    """Make the whole data set, unless it is there; returns whether anything had to be done."""
    made_with = output / "settings.json"
    if made_with.is_file() and json.loads(made_with.read_text()) == settings:
        return False
    if output.exists() and not made_with.is_file():
        raise ValueError(f"{output} exists, and this script did not make it. Move it away or choose another --output.")
    partial, old = (output.with_name(f"{output.name}.{state}") for state in ("partial", "old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    for split in SPLITS:
        write_split(partial / split, split, settings[split], settings["size"], settings["seed"])
    (partial / "settings.json").write_text(json.dumps(settings))
    if output.exists():
        output.rename(old)
    partial.rename(output)
    shutil.rmtree(old, ignore_errors=True)
    return True


# ---- checking


def check(output: Path) -> list[str]:
    """What is wrong with a data set: the three formats must tell the same about every pixel."""
    problems = []
    for split in SPLITS:
        folder = output / split
        panoptic = json.loads((folder / "panoptic.json").read_text())
        instances: dict[int, list[dict]] = {}
        for anno in json.loads((folder / "instances.json").read_text())["annotations"]:
            instances.setdefault(anno["image_id"], []).append(anno)
        for anno in tqdm(panoptic["annotations"], desc=f"check {split}", unit="image", disable=None):
            found = check_image(folder, anno, instances.get(anno["image_id"], []))
            problems += [f"{split}/{anno['file_name']}: {problem}" for problem in found]
    return problems


def check_image(folder: Path, panoptic: dict, instances: list[dict]) -> list[str]:
    ids = rgb2id(np.asarray(Image.open(folder / "panoptic" / panoptic["file_name"])))
    classes = np.asarray(Image.open(folder / "semantic" / panoptic["file_name"]))
    image = np.asarray(Image.open((folder / "images" / panoptic["file_name"]).with_suffix(".jpg")))
    if not image.shape[:2] == ids.shape == classes.shape:
        return ["image, panoptic and semantic map differ in size"]

    problems = []
    expected = np.full(ids.shape, IGNORE, np.uint8)
    position = {row["id"]: index for index, row in enumerate(SHAPES_CATEGORIES)}
    things = []
    for segment in panoptic["segments_info"]:
        mask = ids == segment["id"]
        expected[mask] = position[segment["category_id"]]
        if mask.sum() != segment["area"]:
            problems.append(f"segment {segment['id']} has {mask.sum()} pixels, the json says {segment['area']}")
        if SHAPES_CATEGORIES[position[segment["category_id"]]]["isthing"]:
            things.append((segment, mask))
    if set(np.unique(ids)) - {0} != {segment["id"] for segment in panoptic["segments_info"]}:
        problems.append("the ids in the PNG are not those in the json")
    if (expected != classes).any():
        problems.append("the semantic map is not the panoptic one's classes")
    if len(things) != len(instances):
        problems.append(f"{len(instances)} instances, {len(things)} panoptic things")
    for (segment, mask), anno in zip(things, instances):
        if segment["category_id"] != anno["category_id"] or (decode(anno["segmentation"], *ids.shape) != mask).any():
            problems.append(f"instance {anno['id']} is not segment {segment['id']}")
    return problems


def decode(segmentation: Any, height: int, width: int) -> Array:
    """The (H, W) mask of polygons, or of either kind of RLE."""
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        return mask_util.decode(segmentation).astype(bool)
    rle = mask_util.frPyObjects(segmentation, height, width)
    return mask_util.decode(mask_util.merge(rle) if isinstance(rle, list) else rle).astype(bool)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument("--output", type=Path, default=Path(root) / "shapes", help="folder to make (%(default)s)")
    parser.add_argument("--train", type=int, default=600, help="images to learn from (%(default)s)")
    parser.add_argument("--val", type=int, default=100, help="images to be scored on (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side of a square of an image's area (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="only check the files that are there")
    args = parser.parse_args(arguments)
    if min(args.train, args.val) < 1 or args.size < 32 or args.seed < 0:
        parser.error("--train and --val must be at least 1, --size at least 32, --seed at least 0")

    if args.check:
        if not (args.output / "settings.json").is_file():
            print(
                f"{args.output} is not there or not complete: run `python datasets/prepare_shapes.py`", file=sys.stderr
            )
            return 1
        problems = check(args.output)
        print("\n".join(problems) or f"{args.output}: images, instances, panoptic and semantic labels agree")
        return 1 if problems else 0

    settings = {"format": FORMAT, "train": args.train, "val": args.val, "size": args.size, "seed": args.seed}
    try:
        is_new = make(args.output, settings)
    except (OSError, ValueError) as error:
        print(f"Cannot make {args.output}: {error}", file=sys.stderr)
        return 1
    print(
        f"{args.output}: {args.train} training and {args.val} validation images"
        + ("" if is_new else " (already there)")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
