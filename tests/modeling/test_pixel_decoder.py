"""Pixel decoders: published parameter names, the maths of a layer by plain code, and what a user can get wrong."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from mask2former.config import add_maskformer2_config
from mask2former.modeling.ops import ms_deform_attn
from mask2former.modeling.pixel_decoder.build import build_pixel_decoder
from mask2former.modeling.pixel_decoder.fpn import BasePixelDecoder, TransformerEncoderPixelDecoder
from mask2former.modeling.pixel_decoder.msdeformattn import (
    DeformableEncoderLayer,
    MSDeformAttn,
    MSDeformAttnPixelDecoder,
    pixel_centers,
)

SHAPES = {f"res{level}": ShapeSpec(channels=4 * 2**level, stride=2**level) for level in (2, 3, 4, 5)}


def config(name: str = "MSDeformAttnPixelDecoder", **head):
    cfg = get_cfg()
    add_maskformer2_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 4
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 64
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 24
    cfg.MODEL.SEM_SEG_HEAD.NORM = "GN"
    cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS = 2
    cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME = name
    cfg.MODEL.MASK_FORMER.DROPOUT = 0.0
    for key, value in head.items():
        cfg.MODEL.SEM_SEG_HEAD[key] = value
    return cfg


def features(batch: int = 2, height: int = 33, width: int = 50) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, spec.channels, -(-height // spec.stride), -(-width // spec.stride))
        for name, spec in SHAPES.items()
    }


NAMES = ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_gradients_at_an_odd_size(name):
    decoder = build_pixel_decoder(config(name), SHAPES)
    given = features()
    masks, encoded, levels = decoder.forward_features(given)
    assert masks.shape == (2, 24, 9, 13)
    assert [tuple(x.shape) for x in levels] == [(2, 64, 2, 2), (2, 64, 3, 4), (2, 64, 5, 7)]
    assert (encoded is None) == (name == "BasePixelDecoder")
    (masks.square().mean() + sum(x.square().mean() for x in levels)).backward()
    assert [n for n, p in decoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_an_image_alone_equals_itself_in_a_batch(name):
    decoder = build_pixel_decoder(config(name), SHAPES).eval()
    given = features(3)
    together = decoder.forward_features(given)[0]
    alone = decoder.forward_features({key: x[1:2] for key, x in given.items()})[0]
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bfloat16_follows_float32(name):
    decoder = build_pixel_decoder(config(name), SHAPES).eval()
    given = features()
    exact = decoder.forward_features(given)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decoder.forward_features(given)[0].float()
    assert (rounded - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_published_names_of_the_deformable_decoder():
    state = build_pixel_decoder(config(CONVS_DIM=256, MASK_DIM=256, TRANSFORMER_ENC_LAYERS=6), SHAPES).state_dict()
    shapes = {name: tuple(x.shape) for name, x in state.items()}
    assert len(shapes) == 3 * 4 + 1 + 6 * 16 + 2 + 3 + 3
    layer = "transformer.encoder.layers.5."
    assert shapes[layer + "self_attn.sampling_offsets.weight"] == (192, 256)
    assert shapes[layer + "self_attn.attention_weights.bias"] == (96,)
    assert shapes[layer + "self_attn.value_proj.weight"] == shapes[layer + "self_attn.output_proj.weight"] == (256, 256)
    assert shapes[layer + "linear1.weight"] == (1024, 256)
    assert shapes["transformer.level_embed"] == (3, 256)
    assert shapes["input_proj.0.0.weight"] == (256, SHAPES["res5"].channels, 1, 1)
    assert shapes["input_proj.2.0.weight"] == (256, SHAPES["res3"].channels, 1, 1)
    assert shapes["input_proj.2.1.bias"] == (256,)
    assert shapes["adapter_1.weight"] == (256, SHAPES["res2"].channels, 1, 1)
    assert shapes["layer_1.norm.weight"] == (256,)
    assert shapes["mask_features.weight"] == (256, 256, 1, 1)


def test_published_names_of_the_pyramids():
    base = build_pixel_decoder(config("BasePixelDecoder"), SHAPES).state_dict()
    stems = {name.split(".")[0] for name in base}
    assert stems == {f"adapter_{i}" for i in (1, 2, 3)} | {f"layer_{i}" for i in (1, 2, 3, 4)} | {"mask_features"}
    assert base["layer_4.weight"].shape == (64, SHAPES["res5"].channels, 3, 3)
    assert base["adapter_3.weight"].shape == (64, SHAPES["res4"].channels, 1, 1)
    assert base["mask_features.weight"].shape == (24, 64, 3, 3)
    encoder = build_pixel_decoder(config("TransformerEncoderPixelDecoder"), SHAPES).state_dict()
    added = {name for name in encoder if name not in base}
    assert added >= {"input_proj.weight", "input_proj.bias"}
    assert "transformer.encoder.layers.1.self_attn.in_proj_weight" in added
    assert "transformer.encoder.layers.0.norm2.bias" in added
    assert encoder["layer_4.weight"].shape == (64, 64, 3, 3)


def test_attention_starts_by_looking_one_to_four_pixels_away_in_eight_directions():
    attention = MSDeformAttn(32, heads=8, levels=2, points=4)
    offsets = attention.sampling_offsets.bias.reshape(8, 2, 4, 2)
    assert not attention.sampling_offsets.weight.any() and not attention.attention_weights.weight.any()
    torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]]))
    torch.testing.assert_close(offsets[3, 1, 1], torch.tensor([-2.0, 2.0]))
    torch.testing.assert_close(offsets[6, 0, 2], torch.tensor([0.0, -3.0]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_attention_is_the_published_sequence_of_projections():
    attention = MSDeformAttn(16, heads=2, levels=2, points=4)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    shapes = ((3, 4), (2, 2))
    pixels, position = torch.randn(2, 16, 16), torch.randn(16, 16)
    queries = pixels + position
    centers = pixel_centers(shapes, torch.device("cpu"))
    offsets = attention.sampling_offsets(queries).reshape(2, 16, 2, 2, 4, 2)
    locations = centers[None, :, None, None, None] + offsets / torch.tensor([[4.0, 3.0], [2.0, 2.0]])[:, None]
    weights = attention.attention_weights(queries).reshape(2, 16, 2, 8).softmax(-1).reshape(2, 16, 2, 2, 4)
    value = attention.value_proj(pixels).reshape(2, 16, 2, 8)
    expected = attention.output_proj(ms_deform_attn(value, shapes, locations, weights, "reference"))
    torch.testing.assert_close(attention(pixels, position, centers, shapes), expected, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_an_encoder_layer_adds_and_normalises_twice():
    layer = DeformableEncoderLayer(16, heads=2, levels=2, dropout=0.0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    shapes = ((3, 4), (2, 2))
    pixels, position = torch.randn(2, 16, 16), torch.randn(16, 16)
    centers = pixel_centers(shapes, torch.device("cpu"))
    first = layer.norm1(pixels + layer.self_attn(pixels, position, centers, shapes))
    expected = layer.norm2(first + layer.linear2(layer.linear1(first).relu()))
    torch.testing.assert_close(layer(pixels, position, centers, shapes), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_plain_pyramid_repeats_the_coarse_level_and_adds_the_lateral_path():
    decoder = build_pixel_decoder(config("BasePixelDecoder"), SHAPES).eval()
    given = features()
    masks, _, levels = decoder.forward_features(given)
    torch.testing.assert_close(levels[0], decoder.layer_4(given["res5"]))
    finer = decoder.adapter_3(given["res4"]) + F.interpolate(levels[0], (3, 4), mode="nearest")
    torch.testing.assert_close(levels[1], decoder.layer_3(finer))
    finer = decoder.adapter_1(given["res2"]) + F.interpolate(levels[2], (9, 13), mode="nearest")
    torch.testing.assert_close(masks, decoder.mask_features(decoder.layer_1(finer)))


def test_pixel_centres_are_in_raster_order():
    centers = pixel_centers(((1, 2), (2, 1)), torch.device("cpu"))
    assert centers.tolist() == [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]


@torch.no_grad()
def test_the_pyramid_step_adds_the_lateral_path_to_the_doubled_level():
    decoder = build_pixel_decoder(config(), SHAPES).eval()
    given = features()
    masks, coarsest, levels = decoder.forward_features(given)
    assert coarsest is levels[0]
    finer = F.interpolate(levels[-1], (9, 13), mode="bilinear", align_corners=False)
    lateral = F.group_norm(
        F.conv2d(given["res2"], decoder.adapter_1.weight),
        32,
        decoder.adapter_1.norm.weight,
        decoder.adapter_1.norm.bias,
    )
    smooth = F.conv2d(lateral + finer, decoder.layer_1.weight, padding=1)
    smooth = F.group_norm(smooth, 32, decoder.layer_1.norm.weight, decoder.layer_1.norm.bias).relu()
    torch.testing.assert_close(masks, decoder.mask_features(smooth), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_two_features_two_pyramid_steps():
    cfg = config(DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res4", "res5"])
    decoder = build_pixel_decoder(cfg, SHAPES)
    assert {"adapter_1", "adapter_2", "layer_1", "layer_2"} <= {name for name, _ in decoder.named_children()}
    masks, _, levels = decoder.forward_features(features())
    assert masks.shape[-2:] == (9, 13)
    assert [tuple(x.shape[-2:]) for x in levels] == [(2, 2), (3, 4), (5, 7)]


@torch.no_grad()
def test_pre_norm_and_post_norm_layers_differ_only_in_order():
    cfg = config("TransformerEncoderPixelDecoder")
    cfg.MODEL.MASK_FORMER.PRE_NORM = True
    decoder = build_pixel_decoder(cfg, SHAPES).eval()
    assert isinstance(decoder.transformer.encoder.norm, torch.nn.LayerNorm)
    layer = decoder.transformer.encoder.layers[0]
    x, position = torch.randn(1, 6, 64), torch.randn(6, 64)
    normed = layer.norm1(x)
    attended = x + layer.self_attn(normed + position, normed + position, normed)[0]
    expected = attended + layer.linear2(layer.linear1(layer.norm2(attended)).relu())
    torch.testing.assert_close(layer(x, position), expected, atol=1e-5, rtol=1e-5)
    layer.pre_norm = False
    attended = layer.norm1(x + layer.self_attn(x + position, x + position, x)[0])
    expected = layer.norm2(attended + layer.linear2(layer.linear1(attended).relu()))
    torch.testing.assert_close(layer(x, position), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_it_exports():
    decoder = build_pixel_decoder(config(), SHAPES).eval()

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return self.decoder.forward_features(given)[0]

    given = features(1)
    expected = Model()(given)
    program = torch.export.export(Model(), (given,))
    torch.testing.assert_close(program.module()(given), expected, atol=1e-4, rtol=1e-4)


def test_what_a_config_can_get_wrong():
    with pytest.raises(ValueError, match=r"names \['res6'\]"):
        build_pixel_decoder(config(DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES=["res4", "res6"]), SHAPES)
    with pytest.raises(ValueError, match="no path from stride 8 to COMMON_STRIDE 16"):
        build_pixel_decoder(config(COMMON_STRIDE=16), SHAPES)
    cfg = config()
    cfg.MODEL.MASK_FORMER.NHEADS = 7
    with pytest.raises(ValueError, match=r"7 heads of MODEL\.MASK_FORMER\.NHEADS"):
        build_pixel_decoder(cfg, SHAPES)


def test_another_registered_name_is_refused_with_the_name():
    @SEM_SEG_HEADS_REGISTRY.register()
    class NoPixelDecoderAtAll:
        def __init__(self, cfg, input_shape) -> None: ...

    with pytest.raises(ValueError, match=r"'NoPixelDecoderAtAll', but a pixel decoder needs a method forward_features"):
        build_pixel_decoder(config("NoPixelDecoderAtAll"), SHAPES)


def test_registered_names():
    for made in (BasePixelDecoder, TransformerEncoderPixelDecoder, MSDeformAttnPixelDecoder):
        assert SEM_SEG_HEADS_REGISTRY.get(made.__name__) is made
