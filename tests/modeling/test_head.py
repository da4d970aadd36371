"""Heads: names in older checkpoints, what the decoder attends to, and the per-pixel baselines."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from detectron2.projects.deeplab import add_deeplab_config

from mask2former import add_maskformer2_config
from mask2former.modeling.head import rename_old_keys

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


def _cfg(*options):
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    settings = {
        "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
        "MODEL.SEM_SEG_HEAD.IN_FEATURES": list(SHAPES),
        "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
        "MODEL.SEM_SEG_HEAD.MASK_DIM": 16,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3,
        "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
        "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 3,
        "MODEL.MASK_FORMER.DEC_LAYERS": 2,
        "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "multi_scale_pixel_decoder",
    }
    cfg.merge_from_list([part for setting in settings.items() for part in setting])
    cfg.merge_from_list(list(options))
    return cfg


def _features(size=64):
    return {name: torch.randn(2, s.channels, size // s.stride, size // s.stride) for name, s in SHAPES.items()}


STANDARD = ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder"]
ENCODER = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder"]
ENCODER += ["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1]


@pytest.mark.parametrize("prefix", ["sem_seg_head.", ""])
def test_old_names_become_present_ones(prefix):
    old = ["adapter_1.weight", "pixel_decoder.layer_1.weight", "predictor.static_query.weight", "predictor.x.bias"]
    new = ["pixel_decoder.adapter_1.weight", "pixel_decoder.layer_1.weight", "predictor.query_feat.weight"]
    new.append("predictor.x.bias")
    state = {prefix + name: i for i, name in enumerate(old)}
    if prefix:
        state["backbone.static_query"] = 9
        new.append("../backbone.static_query")
    for _ in range(2):  # a second time changes nothing
        rename_old_keys(state, prefix)
        names = {name.removeprefix(prefix) if name.startswith(prefix) else f"../{name}" for name in state}
        assert names == set(new)
    assert state[prefix + "pixel_decoder.adapter_1.weight"] == 0


@pytest.mark.parametrize("metadata", ["kept", "lost"])
@pytest.mark.parametrize("age", ["new", "static_query", "MaskFormer"])
def test_checkpoints_of_every_age_load_completely(metadata, age):
    head = build_sem_seg_head(_cfg(), SHAPES)
    state = head.state_dict()
    renamed = type(state)()
    if metadata == "kept":
        renamed._metadata = state._metadata
        if age == "MaskFormer":
            renamed._metadata[""]["version"] = 1
    for name, value in state.items():
        if age != "new":
            name = name.replace("query_feat", "static_query")
        if age == "MaskFormer":
            name = name.removeprefix("pixel_decoder.")
        renamed[name] = value + 1
    expected = {name: value.clone() + 1 for name, value in state.items()}
    head.load_state_dict(renamed)  # strict: nothing is missing or left over
    torch.testing.assert_close(dict(head.state_dict()), expected)


def test_versions_are_the_published_ones():
    metadata = build_sem_seg_head(_cfg(), SHAPES).state_dict()._metadata
    assert metadata[""]["version"] == 2 and metadata["predictor"]["version"] == 2


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", *STANDARD],
        ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "pixel_embedding", *STANDARD],
        ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder", *STANDARD, *ENCODER],
    ],
    ids=["multi scale", "res5", "pixel embedding", "encoder"],
)
def test_the_decoder_attends_to_what_the_config_names(options):
    outputs = build_sem_seg_head(_cfg(*options), SHAPES)(_features())
    assert outputs["pred_masks"].shape == (2, 3, 16, 16) and outputs["pred_logits"].shape == (2, 3, 4)


def test_impossible_choices_are_explained():
    with pytest.raises(ValueError, match="multi_scale_pixel_decoder"):
        build_sem_seg_head(_cfg("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res9", *STANDARD), SHAPES)
    head = build_sem_seg_head(
        _cfg("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder", *STANDARD), SHAPES
    )
    with pytest.raises(ValueError, match="TransformerEncoderPixelDecoder"):
        head(_features())
    plus = ["MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselinePlusHead", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 7]
    with pytest.raises(ValueError, match="7"):
        build_sem_seg_head(_cfg(*plus, *STANDARD), SHAPES)


@pytest.mark.parametrize("name", ["PerPixelBaselineHead", "PerPixelBaselinePlusHead"])
def test_per_pixel_heads_train_and_predict(name):
    options = ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", *STANDARD, "MODEL.SEM_SEG_HEAD.NAME", name]
    head = build_sem_seg_head(_cfg(*options, "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0), SHAPES)
    targets = torch.randint(3, (2, 64, 64))
    targets[:, :8] = 255
    nothing, losses = head(_features(), targets)
    assert nothing is None
    assert sorted(losses) == (["loss_sem_seg", "loss_sem_seg_0"] if "Plus" in name else ["loss_sem_seg"])
    sum(losses.values()).backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []
    scores, nothing = head.eval()(_features())
    assert scores.shape == (2, 3, 64, 64) and nothing == {}


def test_per_pixel_loss_by_hand():
    options = ["MODEL.SEM_SEG_HEAD.NAME", "PerPixelBaselineHead", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 2.0]
    head = build_sem_seg_head(_cfg(*options), SHAPES)
    torch.nn.init.zeros_(head.predictor.weight)
    targets = torch.zeros(2, 64, 64, dtype=torch.int64)
    _, losses = head(_features(), targets)
    torch.testing.assert_close(losses["loss_sem_seg"], 2 * torch.tensor(3.0).log())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_only_keys_and_values_of_the_finer_levels_are_rounded(dtype, monkeypatch):
    from mask2former.modeling.transformer_decoder.multi_scale import (
        CrossAttentionLayer,
        MultiScaleMaskedTransformerDecoder,
    )

    decoder = MultiScaleMaskedTransformerDecoder(
        16, num_classes=3, hidden_dim=16, num_queries=4, nheads=2, dim_feedforward=8, dec_layers=3, pre_norm=False,
        mask_dim=16, enforce_input_project=False,
    ).eval()  # fmt: skip
    seen = []
    forward = CrossAttentionLayer.forward

    def spy(layer, queries, keys, values, position, allowed):
        seen.append((queries.dtype, keys.dtype, values.dtype))
        return forward(layer, queries, keys, values, position, allowed)

    monkeypatch.setattr(CrossAttentionLayer, "forward", spy)
    levels = [torch.randn(1, 16, n, n) for n in (2, 4, 8)]
    features = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        rounded = decoder(levels, features, keys_dtype=dtype)["pred_masks"]
        exact = decoder(levels, features)["pred_masks"]
    assert seen[:3] == [(torch.float32,) * 3, *[(torch.float32, dtype, dtype)] * 2]
    assert seen[3:] == [(torch.float32,) * 3] * 3
    assert rounded.dtype == torch.float32 and 0 < (rounded - exact).norm() < 0.02 * exact.norm()


DEFORMABLE = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"]


@pytest.mark.parametrize("layers", [0, 1])
def test_without_gradients_the_queries_go_through_the_last_convolution(layers, monkeypatch):
    cfg = _cfg(*DEFORMABLE, "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", layers)
    head, given, seen = build_sem_seg_head(cfg, SHAPES).eval(), _features(), []
    last = head.pixel_decoder.mask_features
    forward = type(last).forward
    monkeypatch.setattr(type(last), "forward", lambda conv, x: seen.append(conv) or forward(conv, x))
    expected = head(given)  # with gradients, as published
    assert last in seen
    seen.clear()
    with torch.no_grad():
        got = head(given)
    assert last not in seen
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_hook_on_the_last_convolution_is_called():
    head, seen = build_sem_seg_head(_cfg(*DEFORMABLE), SHAPES).eval(), []
    head.pixel_decoder.mask_features.register_forward_hook(lambda module, given, result: seen.append(result.shape))
    assert head(_features())["pred_masks"].shape == (2, 3, 16, 16)
    assert seen == [(2, 16, 16, 16)]


@torch.no_grad()
def test_under_autocast_the_decoder_works_in_float32_and_is_told_the_type_of_the_keys(monkeypatch):
    head, seen = build_sem_seg_head(_cfg(*DEFORMABLE), SHAPES).eval(), []
    forward = type(head.predictor).forward

    def spy(decoder, levels, mask_features, mask=None, **further):
        seen.append((levels[0].dtype, mask_features.dtype, torch.is_autocast_enabled("cpu"), further["keys_dtype"]))
        return forward(decoder, levels, mask_features, mask, **further)

    monkeypatch.setattr(type(head.predictor), "forward", spy)
    with torch.autocast("cpu", torch.bfloat16):
        masks = head(_features())["pred_masks"]
    assert seen == [(torch.float32, torch.float32, False, torch.bfloat16)] and masks.dtype == torch.float32
