"""config.json and preprocessor_config.json of a Hugging Face folder, from and to detectron2's settings."""

import re
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from .structure import DEPTHS, PUBLISHED, Settings, value_of

_SWIN = {
    "EMBED_DIM": "embed_dim",
    "DEPTHS": "depths",
    "NUM_HEADS": "num_heads",
    "WINDOW_SIZE": "window_size",
    "PATCH_SIZE": "patch_size",
    "PRETRAIN_IMG_SIZE": "image_size",
    "MLP_RATIO": "mlp_ratio",
    "QKV_BIAS": "qkv_bias",
    "DROP_RATE": "hidden_dropout_prob",
    "ATTN_DROP_RATE": "attention_probs_dropout_prob",
    "DROP_PATH_RATE": "drop_path_rate",
    "APE": "use_absolute_embeddings",
}
_MODEL = {
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "feature_size",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "mask_feature_size",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": "encoder_layers",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": "common_stride",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "hidden_dim",
    "MODEL.MASK_FORMER.NHEADS": "num_attention_heads",
    "MODEL.MASK_FORMER.DROPOUT": "dropout",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": "dim_feedforward",
    "MODEL.MASK_FORMER.DEC_LAYERS": "decoder_layers",
    "MODEL.MASK_FORMER.PRE_NORM": "pre_norm",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": "enforce_input_projection",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "num_queries",
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": "no_object_weight",
    "MODEL.MASK_FORMER.CLASS_WEIGHT": "class_weight",
    "MODEL.MASK_FORMER.MASK_WEIGHT": "mask_weight",
    "MODEL.MASK_FORMER.DICE_WEIGHT": "dice_weight",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": "train_num_points",
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": "oversample_ratio",
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": "importance_sample_ratio",
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": "use_auxiliary_loss",
}
_MASKFORMER = "Reading a MaskFormer from there works: MODEL.WEIGHTS takes its folder."
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_FEEDFORWARD = 1024  # of the pixel decoder's encoder, fixed in the published models

# What a Hugging Face folder has no place for: kept in the header of its weights.
NOT_THERE = (
    *("MODEL.RESNETS.NORM", "MODEL.BACKBONE.FREEZE_AT", "MODEL.MASK_FORMER.SIZE_DIVISIBILITY"),
    *(f"MODEL.MASK_FORMER.TEST.{task}_ON" for task in ("SEMANTIC", "INSTANCE", "PANOPTIC")),
    *("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD"),
    *("DATASETS.TRAIN", "DATASETS.TEST"),
)


def hub_config(cfg: CfgNode, class_names: list[str]) -> dict[str, Any]:
    """config.json of the model that the config builds.

    Raises:
        ValueError: it has a part that Hugging Face's model has not.
    """
    head, mask_former = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    if (
        head.PIXEL_DECODER_NAME != "MSDeformAttnPixelDecoder"
        or mask_former.TRANSFORMER_DECODER_NAME != "MultiScaleMaskedTransformerDecoder"
    ):
        raise ValueError(
            f"Only Mask2Former is written for Hugging Face, and this is a MaskFormer ({head.PIXEL_DECODER_NAME} with "
            f"{mask_former.TRANSFORMER_DECODER_NAME}). {_MASKFORMER}"
        )
    if len(class_names) != head.NUM_CLASSES:
        raise ValueError(f"There are {len(class_names)} class names for {head.NUM_CLASSES} classes.")
    labels = dict(enumerate(class_names))
    return {
        "architectures": ["Mask2FormerForUniversalSegmentation"],
        "model_type": "mask2former",
        "backbone_config": _hub_swin(cfg) if cfg.MODEL.BACKBONE.NAME == "D2SwinTransformer" else _hub_resnet(cfg),
        **{theirs: value_of(cfg, ours) for ours, theirs in _MODEL.items()},
        "encoder_feedforward_dim": _FEEDFORWARD,
        "activation_function": "relu",
        "feature_strides": [4, 8, 16, 32],
        "ignore_value": head.IGNORE_VALUE,
        "id2label": {str(i): name for i, name in labels.items()},
        "label2id": {name: i for i, name in labels.items()},
        "dtype": "float32",
    }


def hub_preprocessor(cfg: CfgNode) -> dict[str, Any]:
    """preprocessor_config.json: what the image processor does before the model.

    Raises:
        ValueError: the model wants images in another order of channels.
    """
    if cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; Hugging Face's image processor gives RGB only.")
    return {
        "image_processor_type": "Mask2FormerImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": cfg.INPUT.MIN_SIZE_TEST, "longest_edge": cfg.INPUT.MAX_SIZE_TEST},
        "size_divisor": max(cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY, 32),
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(value / 255, 10) for value in cfg.MODEL.PIXEL_MEAN],
        "image_std": [round(value / 255, 10) for value in cfg.MODEL.PIXEL_STD],
        "ignore_index": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        "do_reduce_labels": False,
        "num_labels": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
    }


