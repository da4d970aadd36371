"""From a config file to a config that runs here, and says which of its settings do nothing."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from mask2former.config import add_maskformer2_config

logger = logging.getLogger(__name__)


def load_config(config_file: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """`read_config`, on a device that is there."""
    return runnable_here(read_config(config_file, opts))


def read_config(config_file: str | Path, opts: Sequence[Any] = ()) -> CfgNode:
    """A config file over the defaults, with `opts` (KEY, VALUE, KEY, VALUE, ...) merged over it.

    Raises:
        ValueError: there is no such file, or it is not one of text.
        KeyError, AssertionError: an unknown key, a value of the wrong type, an odd number of `opts`.
    """
    if not Path(config_file).is_file():
        raise ValueError(f"There is no config file {config_file}: name one of the .yaml files in configs/.")
    cfg = default_config()
    try:
        cfg.merge_from_file(str(config_file))
    except UnicodeDecodeError as error:
        raise ValueError(f"Config file {config_file} is not a text file: name one that ends in .yaml.") from error
    cfg.merge_from_list(list(opts))
    return cfg


def default_config() -> CfgNode:
    """detectron2's defaults with DeepLab's and Mask2Former's keys."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    return cfg


def runnable_here(cfg: CfgNode) -> CfgNode:
    """The config itself, or without CUDA a copy that runs on the CPU; says so in one line."""
    if not str(cfg.MODEL.DEVICE).startswith("cuda") or torch.cuda.is_available():
        return cfg
    logger.warning("MODEL.DEVICE is %s, but there is no CUDA device: running on the CPU.", cfg.MODEL.DEVICE)
    return changed(cfg, {"MODEL.DEVICE": "cpu"})


def changed(cfg: CfgNode, settings: Mapping[str, Any]) -> CfgNode:
    """A copy with other values, by dotted keys; frozen if the config is."""
    frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([part for setting in settings.items() for part in setting])
    if frozen:
        cfg.freeze()
    return cfg


def report_settings_without_effect(cfg: CfgNode) -> None:
    """Warn once of every setting that differs from its default and that nothing will read."""
    for line in settings_without_effect(cfg):
        logger.warning("%s", line)


def settings_without_effect(cfg: CfgNode) -> list[str]:
    """One line for each setting that differs from its default and has no effect together with the others."""
    defaults = dict(_leaves(default_config()))
    lines = []
    for key, value in _leaves(cfg):
        if key not in defaults or _plain(value) == _plain(defaults[key]):
            continue
        for prefix, is_idle, remedy in _IDLE:
            if (key == prefix or key.startswith(prefix + ".")) and is_idle(cfg):
                lines.append(f"{key} = {value} has no effect: {remedy}")
                break
    return lines


def _multi_scale(cfg: CfgNode) -> bool:
    return cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME == "MultiScaleMaskedTransformerDecoder"


def _deformable(cfg: CfgNode) -> bool:
    return cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "MSDeformAttnPixelDecoder"


def _jitter(cfg: CfgNode) -> bool:
    return cfg.INPUT.DATASET_MAPPER_NAME.endswith("_lsj")


def _maskformer(cfg: CfgNode) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "MaskFormer"


_OTHER_MODEL = "it belongs to another model; classes are MODEL.SEM_SEG_HEAD.NUM_CLASSES, queries MODEL.MASK_FORMER.*."
_LSJ = "the coco_*_lsj mappers go by INPUT.IMAGE_SIZE, MIN_SCALE and MAX_SCALE."

# Part of every published config and never read, there or here: published weights have what they were trained with.
WITHOUT_EFFECT = {
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS": "the pixel decoder samples 4 points, as published.",
    "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS": (
        "the pixel decoder has MODEL.MASK_FORMER.NHEADS heads, as published."
    ),
}

