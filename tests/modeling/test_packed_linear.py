"""Linear layers in oneDNN's order of weights equal PyTorch's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mask2former.modeling import packed_linear as module
from mask2former.modeling.packed_linear import feed_forward, linear, linear_of_sum, may_run_in_blocks, packed_linear


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


@pytest.mark.parametrize("trained_rows", [1, 1000])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_in_training_are_the_layers(bias, relu, trained_rows, monkeypatch):
    monkeypatch.setattr(module, "TRAINED_ROWS", trained_rows)
    layer = nn.Linear(24, 40, bias)
    x, upstream = torch.randn(2, 33, 24, requires_grad=True), torch.randn(2, 33, 40)
    got = linear(layer, x, relu)
    exact_layer = nn.Linear(24, 40, bias).double()
    exact_layer.load_state_dict(layer.state_dict())
    exact_x = x.detach().double().requires_grad_()
    exact = exact_layer(exact_x)
    exact = exact.relu() if relu else exact
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)
    ours = torch.autograd.grad((got * upstream).sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad((exact * upstream).sum(), [exact_x, *exact_layer.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double(), b, atol=1e-5, rtol=1e-5)


def test_frozen_weights_get_no_gradient(monkeypatch):
    monkeypatch.setattr(module, "TRAINED_ROWS", 1)
    layer = nn.Linear(8, 4)
    layer.weight.requires_grad_(False)
    linear(layer, torch.randn(5, 8)).sum().backward()
    assert layer.weight.grad is None
    assert torch.equal(layer.bias.grad, torch.full((4,), 5.0))


def test_layers_with_hooks_and_autocast_run_as_they_are(monkeypatch):
    monkeypatch.setattr(module, "TRAINED_ROWS", 1)
    layer, calls = nn.Linear(8, 4), []
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(layer, torch.randn(5, 8)).dtype == torch.bfloat16
    layer.register_forward_hook(lambda *args: calls.append(1))
    linear(layer, torch.randn(5, 8))
    assert calls


def test_a_layer_of_a_sum_has_its_gradients_and_keeps_no_sum():
    layer, x, addend = nn.Linear(24, 40), torch.randn(2, 33, 24, requires_grad=True), torch.randn(33, 24)
    addend.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
        got = linear_of_sum(x, addend, layer.weight, layer.bias)
    assert sorted(map(id, kept)) == sorted(map(id, (x, addend, layer.weight)))
    upstream = torch.randn_like(got)
    gradients = torch.autograd.grad(got, [x, addend, *layer.parameters()], upstream)
    expected = torch.autograd.grad(layer(x + addend), [x, addend, *layer.parameters()], upstream)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_a_layer_of_a_sum_gives_gradients_to_those_who_ask():
    x, addend, weight, bias = torch.randn(1, 3, 4), torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    addend.requires_grad_()
    linear_of_sum(x, addend, weight, bias).sum().backward()
    torch.testing.assert_close(addend.grad, weight.sum(0).expand(3, 4))


@pytest.mark.parametrize("frozen", [[], ["weight"]])
def test_two_layers_keep_their_input_and_not_what_is_between_them(frozen):
    first, second = nn.Linear(16, 64), nn.Linear(64, 16)
    for name in frozen:
        getattr(second, name).requires_grad_(False)
    x = torch.randn(2, 1100, 16, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        got = feed_forward(first, second, x)
    assert (2200, 64) not in kept and (2200, 16) in kept
    expected = second(first(x).relu())
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    leaves = [x, *(p for layer in (first, second) for p in layer.parameters() if p.requires_grad)]
    upstream = torch.randn_like(got)
    gradients = (torch.autograd.grad(out, leaves, upstream) for out in (got, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_two_layers_of_few_rows_or_with_hooks_run_as_they_are():
    first, second = nn.Linear(4, 8), nn.Linear(8, 4)
    called = []
    second.register_forward_hook(lambda *_: called.append(1))
    for x in (torch.randn(3, 4), torch.randn(3000, 4)):
        torch.testing.assert_close(feed_forward(first, second, x), second(first(x).relu()))
    assert len(called) == 4