def settings_of_hub(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> Settings:
    """detectron2's settings of a Hugging Face Mask2Former.

    A key that the file leaves out has the default of transformers, which is the published value.

    Raises:
        ValueError: it is another model, or has a part that the published model has not.
    """
    if config.get("model_type") != "mask2former":
        kind = config.get("model_type")
        remedy = f" {_MASKFORMER}" if kind == "maskformer" else ""
        raise ValueError(f"config.json is of a {kind!r} model, expected 'mask2former'.{remedy}")
    if config.get("encoder_feedforward_dim", _FEEDFORWARD) != _FEEDFORWARD:
        raise ValueError(f"encoder_feedforward_dim is {config['encoder_feedforward_dim']}, expected {_FEEDFORWARD}.")
    settings = {**PUBLISHED, **{ours: config[theirs] for ours, theirs in _MODEL.items() if theirs in config}}
    settings |= {
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    }
    if "ignore_value" in config:
        settings["MODEL.SEM_SEG_HEAD.IGNORE_VALUE"] = config["ignore_value"]
    size = preprocessor.get("size")
    if isinstance(size, Mapping) and {"shortest_edge", "longest_edge"} <= set(size):
        settings |= {"INPUT.MIN_SIZE_TEST": size["shortest_edge"], "INPUT.MAX_SIZE_TEST": size["longest_edge"]}
    for key, name in (("MODEL.PIXEL_MEAN", "image_mean"), ("MODEL.PIXEL_STD", "image_std")):
        if name in preprocessor:
            settings[key] = [round(value * 255, 7) for value in preprocessor[name]]
    backbone = config.get("backbone_config") or {}
    if backbone.get("model_type") == "swin":
        settings |= {f"MODEL.SWIN.{ours}": backbone[theirs] for ours, theirs in _SWIN.items() if theirs in backbone}
    elif backbone.get("model_type") == "resnet":
        settings["MODEL.RESNETS.STRIDE_IN_1X1"] = backbone.get("downsample_in_bottleneck", False)
    else:
        raise ValueError(f"The backbone is {backbone.get('model_type')!r}, expected 'swin' or 'resnet'.")
    return settings


# Of the published models: the words in their names, the data they were trained on.
_PUBLISHED_DATA = {
    "coco-panoptic": ("coco_2017_train_panoptic", "coco_2017_val_panoptic_with_sem_seg"),
    "coco-instance": ("coco_2017_train", "coco_2017_val"),
    "ade-semantic": ("ade20k_sem_seg_train", "ade20k_sem_seg_val"),
    "ade-panoptic": ("ade20k_panoptic_train", "ade20k_panoptic_val"),
    "ade-instance": ("ade20k_instance_train", "ade20k_instance_val"),
    "cityscapes-semantic": ("cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val"),
    "cityscapes-instance": ("cityscapes_fine_instance_seg_train", "cityscapes_fine_instance_seg_val"),
    "cityscapes-panoptic": ("cityscapes_fine_panoptic_train", "cityscapes_fine_panoptic_val"),
    "mapillary-vistas-semantic": ("mapillary_vistas_sem_seg_train", "mapillary_vistas_sem_seg_val"),
    "mapillary-vistas-panoptic": ("mapillary_vistas_panoptic_train", "mapillary_vistas_panoptic_val"),
}


def settings_of_name(name: str) -> Settings:
    """Data and task of a published model, by its name; nothing for another."""
    for words, (train, test) in _PUBLISHED_DATA.items():
        if words in name:
            return {"DATASETS.TRAIN": (train,), "DATASETS.TEST": (test,), **settings_of_task(words.rpartition("-")[2])}
    return {}


def settings_of_task(task: str) -> Settings:
    """Which results inference returns: "semantic", "instance", "panoptic" or "all"."""
    on = {"semantic": task in ("semantic", "all"), "panoptic": task in ("panoptic", "all")}
    on["instance"] = task in ("instance", "all")
    return {f"MODEL.MASK_FORMER.TEST.{name.upper()}_ON": value for name, value in on.items()}


def _hub_swin(cfg: CfgNode) -> dict[str, Any]:
    swin = cfg.MODEL.SWIN
    if swin.QK_SCALE is not None or not swin.PATCH_NORM or list(swin.OUT_FEATURES) != ["res2", "res3", "res4", "res5"]:
        raise ValueError("Hugging Face's Swin has QK_SCALE None, PATCH_NORM True and all four OUT_FEATURES only.")
    return {
        "model_type": "swin",
        **{theirs: value_of(cfg, f"MODEL.SWIN.{ours}") for ours, theirs in _SWIN.items()},
        "num_channels": 3,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "out_features": _STAGES,
    }


def _hub_resnet(cfg: CfgNode) -> dict[str, Any]:
    resnet = cfg.MODEL.RESNETS
    blocks, kind = next((key[:4], key[4]) for key, depth in DEPTHS.items() if depth == resnet.DEPTH)
    width = resnet.RES2_OUT_CHANNELS
    plain = resnet.NUM_GROUPS == 1 and resnet.RES5_DILATION == 1 and not any(resnet.DEFORM_ON_PER_STAGE)
    if not plain or (kind == "bottleneck" and width != resnet.WIDTH_PER_GROUP * 4):
        raise ValueError(
            "Hugging Face's ResNet has no groups, dilation or deformable convolution, and inner width 1/4."
        )
    if (
        not re.fullmatch("(Frozen|Sync|naiveSync|)BN", resnet.NORM)
        or cfg.MODEL.BACKBONE.NAME != "build_resnet_backbone"
    ):
        raise ValueError(f"{cfg.MODEL.BACKBONE.NAME} with norm {resnet.NORM!r} has no counterpart at Hugging Face.")
    return {
        "model_type": "resnet",
        "embedding_size": resnet.STEM_OUT_CHANNELS,
        "hidden_sizes": [width * 2**stage for stage in range(4)],
        "depths": list(blocks),
        "layer_type": kind,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": resnet.STRIDE_IN_1X1,
        "num_channels": 3,
        "out_features": _STAGES,
    }
