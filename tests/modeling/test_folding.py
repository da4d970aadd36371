"""Folding a norm into its convolution changes no number beyond rounding."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn

from mask2former.modeling.folding import fold_norms


def block(norm: nn.Module, bias: bool = False) -> Conv2d:
    conv = Conv2d(3, 4, 3, stride=2, padding=1, bias=bias, norm=norm, activation=torch.relu)
    for name, shape in (("weight", 4), ("bias", 4), ("running_mean", 4)):
        with torch.no_grad():
            getattr(norm, name).copy_(torch.randn(shape))
    norm.running_var.copy_(torch.rand(4) + 0.5)
    return conv


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, nn.BatchNorm2d])
def test_a_folded_norm_gives_the_same_output(norm):
    plain = block(norm(4)).eval()
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    images = torch.randn(2, 3, 9, 7)
    assert "forward" in vars(folded), "nothing was folded"
    torch.testing.assert_close(folded(images), plain(images), rtol=1e-5, atol=1e-6)
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_gradients_pass_a_frozen_norm_as_before():
    plain = block(FrozenBatchNorm2d(4)).train()
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    images = torch.randn(2, 3, 9, 7)
    for conv in (plain, folded):
        conv(images).square().sum().backward()
    torch.testing.assert_close(folded.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-5)


def test_a_norm_in_training_uses_and_updates_batch_statistics():
    plain = block(nn.BatchNorm2d(4)).train()
    folded = copy.deepcopy(plain)
    fold_norms(folded)
    images = torch.randn(2, 3, 9, 7)
    torch.testing.assert_close(folded(images), plain(images))
    torch.testing.assert_close(folded.norm.running_mean, plain.norm.running_mean)


def test_new_weights_act_at_once():
    conv = block(FrozenBatchNorm2d(4)).eval()
    fold_norms(conv)
    images = torch.randn(1, 3, 8, 8)
    before = conv(images)
    conv.norm.weight.mul_(2)
    conv.norm.bias.mul_(2)
    conv.norm.running_mean.zero_()
    assert not torch.allclose(conv(images), before)


def test_a_copy_of_a_folded_model_has_its_own_weights():
    conv = block(FrozenBatchNorm2d(4)).eval()
    fold_norms(conv)
    other = copy.deepcopy(conv)
    images = torch.randn(1, 3, 8, 8)
    before = conv(images)
    with torch.no_grad():
        other.weight.zero_()
    torch.testing.assert_close(conv(images), before)
    assert not torch.allclose(other(images), before)


@pytest.mark.parametrize(("size", "folded"), [(3, False), (40, True)])
def test_without_gradients_a_norm_is_folded_where_that_is_less_work(size, folded):
    """The kernel has 27 numbers for each of its results, of which there are 4 or 400."""
    conv = block(FrozenBatchNorm2d(4)).eval()
    fold_norms(conv)
    called = []
    conv.norm.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        conv(torch.randn(1, 3, size, size))
    assert bool(called) != folded
