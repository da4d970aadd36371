"""Decoders: masked attention by hand, torch's own attention and transformer layers as the independent version."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mask2former.modeling.layers import Attention
from mask2former.modeling.position_encoding import sine_position_encoding
from mask2former.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    Prediction,
    StandardTransformerDecoder,
)
from mask2former.modeling.transformer_decoder.multi_scale import attention_mask
from mask2former.modeling.transformer_decoder.standard import DecoderLayer, EncoderLayer


def _decoder(**changes):
    arguments = {
        "in_channels": 16,
        "num_classes": 3,
        "hidden_dim": 16,
        "num_queries": 5,
        "nheads": 4,
        "dim_feedforward": 24,
        "dec_layers": 4,
        "pre_norm": False,
        "mask_dim": 12,
        "enforce_input_project": False,
    }
    return MultiScaleMaskedTransformerDecoder(**{**arguments, **changes}).eval()


def _features(channels=16, batch=2):
    levels = [torch.randn(batch, channels, *size) for size in ((2, 3), (4, 6), (8, 12))]
    return levels, torch.randn(batch, 12, 16, 24)


def test_a_query_looks_inside_its_mask_and_everywhere_if_it_is_empty():
    logits = torch.tensor([[[3.0, -1.0, 0.0], [-5.0, -5.0, -5.0]]])
    assert attention_mask(logits).tolist() == [[[[True, False, True], [True, True, True]]]]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_queries_may_go_through_the_projection_instead_of_the_mask_features(batch, bias):
    decoder, projection = _decoder(), nn.Conv2d(7, 12, 1, bias=bias)
    levels, _ = _features(batch=batch)
    unprojected = torch.randn(batch, 7, 16, 24)
    expected = decoder(levels, projection(unprojected))
    got = decoder(levels, unprojected, mask_projection=projection)
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got["aux_outputs"][0][name], expected["aux_outputs"][0][name], atol=1e-5, rtol=1e-5)


def test_attention_equals_torch():
    ours, theirs = Attention(16, 4), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(ours.in_proj_bias)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    allowed = torch.rand(2, 1, 5, 7) > 0.5
    allowed[..., 0] = True
    forbidden = ~allowed.expand(-1, 4, -1, -1).flatten(0, 1)
    torch.testing.assert_close(ours(query, key, value, allowed), theirs(query, key, value, attn_mask=forbidden)[0])
    torch.testing.assert_close(ours(query, key, value), theirs(query, key, value)[0])


def _plain_forward(decoder, levels, mask_features):
    """The paper's decoder step by step: full masks after every layer, resized, thresholded at one half."""

    def attend(module, query, key, value, mask=None):
        theirs = nn.MultiheadAttention(16, 4, batch_first=True)
        theirs.load_state_dict(module.state_dict())
        return theirs(query, key, value, attn_mask=mask)[0]

    def normed(layer, x, block):
        return x + block(layer.norm(x)) if layer.pre_norm else layer.norm(x + block(x))

    def predict(x):
        x = decoder.decoder_norm(x)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(x), mask_features)
        return {"pred_logits": decoder.class_embed(x), "pred_masks": masks}

    x = decoder.query_feat.weight.expand(2, -1, -1)
    place = decoder.query_embed.weight
    outputs = [predict(x)]
    for i in range(4):
        level = levels[i % 3]
        values = decoder.input_proj[i % 3](level).flatten(2).mT + decoder.level_embed.weight[i % 3]
        keys = values + sine_position_encoding(*level.shape[-2:], 16)
        masks = F.interpolate(outputs[-1]["pred_masks"], level.shape[-2:], mode="bilinear", align_corners=False)
        forbidden = masks.sigmoid().flatten(2) < 0.5
        forbidden[forbidden.all(-1)] = False
        forbidden = forbidden[:, None].expand(-1, 4, -1, -1).flatten(0, 1)
        layer = decoder.transformer_cross_attention_layers[i]
        x = normed(layer, x, lambda y: attend(layer.multihead_attn, y + place, keys, values, forbidden))  # noqa: B023
        layer = decoder.transformer_self_attention_layers[i]
        x = normed(layer, x, lambda y: attend(layer.self_attn, y + place, y + place, y))  # noqa: B023
        layer = decoder.transformer_ffn_layers[i]
        x = normed(layer, x, lambda y: layer.linear2(layer.linear1(y).relu()))  # noqa: B023
        outputs.append(predict(x))
    return outputs


