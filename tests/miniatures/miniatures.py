"""Every data set and task, end to end, with the real config: what `run.py` prints as a table and pytest asserts.

The data is small and synthetic (`fixtures.py`), the overrides only shrink the work.
"""

import contextlib
import importlib
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.datasets import builtin, load_coco_json
from detectron2.evaluation import inference_on_dataset
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.structures import BitMasks, Instances
from detectron2.utils.visualizer import Visualizer
from fixtures import BUILDERS, SCRIPTS
from panopticapi.utils import rgb2id
from PIL import Image

from mask2former import add_maskformer2_config
from mask2former.data.datasets import (
    _common,
    register_ade20k,
    register_cityscapes,
    register_coco_panoptic_annos_semseg,
    register_coco_stuff_10k,
    register_mapillary_vistas,
)
from mask2former.trainer import Trainer

ROOT = Path(__file__).parents[2]
IMAGES = 2


@dataclass(frozen=True)
class Row:
    """One data set and task; `overrides` for data sets that no published config is for."""

    dataset: str
    task: str
    config: str
    overrides: tuple[Any, ...] = ()


def _use(train: str, test: str, classes: int) -> tuple[Any, ...]:
    return ("DATASETS.TRAIN", (train,), "DATASETS.TEST", (test,), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", classes)


ROWS = [
    Row("COCO", "instance", "coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"),
    Row("COCO", "panoptic", "coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml"),
    Row("ADE20K", "semantic", "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml"),
    Row("ADE20K", "instance", "ade20k/instance-segmentation/maskformer2_R50_bs16_160k.yaml"),
    Row("ADE20K", "panoptic", "ade20k/panoptic-segmentation/maskformer2_R50_bs16_160k.yaml"),
    Row(
        "ADE20K full",
        "semantic",
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
        (*_use("ade20k_full_sem_seg_train", "ade20k_full_sem_seg_val", 847), "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", 65535),
    ),
    Row("Cityscapes", "instance", "cityscapes/instance-segmentation/maskformer2_R50_bs16_90k.yaml"),
    Row("Cityscapes", "semantic", "cityscapes/semantic-segmentation/maskformer2_R50_bs16_90k.yaml"),
    Row("Cityscapes", "panoptic", "cityscapes/panoptic-segmentation/maskformer2_R50_bs16_90k.yaml"),
    Row("Mapillary Vistas", "semantic", "mapillary-vistas/semantic-segmentation/maskformer2_R50_bs16_300k.yaml"),
    Row("Mapillary Vistas", "panoptic", "mapillary-vistas/panoptic-segmentation/maskformer_R50_bs16_300k.yaml"),
    Row(
        "COCO-Stuff 10k",
        "semantic",
        "ade20k/semantic-segmentation/maskformer2_R50_bs16_160k.yaml",
        _use("coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg", 171),
    ),
]

# Fewer and smaller layers, images, points; one process loads; nothing is downloaded.
SMALLER: dict[str, Any] = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 3,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 12,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 128,
    "INPUT.MIN_SIZE_TRAIN": (64, 96),
    "INPUT.MAX_SIZE_TRAIN": 192,
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.MAX_SIZE_TEST": 128,
    "INPUT.IMAGE_SIZE": 96,
    "INPUT.CROP.SIZE": (64, 64),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
    "SOLVER.STEPS": (),
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.DETECTIONS_PER_IMAGE": 20,
    "SEED": 1,
}

# The scores that ground truth as prediction must bring to 100. (Box AP is of no interest: see the README.)
PERFECT = {
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "IoU", "IoU_sup"),
    "panoptic_seg": ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"),
    "segm": ("AP", "AP50"),
}


# ---- the data


@contextlib.contextmanager
def registered_at(root: Path) -> Iterator[None]:
    """All names stand for what is in another folder; afterwards for the usual one again."""

    def register(folder: str) -> None:
        for name in DatasetCatalog.list():
            if any(part in name for part in ("coco", "ade20k", "cityscapes", "mapillary")):
                DatasetCatalog.remove(name)
                MetadataCatalog.remove(name)
        builtin.register_all_coco(folder)
        register_ade20k.register_all_ade20k(folder)
        register_cityscapes.register_all_cityscapes(folder)
        register_coco_panoptic_annos_semseg.register_all_coco_panoptic_annos_sem_seg(folder)
        register_coco_stuff_10k.register_all_coco_stuff_10k(folder)
        register_mapillary_vistas.register_all_mapillary_vistas(folder)

    register(str(root))
    try:
        yield
    finally:
        register(_common.datasets_root())


