"""Names and widths in a config that cannot be built are refused with the key, the value and the choices."""

from pathlib import Path

import pytest
from detectron2.modeling import build_model

from mask2former import load_config
from mask2former.trainer import Trainer

CONFIG = Path(__file__).parents[1] / "configs" / "shapes" / "panoptic.yaml"


def build(*options, by=build_model):
    return by(load_config(CONFIG, ["MODEL.DEVICE", "cpu", *options]))


@pytest.mark.parametrize("by", [build_model, Trainer.build_model])
@pytest.mark.parametrize(
    ("key", "choices"),
    [
        ("MODEL.BACKBONE.NAME", r"D2SwinTransformer, .*build_resnet_backbone"),
        ("MODEL.SEM_SEG_HEAD.NAME", r"MaskFormerHead, .*PerPixelBaselineHead, PerPixelBaselinePlusHead"),
        (
            "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME",
            r"BasePixelDecoder, MSDeformAttnPixelDecoder, TransformerEncoderPixelDecoder\.",
        ),
        (
            "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME",
            r"MultiScaleMaskedTransformerDecoder, StandardTransformerDecoder\.",
        ),
    ],
)
def test_an_unknown_part_is_refused_with_the_registered_ones(by, key, choices):
    with pytest.raises(ValueError, match=rf"{key} is 'Nothing', which is not registered\. Registered are: .*{choices}"):
        build(key, "Nothing", by=by)


def test_an_unknown_model_is_refused_with_the_registered_ones():
    with pytest.raises(ValueError, match=r"META_ARCHITECTURE is 'Nothing', .* MaskFormer, .*SemanticSegmentor"):
        build("MODEL.META_ARCHITECTURE", "Nothing", by=Trainer.build_model)


@pytest.mark.parametrize(
    ("key", "value", "around", "multiple"),
    [
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 48, [], 32),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 48, ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"], 32),
        ("MODEL.SEM_SEG_HEAD.CONVS_DIM", 64, ["MODEL.MASK_FORMER.NHEADS", 6], 6),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 66, ["MODEL.MASK_FORMER.NHEADS", 2], 4),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 60, [], 8),
    ],
)
def test_a_width_that_cannot_be_divided_is_refused(key, value, around, multiple):
    with pytest.raises(
        ValueError, match=rf"{key} is {value}, which .* do not divide: choose a multiple of {multiple}\."
    ):
        build(*around, key, value)


@pytest.mark.parametrize("key", ["SEM_SEG_HEAD.CONVS_DIM", "SEM_SEG_HEAD.MASK_DIM", "MASK_FORMER.HIDDEN_DIM"])
def test_a_width_of_zero_is_refused(key):
    with pytest.raises(ValueError, match=rf"{key} is 0: a number of channels is at least 1"):
        build(f"MODEL.{key}", 0)


def test_no_heads_are_refused():
    with pytest.raises(ValueError, match="NHEADS is 0"):
        build("MODEL.MASK_FORMER.NHEADS", 0)


def test_any_mask_dim_and_any_width_of_a_pyramid_without_norm_will_do():
    pyramid = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder", "MODEL.SEM_SEG_HEAD.NORM", ""]
    build(*pyramid, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 7, "MODEL.SEM_SEG_HEAD.MASK_DIM", 5)
