"""The benchmarks' plain side computes what the model computes, and none of the model's shortcuts."""

import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import plain

    yield plain
    sys.modules.pop("plain", None)


@torch.no_grad()
def test_shortcuts_are_taken_here_and_not_on_the_plain_side(plain):
    from mask2former.modeling import convolution, packed_linear
    from mask2former.modeling.backbone import swin
    from mask2former.modeling.pixel_decoder import msdeformattn

    x = torch.zeros(1)
    for module in (convolution, packed_linear):
        with plain.unfused():
            assert not module.is_ordinary(x)
        assert module.is_ordinary(x)
    for module in (msdeformattn, swin):
        assert module.may_run_in_blocks(x)
        with plain.unfused():
            assert not module.may_run_in_blocks(x)
        assert module.may_run_in_blocks(x)


@torch.no_grad()
def test_both_sides_of_the_pixel_decoder_agree(plain):
    from detectron2.layers import ShapeSpec

    from mask2former.modeling.pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

    shapes = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}
    decoder = MSDeformAttnPixelDecoder(
        shapes,
        transformer_in_features=["res3", "res4", "res5"],
        transformer_dropout=0.0,
        transformer_nheads=4,
        transformer_enc_layers=2,
        conv_dim=32,
        mask_dim=32,
        norm="GN",
        common_stride=4,
    ).eval()
    features = {name: torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride) for name, s in shapes.items()}
    with plain.unfused(), mock.patch.object(torch, "_nnpack_spatial_convolution") as nnpack:
        expected = decoder.forward_features(features)
        assert not nnpack.called
    got = decoder.forward_features(features)
    for one, other in zip((got[0], *got[2]), (expected[0], *expected[2]), strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_the_picture_of_a_call_has_a_row_for_each_depth_and_the_longest_first(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import flame

    def node(seconds, **children):
        made = flame.Node()
        made.seconds, made.children = seconds, children
        return made

    tree = node(10.0, short=node(1.0), long=node(8.0, inner=node(4.0), tiny=node(0.001)))
    assert flame._depth(tree, tree.seconds) == 2
    boxes = []
    pen = type("Pen", (), {"rectangle": lambda self, box, colour: boxes.append(box), "text": lambda *a, **k: None})()
    flame._draw(pen, tree, 0.0, 0, tree.seconds)
    starts = [round(box[0] / flame.WIDTH, 3) for box in boxes]
    assert starts == [0, 0, 0.8]  # long, what it calls, and short after it; what is too narrow is left out
    picture = tmp_path / "flame.png"
    flame.flame(lambda: torch.nn.Linear(64, 64)(torch.ones(64, 64)), "a layer", picture)
    assert picture.stat().st_size > 1000