def prepare(dataset: str, root: Path) -> None:
    """Write the data set as it is downloaded, run its scripts, and let them check what they made."""
    BUILDERS[dataset](root, IMAGES)
    for script in map(script_module, SCRIPTS[dataset]):
        for more in ([], ["--check"]):
            if script.run(["--datasets", str(root), "--jobs", "1", *more]):
                raise RuntimeError(f"{script.__name__} {more} found problems")


def script_module(name: str) -> Any:
    """A script of datasets/ as a module."""
    folder = str(ROOT / "datasets")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)


# ---- what is done with it


def small_config(row: Row, output: Path) -> CfgNode:
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs" / row.config))
    changes = {**SMALLER, "OUTPUT_DIR": str(output)}
    if cfg.INPUT.SIZE_DIVISIBILITY > 0:
        changes["INPUT.SIZE_DIVISIBILITY"] = 64
    cfg.merge_from_list([*(part for change in changes.items() for part in change), *row.overrides])
    cfg.freeze()
    output.mkdir(parents=True, exist_ok=True)
    return cfg


def train(cfg: CfgNode) -> Path:
    """Two iterations; returns the checkpoint."""
    trainer = Trainer(cfg)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.resume_or_load(resume=False)
    # The evaluation after training is a cell of its own.
    trainer._hooks = [hook for hook in trainer._hooks if type(hook).__name__ != "EvalHook"]
    trainer.train()
    loss = trainer.storage.history("total_loss").latest()
    if not math.isfinite(loss) or loss <= 0:
        raise RuntimeError(f"the loss is {loss}")
    if all(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters())):
        raise RuntimeError("training changed no parameter")
    return Path(cfg.OUTPUT_DIR) / "model_final.pth"


def evaluate(cfg: CfgNode, checkpoint: Path) -> dict[str, dict[str, float]]:
    """Scores of the model in the file."""
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model).load(str(checkpoint))
    name = cfg.DATASETS.TEST[0]
    evaluator = Trainer.build_evaluator(cfg, name, cfg.OUTPUT_DIR)
    return inference_on_dataset(model, Trainer.build_test_loader(cfg, name), evaluator)


def evaluate_perfect(cfg: CfgNode) -> dict[str, dict[str, float]]:
    """Scores of ground truth as prediction."""
    name = cfg.DATASETS.TEST[0]
    evaluator = Trainer.build_evaluator(cfg, name, f"{cfg.OUTPUT_DIR}/perfect")
    loader = build_detection_test_loader(cfg, name)
    return inference_on_dataset(Oracle(cfg), loader, evaluator)


def check_perfect(results: dict[str, dict[str, float]]) -> list[str]:
    """What is not 100, and RuntimeError if nothing was scored."""
    scored = [
        (f"{task}/{metric}", results[task][metric])
        for task, metrics in PERFECT.items()
        for metric in metrics
        if metric in results.get(task, {})
    ]
    if not scored:
        raise RuntimeError(f"nothing scored: {results}")
    return [f"{metric} = {value}" for metric, value in scored if not abs(value - 100) < 1e-6]


