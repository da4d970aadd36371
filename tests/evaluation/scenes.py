"""Small synthetic street scenes, written in the forms of Cityscapes and COCO, and wrong predictions of them.

Classes are Cityscapes' 19 training ids, of which 11 to 18 are things: scattered ids, as in any panoptic model.
"""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from cityscapesscripts.helpers.labels import trainId2label
from detectron2.data import DatasetCatalog, MetadataCatalog
from panopticapi.utils import id2rgb
from PIL import Image

HEIGHT, WIDTH = 96, 128
CLASSES = range(19)
THINGS = range(11, 19)
NAMES = [trainId2label[c].name for c in CLASSES]
LABEL_IDS = [trainId2label[c].id for c in CLASSES]


@dataclass
class Segment:
    """A region of one class, true or predicted."""

    label: int
    mask: np.ndarray  # (H, W) bool
    score: float = 1.0
    crowd: bool = False


@dataclass
class Scene:
    """An image's true segments, which do not overlap; where there is none, it is void."""

    number: int
    segments: list[Segment]

    @property
    def name(self):
        return f"town_{self.number:06d}_000019"

    @property
    def file_name(self):
        return f"leftImg8bit/town/{self.name}_leftImg8bit.png"

    @property
    def void(self):
        return ~np.any([s.mask for s in self.segments], axis=0)


def make_scene(number):
    """Stuff in stripes, one of them void; ellipses as things, two of them crowds."""
    rng = np.random.default_rng(number)
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    points = rng.random((6, 2)) * (HEIGHT, WIDTH)
    region = ((ys[..., None] - points[:, 0]) ** 2 + (xs[..., None] - points[:, 1]) ** 2).argmin(-1)
    stuff = rng.choice(11, 6, replace=False)
    layers = [Segment(int(label), region == i) for i, label in enumerate(stuff) if i]  # region 0 is void
    for i in range(9):
        centre, radius = rng.random(2) * (HEIGHT, WIDTH), rng.integers(4, 20, 2)
        inside = ((ys - centre[0]) / radius[0]) ** 2 + ((xs - centre[1]) / radius[1]) ** 2 <= 1
        label = 13 if i in (0, 1) else int(rng.choice([11, 13, 13, 15, 18]))  # a crowd of cars, and single cars
        layers.append(Segment(label, inside, crowd=i == 0))
    owner = np.full((HEIGHT, WIDTH), -1)
    for i, layer in enumerate(layers):
        owner[layer.mask] = i
    seen = [replace(layer, mask=owner == i) for i, layer in enumerate(layers)]
    return Scene(number, [segment for segment in seen if segment.mask.any()])


def exact(scene):
    """The ground truth itself."""
    rng = np.random.default_rng(1000 + scene.number)
    return [replace(s, score=float(rng.random())) for s in scene.segments]


def without_crowd(scene):
    return [s for s in exact(scene) if not s.crowd]


def shifted(scene):
    return [replace(s, mask=np.roll(s.mask, (1, 2), (0, 1))) for s in without_crowd(scene)]


def merged(scene):
    """Things two by two, the second swallowed by the first."""
    stuff, things = split(without_crowd(scene))
    pairs = zip(things[::2], things[1::2])
    return stuff + [replace(a, mask=a.mask | b.mask) for a, b in pairs]


def dropped(scene):
    return [s for i, s in enumerate(without_crowd(scene)) if i % 3]


def relabelled(scene):
    stuff, things = split(without_crowd(scene))
    stuff = [replace(s, label=(s.label + i % 2) % 11) for i, s in enumerate(stuff)]
    return stuff + [replace(s, label=11 + (s.label - 11 + i % 2) % 8) for i, s in enumerate(things)]


def duplicated(scene):
    """Every thing once more, a little beside itself; half of the copies with the higher score."""
    segments = without_crowd(scene)
    things = split(segments)[1]
    copies = [
        replace(s, mask=np.roll(s.mask, 1, 1), score=s.score * (0.5 if i % 2 else 1.5)) for i, s in enumerate(things)
    ]
    return segments + copies


def on_crowd(scene):
    """Two pieces of the crowd as single objects of its class, one of another class."""
    (crowd,) = [s for s in scene.segments if s.crowd] or [None]
    if crowd is None:
        return without_crowd(scene)
    pieces = np.array_split(np.flatnonzero(crowd.mask), 3)
    extra = []
    for piece, label in zip(pieces, (crowd.label, crowd.label, 11)):
        mask = np.zeros(HEIGHT * WIDTH, bool)
        mask[piece] = True
        extra.append(Segment(label, mask.reshape(HEIGHT, WIDTH), score=0.7))
    return without_crowd(scene) + extra


def on_void(scene):
    """Objects on pixels without ground truth: one inside, one half outside."""
    inside = np.roll(scene.void, 40, 1)
    return [
        *without_crowd(scene),
        Segment(13, scene.void, score=0.8),
        Segment(15, inside | (scene.void & (np.arange(WIDTH) % 2 == 0)), score=0.6),
    ]