@pytest.mark.parametrize("changes", [{}, {"pre_norm": True}, {"in_channels": 8}, {"enforce_input_project": True}])
@torch.no_grad()
def test_every_layer_equals_the_paper_step_by_step(changes):
    decoder = _decoder(**changes)
    levels, mask_features = _features(changes.get("in_channels", 16))
    expected = _plain_forward(decoder, levels, mask_features)
    outputs = decoder(levels, mask_features)
    assert len(outputs["aux_outputs"]) == 4
    for ours, plain in zip([*outputs["aux_outputs"], outputs], expected):
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(ours[name], plain[name], atol=1e-5, rtol=1e-4)


def test_an_image_alone_equals_itself_in_a_batch():
    decoder = _decoder()
    levels, mask_features = _features()
    both = decoder(levels, mask_features)["pred_masks"]
    alone = decoder([level[1:] for level in levels], mask_features[1:])["pred_masks"]
    torch.testing.assert_close(alone[0], both[1])


def test_gradients_reach_every_parameter():
    decoder = _decoder(in_channels=8).train()
    outputs = decoder(*_features(8))
    loss = sum(o["pred_masks"].sum() + o["pred_logits"].sum() for o in [outputs, *outputs["aux_outputs"]])
    loss.backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None] == []


def test_masks_are_made_when_asked_for():
    prediction = Prediction(mask_embed=torch.ones(1, 2, 3), mask_features=torch.ones(1, 3, 4, 5))
    assert "pred_masks" not in prediction
    assert prediction["pred_masks"].tolist() == torch.full((1, 2, 4, 5), 3.0).tolist()
    assert prediction["pred_masks"] is prediction["pred_masks"]
    with pytest.raises(KeyError, match="pred_boxes"):
        prediction["pred_boxes"]


def test_wrong_input_is_refused():
    levels, mask_features = _features()
    with pytest.raises(ValueError, match="3 feature levels"):
        _decoder()(levels[:2], mask_features)
    with pytest.raises(ValueError, match="StandardTransformerDecoder"):
        _decoder(mask_classification=False)
    with pytest.raises(ValueError, match="divisor"):
        _decoder(nheads=5)


@pytest.mark.parametrize("pre_norm", [False, True])
@torch.no_grad()
def test_layers_of_the_standard_decoder_equal_torch(pre_norm):
    options = {"dropout": 0.0, "norm_first": pre_norm, "batch_first": True}
    queries, memory, nowhere = torch.randn(2, 5, 16), torch.randn(2, 7, 16), torch.zeros(16)
    ours, theirs = EncoderLayer(16, 4, 24, 0.0, pre_norm), nn.TransformerEncoderLayer(16, 4, 24, **options)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(memory, None), theirs(memory), atol=1e-5, rtol=1e-4)
    ours, theirs = DecoderLayer(16, 4, 24, 0.0, pre_norm), nn.TransformerDecoderLayer(16, 4, 24, **options)
    theirs.load_state_dict(ours.state_dict())
    expected = theirs(queries, memory)
    torch.testing.assert_close(ours(queries, nowhere, memory, nowhere), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("classes", [True, False])
def test_the_standard_decoder_predicts_after_each_layer(classes):
    decoder = StandardTransformerDecoder(
        8,
        classes,
        num_classes=3,
        hidden_dim=16,
        num_queries=5,
        nheads=4,
        dropout=0.1,
        dim_feedforward=24,
        enc_layers=1,
        dec_layers=3,
        pre_norm=False,
        deep_supervision=True,
        mask_dim=12,
        enforce_input_project=False,
    )
    outputs = decoder(torch.randn(2, 8, 4, 6), torch.randn(2, 12, 16, 24))
    assert outputs["pred_masks"].shape == (2, 5, 16, 24)
    assert len(outputs["aux_outputs"]) == 2
    assert ("pred_logits" in outputs) == classes
    names = set(decoder.state_dict())
    assert {"transformer.encoder.layers.0.norm2.bias", "transformer.decoder.layers.2.norm3.weight"} <= names
    assert {"transformer.decoder.norm.weight", "query_embed.weight", "input_proj.weight"} <= names
    assert ("class_embed.weight" in names) == classes and "transformer.encoder.norm.weight" not in names