# Key or section, when it is idle, and what to do instead.
_IDLE: list[tuple[str, Callable[[CfgNode], bool], str]] = [
    *(
        (f"MODEL.{section}", _maskformer, _OTHER_MODEL)
        for section in (
            "ROI_HEADS",
            "ROI_BOX_HEAD",
            "ROI_BOX_CASCADE_HEAD",
            "ROI_MASK_HEAD",
            "ROI_KEYPOINT_HEAD",
            "RPN",
            "RETINANET",
            "FPN",
            "PANOPTIC_FPN",
            "ANCHOR_GENERATOR",
            "PROPOSAL_GENERATOR",
            "MASK_ON",
            "KEYPOINT_ON",
            "LOAD_PROPOSALS",
        )
    ),
    *((key, lambda cfg: True, reason) for key, reason in WITHOUT_EFFECT.items()),
    ("MODEL.MASK_FORMER.ENC_LAYERS", _multi_scale, "only StandardTransformerDecoder has an encoder."),
    (
        "MODEL.MASK_FORMER.DROPOUT",
        lambda cfg: (
            _multi_scale(cfg)
            and cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME == "BasePixelDecoder"
            and cfg.MODEL.MASK_FORMER.DROPOUT > 0
        ),
        "neither BasePixelDecoder nor the multi-scale decoder has dropout, as published.",
    ),
    ("MODEL.SWIN", lambda cfg: "Swin" not in cfg.MODEL.BACKBONE.NAME, "MODEL.BACKBONE.NAME is no Swin."),
    ("INPUT.MIN_SIZE_TRAIN", _jitter, _LSJ),
    ("INPUT.MAX_SIZE_TRAIN", _jitter, _LSJ),
    ("INPUT.CROP", _jitter, _LSJ),
    ("INPUT.SIZE_DIVISIBILITY", _jitter, _LSJ),
    ("INPUT.COLOR_AUG_SSD", _jitter, "the coco_*_lsj mappers do not change colours."),
    *(
        (
            f"INPUT.{key}",
            lambda cfg: not _jitter(cfg),
            "only the coco_*_lsj mappers read it; others crop by INPUT.CROP.",
        )
        for key in ("IMAGE_SIZE", "MIN_SCALE", "MAX_SCALE")
    ),
    ("INPUT.RANDOM_FLIP", lambda cfg: not _jitter(cfg), "the mask_former_* mappers flip horizontally, as published."),
    ("INPUT.MASK_FORMAT", _maskformer, "the mappers make bit masks of polygons and run lengths alike."),
    ("MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", _maskformer, "weights of the losses are MODEL.MASK_FORMER.*_WEIGHT."),
    *(
        (f"MODEL.SEM_SEG_HEAD.{key}", lambda cfg: True, "it belongs to DeepLab's head.")
        for key in (
            "LOSS_TYPE",
            "PROJECT_FEATURES",
            "PROJECT_CHANNELS",
            "ASPP_CHANNELS",
            "ASPP_DILATIONS",
            "ASPP_DROPOUT",
            "USE_DEPTHWISE_SEPARABLE_CONV",
        )
    ),
    *(
        (key, _maskformer, "it belongs to models with proposals, boxes or keypoints.")
        for key in (
            "DATASETS.PROPOSAL_FILES_TRAIN",
            "DATASETS.PROPOSAL_FILES_TEST",
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN",
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST",
            "TEST.KEYPOINT_OKS_SIGMAS",
            "VIS_PERIOD",
        )
    ),
    ("GLOBAL.HACK", lambda cfg: True, "nothing reads it."),
    *(
        (f"SOLVER.{key}", lambda cfg: "Poly" in cfg.SOLVER.LR_SCHEDULER_NAME, "WarmupPolyLR has no steps.")
        for key in ("STEPS", "GAMMA")
    ),
    *(
        (f"SOLVER.{key}", lambda cfg: True, "the optimiser is the published one, which treats biases like weights.")
        for key in ("BIAS_LR_FACTOR", "WEIGHT_DECAY_BIAS")
    ),
    ("SOLVER.NESTEROV", lambda cfg: True, "the published SGD is without it."),
    ("SOLVER.MOMENTUM", lambda cfg: cfg.SOLVER.OPTIMIZER == "ADAMW", "only SOLVER.OPTIMIZER SGD has it."),
]


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