PERTURBATIONS = {f.__name__: f for f in (exact, shifted, merged, dropped, relabelled, duplicated, on_crowd, on_void)}


def split(segments):
    """-> stuff, things"""
    return [s for s in segments if s.label not in THINGS], [s for s in segments if s.label in THINGS]


def paint(segments):
    """-> (H, W) 0 or the number of the last segment there, from 1."""
    owner = np.zeros((HEIGHT, WIDTH), dtype=np.int64)
    for i, segment in enumerate(segments, start=1):
        owner[segment.mask] = i
    return owner


def class_map(segments, elsewhere):
    """-> (H, W) classes."""
    return np.array([elsewhere, *(s.label for s in segments)])[paint(segments)]


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")}


def write(scenes, folder):
    """Everything that the evaluators read, in the data sets' own forms, and register it. -> the data set's name."""
    for part in ("gt/town", "panoptic", "semantic"):
        (Path(folder) / part).mkdir(parents=True)
    annotations, panoptic = [], []
    for scene in scenes:
        labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)  # 0 is "unlabeled"
        instances = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
        ids, infos = np.zeros((HEIGHT, WIDTH), dtype=np.int64), []
        for k, segment in enumerate(scene.segments):
            label, is_thing = LABEL_IDS[segment.label], segment.label in THINGS
            labels[segment.mask] = label
            instances[segment.mask] = 1000 * label + k if is_thing and not segment.crowd else label
            ids[segment.mask] = 70_000 * (k + 1)
            area, crowd = int(segment.mask.sum()), int(segment.crowd)
            infos.append(
                {"id": 70_000 * (k + 1), "category_id": label, "area": area, "iscrowd": crowd, "bbox": [0] * 4}
            )
            if is_thing:
                entry = {"id": len(annotations) + 1, "image_id": scene.number, "category_id": label, "area": area}
                box = mask_util.toBbox(rle(segment.mask)).tolist()
                annotations.append({**entry, "iscrowd": crowd, "bbox": box, "segmentation": rle(segment.mask)})
        base = Path(folder) / "gt" / "town" / f"{scene.name}_gtFine"
        Image.fromarray(labels).save(f"{base}_labelIds.png")
        Image.fromarray(instances).save(f"{base}_instanceIds.png")
        Image.fromarray(class_map(scene.segments, 255).astype(np.uint8)).save(f"{folder}/semantic/{scene.name}.png")
        Image.fromarray(id2rgb(ids)).save(f"{folder}/panoptic/{scene.name}.png")
        panoptic.append({"image_id": scene.number, "file_name": f"{scene.name}.png", "segments_info": infos})
    images = [{"id": s.number, "file_name": s.file_name, "height": HEIGHT, "width": WIDTH} for s in scenes]
    rows = [{"id": LABEL_IDS[c], "name": NAMES[c], "isthing": int(c in THINGS), "color": [c, c, c]} for c in CLASSES]
    write_json(f"{folder}/panoptic.json", {"images": images, "annotations": panoptic, "categories": rows})
    things = [row for row in rows if row["isthing"]]
    write_json(f"{folder}/instances.json", {"images": images, "annotations": annotations, "categories": things})
    return register(scenes, str(folder))


def write_json(path, content):
    Path(path).write_text(json.dumps(content))


def register(scenes, folder):
    records = [
        {"file_name": s.file_name, "image_id": s.number, "sem_seg_file_name": f"{folder}/semantic/{s.name}.png"}
        for s in scenes
    ]
    common = {"json_file": f"{folder}/instances.json", "gt_dir": f"{folder}/gt", "ignore_label": 255}
    thing_ids = {LABEL_IDS[c]: c for c in THINGS}
    DatasetCatalog.register(folder, partial(list, records))
    MetadataCatalog.get(folder).set(
        **common,
        stuff_classes=NAMES,
        thing_classes=NAMES,
        panoptic_json=f"{folder}/panoptic.json",
        panoptic_root=f"{folder}/panoptic",
        thing_dataset_id_to_contiguous_id=thing_ids,
        stuff_dataset_id_to_contiguous_id={LABEL_IDS[c]: c for c in CLASSES if c not in THINGS},
    )
    # The things alone, counted from 0: what COCOEvaluator wants.
    MetadataCatalog.get(f"{folder}_things").set(
        json_file=common["json_file"],
        thing_classes=[NAMES[c] for c in THINGS],
        thing_dataset_id_to_contiguous_id={dataset: c - THINGS[0] for dataset, c in thing_ids.items()},
    )
    DatasetCatalog.register(f"{folder}_semantic", partial(list, records))
    MetadataCatalog.get(f"{folder}_semantic").set(stuff_classes=NAMES, ignore_label=255)
    return folder
