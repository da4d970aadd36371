"""The encoder in blocks equals its layers one after another."""

import pytest
import torch
from torch import nn

from mask2former.modeling.pixel_decoder import encoder_blocks
from mask2former.modeling.pixel_decoder.msdeformattn import DeformableEncoderLayer, DeformableTransformer


def encoder(dropout: float = 0.0) -> DeformableTransformer:
    transformer = DeformableTransformer(channels=32, heads=4, layers=2, levels=3, dropout=dropout).eval()
    for parameter in transformer.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.1)
    return transformer


def levels() -> list[torch.Tensor]:
    return [torch.randn(2, 32, h, w) for h, w in ((2, 3), (4, 5), (7, 9))]


@pytest.mark.parametrize("rows", [1, 20, 1024])
@torch.no_grad()
def test_blocks_of_any_length_give_the_layers_results(rows, monkeypatch):
    monkeypatch.setattr(encoder_blocks, "ROWS", rows)
    transformer, inputs = encoder(), levels()
    before = [x.clone() for x in inputs]
    got = transformer(inputs)
    monkeypatch.setattr(encoder_blocks, "serves", lambda layer: False)
    for one, other, x, same in zip(got, transformer(inputs), inputs, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
        assert torch.equal(x, same), "the inputs were overwritten"


@torch.no_grad()
def test_bfloat16_keeps_sums_and_norms_in_float32():
    transformer, inputs = encoder(), levels()
    exact = transformer(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = transformer(inputs)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 1e-2 * other.norm()


@torch.no_grad()
def test_who_listens_or_drops_gets_the_layers():
    assert all(map(encoder_blocks.serves, encoder().encoder.layers))
    assert not encoder_blocks.serves(encoder(dropout=0.1).train().encoder.layers[0])
    layer = encoder().encoder.layers[0]
    layer.norm1.register_forward_hook(lambda *args: None)
    assert not encoder_blocks.serves(layer)
    assert not encoder_blocks.serves(encoder().double().encoder.layers[0])


@torch.no_grad()
def test_layers_with_different_heads_are_run_one_by_one():
    transformer = DeformableTransformer(16, 4, 2, 1, 0.0).eval()
    transformer.encoder.layers[1] = DeformableEncoderLayer(16, 2, 1, 0.0).eval()
    for layer in transformer.encoder.layers:
        nn.init.normal_(layer.self_attn.attention_weights.weight)
    x = torch.randn(1, 16, 5, 6)
    with torch.enable_grad():
        expected = transformer([x])[0].detach()
    torch.testing.assert_close(transformer([x])[0], expected, atol=1e-5, rtol=1e-5)
