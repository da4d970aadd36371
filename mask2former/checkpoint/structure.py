"""Which config fits some weights: read off their names and shapes, as `{"MODEL.SOME.KEY": value}`."""

import re
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..setup_config import changed, default_config

Weights = dict[str, Tensor]
Settings = dict[str, Any]

_HEAD, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
_POINTS = 4  # of the deformable attention, in every published model

# What every published model has, and what weights do not show.
PUBLISHED: Settings = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.PIXEL_MEAN": [123.675, 116.280, 103.530],
    "MODEL.PIXEL_STD": [58.395, 57.120, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 4,
    "MODEL.MASK_FORMER.DROPOUT": 0.0,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 2.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.8,
    "INPUT.FORMAT": "RGB",
}


def settings_of_weights(weights: Weights) -> Settings:
    """The settings that weights under detectron2's names show; `PUBLISHED` for the others.

    Raises:
        ValueError: they are not of a whole Mask2Former or MaskFormer.
    """
    if f"{_PREDICTOR}.class_embed.weight" not in weights or f"{_HEAD}.mask_features.weight" not in weights:
        raise ValueError("These are not the weights of a whole model: there is no class layer or no pixel decoder.")
    mask2former = f"{_PREDICTOR}.query_feat.weight" in weights
    head = _mask2former(weights) if mask2former else _maskformer(weights)
    swin = "backbone.patch_embed.proj.weight" in weights
    backbone = _swin(weights) if swin else _resnet(weights)
    queries, hidden = weights[f"{_PREDICTOR}.query_embed.weight"].shape
    return {
        **PUBLISHED,
        **backbone,
        **head,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": weights[f"{_PREDICTOR}.class_embed.weight"].shape[0] - 1,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": weights[f"{_HEAD}.mask_features.weight"].shape[0],
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": weights[f"{_HEAD}.mask_features.weight"].shape[1],
        "MODEL.MASK_FORMER.HIDDEN_DIM": hidden,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": queries,
        "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": any(f"{_PREDICTOR}.input_proj." in name for name in weights),
    }


def config_of_settings(settings: Settings) -> CfgNode:
    """detectron2's and Mask2Former's defaults with these settings; a whole number may stand for a float."""
    cfg = default_config()
    for name, value in settings.items():
        cfg.merge_from_list([name, float(value) if isinstance(value_of(cfg, name), float) else value])
    return cfg


def value_of(cfg: CfgNode, name: str) -> Any:
    """The value of a dotted key; tuples as lists."""
    for part in name.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple | list) else cfg


