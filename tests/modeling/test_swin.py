"""Swin against plain definitions: who may look at whom, shapes at odd sizes, freezing, checkpointing."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor

from mask2former.modeling.backbone import swin_blocks
from mask2former.modeling.backbone.swin import (
    PatchMerging,
    SwinBlock,
    SwinTransformer,
    from_windows,
    shift_mask,
    to_windows,
)


def tiny(**changes) -> SwinTransformer:
    arguments = {
        "in_channels": 3,
        "pretrain_img_size": 32,
        "patch_size": 4,
        "embed_dim": 8,
        "depths": [2, 2, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "window_size": 3,
        "mlp_ratio": 2.0,
        "qkv_bias": True,
        "qk_scale": None,
        "drop_rate": 0.0,
        "attn_drop_rate": 0.0,
        "drop_path_rate": 0.0,
        "ape": False,
        "patch_norm": True,
        "out_features": ["res2", "res3", "res4", "res5"],
        "use_checkpoint": False,
    }
    return SwinTransformer(**(arguments | changes))


def block(shift: int, window: int = 4, channels: int = 8, heads: int = 2) -> SwinBlock:
    made = SwinBlock(
        channels,
        heads,
        window,
        shift=shift,
        mlp_ratio=2.0,
        qkv_bias=True,
        qk_scale=None,
        drop=0.0,
        attn_drop=0.0,
        drop_path=0.0,
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def pixel_by_pixel(made: SwinBlock, x: Tensor) -> Tensor:
    """The block on one image (H, W, C): each pixel looks at those of its cell of a grid moved by the shift."""
    height, width, channels = x.shape
    window, shift, attn = made.window, made.shift, made.attn
    padded = F.pad(made.norm1(x), (0, 0, 0, -width % window, 0, -height % window))
    queries, keys, values = attn.qkv(padded).unflatten(-1, (3, attn.heads, channels // attn.heads)).unbind(2)
    out = torch.zeros(height, width, channels)
    for i in range(height):
        for j in range(width):
            cell = ((i - shift) // window, (j - shift) // window)
            seen = [
                (y, x)
                for y in range(padded.shape[0])
                for x in range(padded.shape[1])
                if ((y - shift) // window, (x - shift) // window) == cell
            ]
            for head in range(attn.heads):
                logits = torch.stack(
                    [
                        queries[i, j, head] @ keys[y, x, head] * (channels // attn.heads) ** -0.5
                        + attn.relative_position_bias_table[
                            (i - y + window - 1) * (2 * window - 1) + j - x + window - 1, head
                        ]
                        for y, x in seen
                    ]
                )
                mixed = sum(p * values[y, x, head] for p, (y, x) in zip(logits.softmax(0), seen, strict=True))
                out[i, j].unflatten(0, (attn.heads, -1))[head] = mixed
    x = x + attn.proj(out)
    return x + made.mlp.fc2(F.gelu(made.mlp.fc1(made.norm2(x))))


@pytest.mark.parametrize("in_groups", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7), (3, 2)])
@torch.no_grad()
def test_a_block_is_attention_inside_the_cells_of_a_moved_grid(shift, height, width, in_groups, monkeypatch):
    monkeypatch.setattr(swin_blocks, "ROWS", 48)  # three windows
    made = block(shift).train(not in_groups)
    images = torch.randn(2, height, width, 8)
    got = made(images)
    for image, result in zip(images, got, strict=True):
        torch.testing.assert_close(result, pixel_by_pixel(made, image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [3, 7])
@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1), (90, 130)])
def test_prediction_in_groups_of_windows_equals_the_differentiable_way(size, window, monkeypatch):
    monkeypatch.setattr(swin_blocks, "ROWS", 100)
    model = tiny(window_size=window).eval()
    images = torch.randn(2, 3, *size)
    expected = model(images)
    with torch.no_grad():
        got = model(images)
    for name in expected:
        assert expected[name].requires_grad and not got[name].requires_grad
        torch.testing.assert_close(got[name], expected[name], atol=1e-5, rtol=1e-5)


def test_prediction_in_bfloat16_rounds_as_the_differentiable_way_does():
    model = tiny(window_size=7).eval()
    images = torch.randn(1, 3, 90, 130)
    exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images)
        with torch.no_grad():
            got = model(images)
    for name in exact:
        assert got[name].dtype == expected[name].dtype == torch.bfloat16
        off = (expected[name].detach() - exact[name].detach()).abs().mean()
        assert 0 < (got[name] - exact[name].detach()).abs().mean() < 1.2 * off


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(("height", "width"), [(14, 21), (20, 15), (2, 3)])
def test_groups_hold_every_pixel_once_and_only_the_last_need_padding_or_a_mask(shift, height, width):
    found = swin_blocks.groups(2, height, width, 7, shift, 4, torch.device("cpu"))
    pixels = torch.cat([group.pixels for group in found])
    assert pixels.sort()[0].tolist() == list(range(2 * height * width))
    assert sum(group.windows for group in found) == 2 * -(-height // 7) * -(-width // 7)
    assert max(group.windows for group in found) <= 4
    simple = [group.mask is None and group.places is None for group in found]
    assert simple == sorted(simple, reverse=True)
    assert any(simple) == (height > 7 and width > 7)


def test_prediction_sees_new_weights_however_they_came():
    made = block(0).eval()
    x = torch.randn(1, 4, 4, 8)
    with torch.inference_mode():
        before = made(x)
        made.mlp.fc2.weight.data.zero_()
        made.mlp.fc2.bias.data.zero_()
        after = made(x)
    assert not torch.allclose(before, after)
    made.mlp.fc1.weight.data.mul_(7)
    with torch.inference_mode():
        assert torch.equal(made(x), after)


@torch.no_grad()
def test_prediction_calls_what_took_the_place_of_a_layer_and_who_listens_to_one():
    made = block(2).eval()
    x = torch.randn(1, 8, 8, 8)
    expected = made(x)
    seen = []
    for part in (made.attn, made.attn.proj, made.mlp.fc1, made.norm2):
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(made(x), expected, atol=1e-5, rtol=1e-5)
        handle.remove()
        assert seen
        seen.clear()
    layer = made.attn.qkv
    made.attn.qkv = torch.nn.Sequential(layer, torch.nn.Identity())
    torch.testing.assert_close(made(x), expected, atol=1e-5, rtol=1e-5)
    made.attn.qkv = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 24))
    assert not torch.allclose(made(x), expected)


def test_windows_and_back():
    x = torch.arange(24.0).reshape(1, 4, 6, 1)
    windows = to_windows(x, 2)
    assert windows[0, :2, :, 0].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9]]
    assert torch.equal(from_windows(windows, 4, 6, 2), x)


def test_the_mask_parts_only_what_the_roll_brought_together():
    mask = shift_mask(4, 4, 2, 1, torch.device("cpu"))
    assert mask.shape == (4, 4, 4)
    assert not mask[0].any()  # wholly inside the image
    assert mask[1].tolist() == [[0, -100, 0, -100], [-100, 0, -100, 0]] * 2  # right edge meets left edge
    assert (mask[3] == 0).sum() == 4  # four corners of the image, each alone


def test_merging_takes_the_four_neighbours_column_by_column():
    merging = PatchMerging(1)
    merging.norm = torch.nn.Identity()
    merging.reduction = torch.nn.Identity()
    x = torch.arange(6.0).reshape(1, 2, 3, 1)
    assert merging(x)[0, 0].tolist() == [[0, 3, 1, 4], [2, 5, 0, 0]]


@pytest.mark.parametrize("size", [(64, 96), (33, 50), (1, 1), (7, 130)])
@torch.no_grad()
def test_feature_sizes_are_the_image_size_over_the_stride_rounded_up(size):
    features = tiny().eval()(torch.randn(1, 3, *size))
    for name, stride in {"res2": 4, "res3": 8, "res4": 16, "res5": 32}.items():
        assert features[name].shape[-2:] == tuple(-(-side // stride) for side in size)
    assert [features[name].shape[1] for name in features] == [8, 16, 32, 64]


@torch.no_grad()
def test_an_image_alone_equals_itself_in_a_batch():
    model = tiny().eval()
    images = torch.randn(3, 3, 60, 44)
    together = model(images)
    alone = model(images[1:2])
    for name in together:
        torch.testing.assert_close(together[name][1:2], alone[name], atol=1e-5, rtol=1e-5)


def test_checkpointing_changes_no_gradient():
    images = torch.randn(2, 3, 40, 40)
    grads = []
    model = tiny(drop_path_rate=0.1)
    for use in (False, True):
        for layer in model.layers:
            layer.use_checkpoint = use
        torch.manual_seed(1)
        model.zero_grad()
        sum(x.square().mean() for x in model(images).values()).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*grads, strict=True))
    assert all(g.abs().sum() > 0 for g in grads[0])


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    made = block(0)
    made.drop_path = 0.25
    branch = made._drop_path(torch.ones(4000, 1, 1, 2))
    assert branch.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(branch[..., 0], branch[..., 1])
    assert branch.mean().item() == pytest.approx(1, abs=0.05)
    made.eval()
    assert made._drop_path(torch.ones(10, 1, 1, 2)).eq(1).all()


def test_freezing_counts_the_patch_embedding_first():
    model = tiny(frozen_stages=2).train()
    learned = {name.split(".")[0] + "." + name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("patch_embed", "layers.0")) for name in learned)
    assert {"layers.1", "layers.2", "layers.3"} <= learned
    assert not model.layers[0].training and model.layers[1].training


def test_position_embedding_is_resized_to_the_image():
    model = tiny(ape=True).eval()
    assert model.absolute_pos_embed.shape == (1, 8, 8, 8)
    assert model(torch.randn(1, 3, 48, 20))["res2"].shape == (1, 8, 12, 5)


def test_registered_name_shapes_and_wrong_features():
    assert "D2SwinTransformer" in BACKBONE_REGISTRY
    shapes = tiny(out_features=["res3", "res5"]).output_shape()
    assert shapes == {"res3": ShapeSpec(channels=16, stride=8), "res5": ShapeSpec(channels=64, stride=32)}
    with pytest.raises(ValueError, match=r"OUT_FEATURES is \['res6'\]; choose from"):
        tiny(out_features=["res6"])


def test_published_parameter_names_of_swin_t():
    with torch.device("meta"):
        model = tiny(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, mlp_ratio=4.0)
    state = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 27_520_698
    assert state["layers.2.blocks.5.attn.relative_position_bias_table"] == (169, 12)
    assert state["layers.2.blocks.5.attn.relative_position_index"] == (49, 49)
    assert state["layers.0.downsample.reduction.weight"] == (192, 384)
    assert state["layers.3.blocks.1.mlp.fc1.weight"] == (3072, 768)
    assert "layers.3.downsample.reduction.weight" not in state
    assert state["norm3.bias"] == (768,)
