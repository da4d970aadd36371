"""Linear layers in oneDNN's order of weights equal PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former.modeling import packed_linear as module
from mask2former.modeling.packed_linear import may_run_in_blocks, packed_linear


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_it_equals_the_layer_for_any_number_of_rows(bias, activation, onednn, monkeypatch):
    if not onednn:
        monkeypatch.setattr(module, "_has_onednn", lambda dtype: False)
    layer = nn.Linear(96, 40, bias)
    after = {"none": nn.Identity(), "relu": F.relu, "gelu": F.gelu}[activation]
    apply = packed_linear(layer, torch.float32, 64, activation)
    for rows in (64, 7, 1):
        x = torch.randn(rows, 96)
        torch.testing.assert_close(apply(x), after(layer(x)), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_bfloat16_comes_of_sums_in_float32():
    layer = nn.Linear(96, 40)
    x = torch.randn(64, 96).bfloat16()
    got = packed_linear(layer, torch.bfloat16, 64, "gelu")(x)
    expected = F.gelu(F.linear(x.float(), layer.weight.bfloat16().float(), layer.bias.bfloat16().float()))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=1e-2, rtol=1e-2)


def test_blocks_are_for_ordinary_inference_only():
    x = torch.zeros(1)
    assert not may_run_in_blocks(x)
    with torch.no_grad():
        assert may_run_in_blocks(x)
        assert not may_run_in_blocks(x.to("meta"))
        with FlopCounterMode(display=False):
            assert not may_run_in_blocks(x)