def check_fits(weights: Weights, cfg: CfgNode) -> Any:
    """Compare weights with the model that the config builds; returns the `_metadata` of its state dict.

    Raises:
        ValueError: a name or a shape differs.
    """
    with torch.device("meta"):
        own = build_model(changed(cfg, {"MODEL.DEVICE": "meta"})).state_dict()
    counted = ".num_batches_tracked"
    differing = [name for name in {*own, *weights} if (name in own) != (name in weights) and not name.endswith(counted)]
    differing += [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if differing:
        some = ", ".join(sorted(differing)[:5])
        raise ValueError(
            f"The config does not fit the weights: {len(differing)} names or shapes differ, such as {some}."
        )
    return own._metadata


def _mask2former(weights: Weights) -> Settings:
    levels = weights[f"{_HEAD}.transformer.level_embed"].shape[0]
    attention = weights[f"{_HEAD}.transformer.encoder.layers.0.self_attn.attention_weights.bias"].shape[0]
    return {
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "MSDeformAttnPixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": _count(weights, rf"{_HEAD}\.transformer\.encoder\.layers\.(\d+)"),
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "MultiScaleMaskedTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
        "MODEL.MASK_FORMER.NHEADS": attention // (levels * _POINTS),
        # Predictions: one after each layer and one before the first.
        "MODEL.MASK_FORMER.DEC_LAYERS": _count(weights, rf"{_PREDICTOR}\.transformer_ffn_layers\.(\d+)") + 1,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": weights[f"{_PREDICTOR}.transformer_ffn_layers.0.linear1.bias"].shape[0],
    }


def _maskformer(weights: Weights) -> Settings:
    encoder = _count(weights, rf"{_HEAD}\.transformer\.encoder\.layers\.(\d+)")
    layer = f"{_PREDICTOR}.transformer.decoder.layers.0.linear1.bias"
    return {
        "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder" if encoder else "BasePixelDecoder",
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": encoder,
        "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "StandardTransformerDecoder",
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder" if encoder else "res5",
        "MODEL.MASK_FORMER.ENC_LAYERS": _count(weights, rf"{_PREDICTOR}\.transformer\.encoder\.layers\.(\d+)"),
        "MODEL.MASK_FORMER.DEC_LAYERS": _count(weights, rf"{_PREDICTOR}\.transformer\.decoder\.layers\.(\d+)"),
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": weights[layer].shape[0],
    }


def _swin(weights: Weights) -> Settings:
    tables = [f"backbone.layers.{stage}.blocks.0.attn.relative_position_bias_table" for stage in range(4)]
    patches = weights["backbone.patch_embed.proj.weight"]
    hidden = weights["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape
    settings = {
        "MODEL.BACKBONE.NAME": "D2SwinTransformer",
        "MODEL.SWIN.EMBED_DIM": patches.shape[0],
        "MODEL.SWIN.PATCH_SIZE": patches.shape[2],
        "MODEL.SWIN.DEPTHS": [_count(weights, rf"backbone\.layers\.{stage}\.blocks\.(\d+)") for stage in range(4)],
        "MODEL.SWIN.NUM_HEADS": [weights[name].shape[1] for name in tables],
        "MODEL.SWIN.WINDOW_SIZE": (round(weights[tables[0]].shape[0] ** 0.5) + 1) // 2,
        "MODEL.SWIN.MLP_RATIO": hidden[0] / hidden[1],
        "MODEL.SWIN.QKV_BIAS": "backbone.layers.0.blocks.0.attn.qkv.bias" in weights,
        "MODEL.SWIN.PATCH_NORM": "backbone.patch_embed.norm.weight" in weights,
        "MODEL.SWIN.APE": "backbone.absolute_pos_embed" in weights,
    }
    # The window of the larger published ones goes with the size of the images they were pretrained on.
    return settings | {"MODEL.SWIN.PRETRAIN_IMG_SIZE": 384 if settings["MODEL.SWIN.WINDOW_SIZE"] == 12 else 224}


DEPTHS = {
    (2, 2, 2, 2, "basic"): 18,
    (3, 4, 6, 3, "basic"): 34,
    (3, 4, 6, 3, "bottleneck"): 50,
    (3, 4, 23, 3, "bottleneck"): 101,
    (3, 8, 36, 3, "bottleneck"): 152,
}


def _resnet(weights: Weights) -> Settings:
    blocks = [_count(weights, rf"backbone\.res{stage}\.(\d+)") for stage in (2, 3, 4, 5)]
    kind = "bottleneck" if "backbone.res2.0.conv3.weight" in weights else "basic"
    if (*blocks, kind) not in DEPTHS:
        raise ValueError(f"The backbone is a ResNet of {blocks} {kind} blocks, expected one of {list(DEPTHS)}.")
    last = "conv3" if kind == "bottleneck" else "conv2"
    counts = any(name.startswith("backbone.") and name.endswith("num_batches_tracked") for name in weights)
    return {
        "MODEL.BACKBONE.NAME": "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH": DEPTHS[(*blocks, kind)],
        "MODEL.RESNETS.STEM_OUT_CHANNELS": weights["backbone.stem.conv1.weight"].shape[0],
        "MODEL.RESNETS.RES2_OUT_CHANNELS": weights[f"backbone.res2.0.{last}.weight"].shape[0],
        "MODEL.RESNETS.WIDTH_PER_GROUP": weights["backbone.res2.0.conv1.weight"].shape[0],
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.RESNETS.NORM": "BN" if counts else "FrozenBN",
    }


def _count(weights: Weights, pattern: str) -> int:
    """How many numbers the pattern's group takes."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})
