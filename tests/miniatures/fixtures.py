"""Every data set in its on-disk form as downloaded, made of a handful of small scenes from one source.

A scene is a list of polygons drawn one over the other, each with a role; a data set says which class a role has, and
writes the scenes the way its makers do. What makes each format hard is in it: see the functions.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import scipy.io
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from panopticapi.utils import id2rgb
from PIL import Image, ImageDraw

from mask2former.data.datasets.register_ade20k import ADE20K_INSTANCE_CATEGORIES
from mask2former.data.datasets.register_mapillary_vistas import MAPILLARY_VISTAS_CATEGORIES

HEIGHT, WIDTH = 96, 128
THINGS = ("thing_a", "thing_b")
COLORS = {
    "stuff_a": (90, 140, 200),
    "stuff_b": (90, 120, 70),
    "thing_a": (220, 90, 60),
    "thing_b": (240, 200, 60),
    "crowd_b": (200, 170, 90),
    "void": (30, 30, 30),
    "mark": (255, 255, 255),
}


@dataclass
class Scene:
    """objects: (role, polygon) in the order drawn; owner: (H, W) position of the object seen, from 0."""

    name: int
    objects: list[tuple[str, list[tuple[int, int]]]]
    owner: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        canvas = Image.new("L", (WIDTH, HEIGHT), 0)
        for position, (_, polygon) in enumerate(self.objects):
            ImageDraw.Draw(canvas).polygon(polygon, fill=position)
        self.owner = np.array(canvas)

    def visible(self) -> Iterator[tuple[int, str, np.ndarray]]:
        """Position, role and (H, W) mask of each object that is seen; marks belong to what is under them."""
        for position, (role, _) in enumerate(self.objects):
            mask = self.owner == position
            if mask.any():
                yield position, role, mask

    def image(self) -> Image.Image:
        rng = np.random.default_rng(self.name)
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        for _, role, mask in self.visible():
            pixels[mask] = np.array(COLORS[role]) * rng.uniform(0.8, 1.1)
        return Image.fromarray((pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8))


def make_scene(name: int, with_crowd: bool = True, with_mark: bool = False) -> Scene:
    """Two kinds of stuff, three things (one hides part of another), a crowd, something of no class."""
    rng = np.random.default_rng(name)
    horizon = int(rng.integers(36, 48))
    objects: list[tuple[str, list[tuple[int, int]]]] = [
        ("stuff_a", box(0, 0, WIDTH - 1, HEIGHT - 1)),
        ("stuff_b", [(0, horizon), (WIDTH - 1, horizon - 8), (WIDTH - 1, HEIGHT - 1), (0, HEIGHT - 1)]),
        ("void", box(0, HEIGHT - 10, 30, HEIGHT - 1)),
        ("thing_a", shifted([(8, 30), (36, 26), (40, 60), (10, 64)], rng)),
        ("thing_a", shifted([(30, 40), (58, 44), (50, 74), (28, 70)], rng)),
        ("thing_b", shifted([(76, 22), (96, 16), (104, 44), (84, 56)], rng)),
    ]
    objects.append(("crowd_b" if with_crowd else "thing_b", shifted([(72, 66), (118, 62), (120, 84), (74, 86)], rng)))
    if with_mark:
        objects.append(("mark", shifted([(84, 34), (94, 34), (94, 38), (84, 38)], rng)))
    return Scene(name, objects)


def box(left: int, top: int, right: int, bottom: int) -> list[tuple[int, int]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def shifted(polygon: list[tuple[int, int]], rng: np.random.Generator) -> list[tuple[int, int]]:
    dx, dy = rng.integers(-4, 5, 2).tolist()
    return [(x + dx, y + dy) for x, y in polygon]


def scenes(split: str, count: int, **options: bool) -> list[Scene]:
    return [make_scene(100 * (split != "train") + number, **options) for number in range(1, count + 1)]


def save(pixels: np.ndarray | Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path)


def extent(mask: np.ndarray) -> dict:
    y, x = np.nonzero(mask)
    box_ = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
    return {"area": int(mask.sum()), "bbox": box_}


# ---- data sets


def coco(root: Path, count: int) -> None:
    """Gaps in ids; polygons, compressed RLE for what is hidden, uncompressed RLE for crowds; ids over 65,535."""
    ids = {"stuff_a": 187, "stuff_b": 193, "thing_a": 1, "thing_b": 90, "crowd_b": 90}  # sky, grass, person, toothbrush
    for split in ("train", "val"):
        images, panoptic, instances = [], [], []
        for scene in scenes(split, count):
            stem = f"{scene.name:012d}"
            save(scene.image(), root / f"coco/{split}2017/{stem}.jpg")
            images.append({"id": scene.name, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
            id_map, segments = np.zeros((HEIGHT, WIDTH), np.int64), []
            for position, role, mask in scene.visible():
                if role == "void":
                    continue
                segment = {"category_id": ids[role], "iscrowd": int(role == "crowd_b"), **extent(mask)}
                id_ = 65536 * (position + 1) + 7
                id_map[mask] = id_
                segments.append({"id": id_, **segment})
                if "stuff" not in role:
                    segmentation = coco_segmentation(scene, position, mask)
                    number = len(instances) + 1
                    instances.append({"id": number, "image_id": scene.name, "segmentation": segmentation, **segment})
            save(id2rgb(id_map), root / f"coco/panoptic_{split}2017/{stem}.png")
            panoptic.append({"image_id": scene.name, "file_name": f"{stem}.png", "segments_info": segments})
        folder = root / "coco/annotations"
        folder.mkdir(exist_ok=True)
        things = [row for row in COCO_CATEGORIES if row["isthing"]]
        for name, annotations, rows in (("panoptic", panoptic, COCO_CATEGORIES), ("instances", instances, things)):
            content = {"images": images, "annotations": annotations, "categories": rows}
            (folder / f"{name}_{split}2017.json").write_text(json.dumps(content))


def coco_segmentation(scene: Scene, position: int, mask: np.ndarray) -> list | dict:
    role, polygon = scene.objects[position]
    if role == "crowd_b":
        runs = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel(order="F").astype(int)])))
        return {"size": [HEIGHT, WIDTH], "counts": np.diff([0, *runs, mask.size]).tolist()}
    alone = Scene(0, [("void", box(0, 0, WIDTH, HEIGHT)), (role, polygon)]).owner == 1
    if (alone == mask).all():
        return [[coordinate for point in polygon for coordinate in point]]
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def ade20k(root: Path, count: int) -> None:
    """Labels from 1; two-channel instances in another numbering (1..100); two stuff classes of one colour."""
    ids = {"stuff_a": 48, "stuff_b": 6, "thing_a": 7, "thing_b": 149}  # skyscraper, road, bed, flag
    number_of = {row["id"]: number for number, row in enumerate(ADE20K_INSTANCE_CATEGORIES, start=1)}
    for split, folder in (("train", "training"), ("val", "validation")):
        for scene in scenes(split, count, with_crowd=False):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            instances = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for position, role, mask in scene.visible():
                if role == "void":
                    continue
                labels[mask] = ids[role] + 1
                if role in THINGS:
                    instances[mask] = (number_of[ids[role]], position, 0)
            name = f"{folder}/ADE_{split}_{scene.name:08d}"
            ade = root / "ADEChallengeData2016"
            save(scene.image(), ade / f"images/{name}.jpg")
            save(labels, ade / f"annotations/{name}.png")
            save(instances, ade / f"annotations_instance/{name}.png")


def ade20k_full(root: Path, count: int) -> None:
    """Numbers over 255 in two channels, one of them of no class; folders of scenes; classes over 255 once prepared."""
    numbers = {"stuff_a": 2978, "stuff_b": 2131, "thing_a": 3148, "thing_b": 165, "void": 1}  # wall, road, ..., bed
    for split, folder in (("train", "training"), ("val", "validation")):
        for scene in scenes(split, count, with_crowd=False):
            pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            for position, role, mask in scene.visible():
                pixels[mask] = (numbers[role] // 256 * 10, numbers[role] % 256, position)
            stem = root / f"ADE20K_2021_17_01/images/ADE/{folder}/urban/street/ADE_{split}_{scene.name:08d}"
            save(scene.image(), stem.with_suffix(".jpg"))
            save(pixels, stem.with_name(f"{stem.name}_seg.png"))


def cityscapes(root: Path, count: int) -> None:
    """Polygons, a group, an ignored label, a licence plate (which is no label); PNGs drawn by cityscapesscripts."""
    from cityscapesscripts.helpers.annotation import Annotation
    from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
    from cityscapesscripts.preparation.json2labelImg import createLabelImage

    names = {
        "stuff_a": "sky",
        "stuff_b": "road",
        "thing_a": "person",
        "thing_b": "car",
        "crowd_b": "cargroup",
        "void": "ego vehicle",
        "mark": "license plate",
    }
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for scene in scenes(split, count, with_mark=True):
            stem = f"{split}/{city}/{city}_{scene.name:06d}_000019"
            save(scene.image(), root / f"cityscapes/leftImg8bit/{stem}_leftImg8bit.png")
            start = root / f"cityscapes/gtFine/{stem}_gtFine"
            start.parent.mkdir(parents=True, exist_ok=True)
            objects = [{"label": names[role], "polygon": polygon} for role, polygon in scene.objects]
            content = json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
            start.with_name(f"{start.name}_polygons.json").write_text(content)
            annotation = Annotation()
            annotation.fromJsonText(content)
            labels, instances = createLabelImage(annotation, "ids"), createInstanceImage(annotation, "ids")
            save(labels, Path(f"{start}_labelIds.png"))
            save(np.array(instances).astype(np.uint16), Path(f"{start}_instanceIds.png"))


def mapillary_vistas(root: Path, count: int) -> None:
    """8-bit palette labels with 65 for unlabelled, RGB panoptic whose json counts from 1, ids that are text."""
    by_name = {row["name"]: row["id"] for row in MAPILLARY_VISTAS_CATEGORIES}
    names = {"stuff_a": "Sky", "stuff_b": "Road", "thing_a": "Person", "thing_b": "Car", "void": "Unlabeled"}
    ids = {role: by_name[name] for role, name in names.items()}
    palette = [channel for row in MAPILLARY_VISTAS_CATEGORIES for channel in row["color"]]
    for split, folder in (("train", "training"), ("val", "validation")):
        images, annotations = [], []
        base = root / "mapillary_vistas" / folder
        for scene in scenes(split, count, with_crowd=False):
            stem = f"{split}_{scene.name:03d}_AbCdEfGhIjKlMn"
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            id_map, segments = np.zeros((HEIGHT, WIDTH), np.int64), []
            for position, role, mask in scene.visible():
                labels[mask] = ids[role]
                if role != "void":
                    id_ = 256 * 256 * position + ids[role] + 1
                    id_map[mask] = id_
                    segments.append({"id": id_, "category_id": ids[role] + 1, "iscrowd": 0, **extent(mask)})
            image = Image.fromarray(labels)
            image.putpalette(palette)
            save(image, base / f"labels/{stem}.png")
            save(scene.image(), base / f"images/{stem}.jpg")
            save(id2rgb(id_map), base / f"panoptic/{stem}.png")
            images.append({"id": stem, "file_name": f"{stem}.jpg", "height": HEIGHT, "width": WIDTH})
            annotations.append({"image_id": stem, "file_name": f"{stem}.png", "segments_info": segments})
        categories = [{**row, "id": row["id"] + 1} for row in MAPILLARY_VISTAS_CATEGORIES[:65]]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (base / "panoptic/panoptic_2018.json").write_text(json.dumps(content))


def coco_stuff_10k(root: Path, count: int) -> None:
    """Matlab files, ids with gaps up to 182, 0 for unlabelled; lists of names."""
    ids = {"stuff_a": 157, "stuff_b": 124, "thing_a": 1, "thing_b": 90, "void": 0}  # sky, grass, person, toothbrush
    for split in ("train", "test"):
        names = []
        folder = root / "coco/coco_stuff_10k"
        for scene in scenes(split, count, with_crowd=False):
            names.append(f"COCO_train2014_{scene.name:012d}")
            labels = np.zeros((HEIGHT, WIDTH), np.uint16)
            for _, role, mask in scene.visible():
                labels[mask] = ids[role]
            save(scene.image(), folder / f"images/{names[-1]}.jpg")
            (folder / "annotations").mkdir(exist_ok=True)
            scipy.io.savemat(folder / f"annotations/{names[-1]}.mat", {"S": labels})
        (folder / "imageLists").mkdir(exist_ok=True)
        (folder / f"imageLists/{split}.txt").write_text("\n".join(names) + "\n")


BUILDERS: dict[str, Callable[[Path, int], None]] = {
    "COCO": coco,
    "ADE20K": ade20k,
    "ADE20K full": ade20k_full,
    "Cityscapes": cityscapes,
    "Mapillary Vistas": mapillary_vistas,
    "COCO-Stuff 10k": coco_stuff_10k,
}
SCRIPTS = {
    "COCO": ["prepare_coco_semantic_annos_from_panoptic_annos"],
    "ADE20K": ["prepare_ade20k_sem_seg", "prepare_ade20k_ins_seg", "prepare_ade20k_pan_seg"],
    "ADE20K full": ["prepare_ade20k_full_sem_seg"],
    "Cityscapes": ["prepare_cityscapes"],
    "Mapillary Vistas": ["prepare_mapillary_vistas"],
    "COCO-Stuff 10k": ["prepare_coco_stuff_10k"],
}
