"""A model and a run small enough to be trained many times within the tests."""

from pathlib import Path

from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "shapes" / "panoptic.yaml"

# On top of configs/shapes/panoptic.yaml; also words of a command line.
OPTIONS = [
    "MODEL.DEVICE", "cpu",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM", "32",
    "MODEL.MASK_FORMER.HIDDEN_DIM", "32",
    "MODEL.MASK_FORMER.NHEADS", "2",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "16",
    "MODEL.MASK_FORMER.DEC_LAYERS", "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "12",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "32",
    "INPUT.IMAGE_SIZE", "64",
    "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "6",
    "SOLVER.WARMUP_ITERS", "2",
    "SOLVER.CHECKPOINT_PERIOD", "3",
    "SEED", "7",
]  # fmt: skip


def tiny_config(output: Path, *options: str) -> CfgNode:
    """The config, frozen; `options` override it, as on the command line."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list([*OPTIONS, "OUTPUT_DIR", str(output), *map(str, options)])
    cfg.freeze()
    return cfg