class Oracle(torch.nn.Module):
    """A model that answers with the ground truth of the tasks that are on."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.test = cfg.MODEL.MASK_FORMER.TEST
        self.num_classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        self.name = cfg.DATASETS.TEST[0]
        self.meta = MetadataCatalog.get(self.name)
        self.records = {record["file_name"]: record for record in DatasetCatalog.get(self.name)}
        self.instances: dict[str, list[dict]] = {}
        if self.test.INSTANCE_ON and self.meta.get("json_file"):
            for record in load_coco_json(self.meta.json_file, self.meta.image_root):
                self.instances[record["file_name"]] = record["annotations"]

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self.answer(self.records[item["file_name"]]) for item in inputs]

    def answer(self, record: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.test.SEMANTIC_ON and "sem_seg_file_name" in record:
            labels = torch.from_numpy(np.array(Image.open(record["sem_seg_file_name"])).astype(np.int64))
            labels[labels == self.meta.ignore_label] = 0
            result["sem_seg"] = torch.nn.functional.one_hot(labels, self.num_classes).permute(2, 0, 1)
        if self.test.PANOPTIC_ON and "pan_seg_file_name" in record:
            result["panoptic_seg"] = self.panoptic(record)
        if self.test.INSTANCE_ON:
            classes, masks = self.things(record)
            instances = Instances(masks.shape[1:])
            instances.pred_masks = masks.float()
            instances.pred_classes = torch.tensor(classes)
            instances.scores = torch.ones(len(classes))
            instances.pred_boxes = BitMasks(masks).get_bounding_boxes()
            result["instances"] = instances
        return result

    def panoptic(self, record: dict[str, Any]) -> tuple[torch.Tensor, list[dict]]:
        ids = rgb2id(np.array(Image.open(record["pan_seg_file_name"])))
        things = set(self.meta.thing_dataset_id_to_contiguous_id.values())
        segments = []
        for segment in record["segments_info"]:
            if segment.get("iscrowd", 0):
                ids[ids == segment["id"]] = 0
                continue
            category = segment["category_id"]
            segments.append({"id": segment["id"], "category_id": category, "isthing": category in things})
        return torch.from_numpy(ids), segments

    def things(self, record: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
        """Classes and (G, H, W) bool masks; Cityscapes scores against its PNG files, the others against their json."""
        classes, masks = [], []
        if hasattr(self.meta, "gt_dir"):
            city, name = Path(record["file_name"]).parts[-2:]
            stem = name.removesuffix("_leftImg8bit.png")
            ids = np.array(Image.open(Path(self.meta.gt_dir) / city / f"{stem}_gtFine_instanceIds.png"))
            names = {row["id"]: row["name"] for row in register_cityscapes.CITYSCAPES_CATEGORIES}
            for id_ in np.unique(ids[ids >= 1000]):
                if id_ // 1000 in names:
                    classes.append(self.meta.thing_classes.index(names[id_ // 1000]))
                    masks.append(ids == id_)
        for anno in self.instances.get(record["file_name"], []):
            if anno.get("iscrowd", 0):
                continue
            segmentation = anno["segmentation"]
            if isinstance(segmentation, list):
                height, width = np.array(Image.open(record["file_name"])).shape[:2]
                segmentation = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
            classes.append(self.meta.thing_dataset_id_to_contiguous_id[anno["category_id"]])
            masks.append(mask_util.decode(segmentation).astype(bool))
        return classes, torch.from_numpy(np.stack(masks))


def draw(cfg: CfgNode, path: Path) -> None:
    """A picture: the image, the ground truth, and what a perfect model's prediction looks like."""
    name = cfg.DATASETS.TEST[0]
    meta = MetadataCatalog.get(name)
    record = DatasetCatalog.get(name)[0]
    image = np.array(Image.open(record["file_name"]).convert("RGB"))
    answer = Oracle(cfg)([record])[0]
    parts = [Visualizer(image, meta, scale=4).get_output().get_image()]
    drawn = []
    if "panoptic_seg" in answer:
        drawn.append(Visualizer(image, meta, scale=4).draw_panoptic_seg(*answer["panoptic_seg"]))
    if "sem_seg" in answer:
        labels = np.array(Image.open(record["sem_seg_file_name"])).astype(int)
        drawn.append(Visualizer(image, meta, scale=4).draw_sem_seg(labels))
    if "instances" in answer:
        drawn.append(Visualizer(image, meta, scale=4).draw_instance_predictions(answer["instances"]))
    if not drawn:
        raise RuntimeError("there was nothing to draw")
    parts += [picture.get_image() for picture in drawn]
    if any(np.array_equal(part, parts[0]) for part in parts[1:]):
        raise RuntimeError("a drawing left the image as it was")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(parts, axis=1)).save(path)


# ---- two processes


def scores_by_command(row: Row, root: Path, cfg: CfgNode, checkpoint: Path, processes: int) -> list[str]:
    """The score lines of tools/train_net.py --eval-only, in one or several processes."""
    output = Path(cfg.OUTPUT_DIR) / f"{processes}_processes"
    output.mkdir(parents=True, exist_ok=True)
    config = output / "small.yaml"
    config.write_text(cfg.dump())
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [str(ROOT / "tools/train_net.py"), "--config-file", str(config), "--eval-only"]
    command += ["MODEL.WEIGHTS", str(checkpoint), "OUTPUT_DIR", str(output)]
    env = {**os.environ, "DETECTRON2_DATASETS": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=output)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    log = (output / "log.txt").read_text()
    return [line.split("copypaste: ")[1] for line in log.splitlines() if "copypaste: " in line]
