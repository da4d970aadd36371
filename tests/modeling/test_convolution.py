"""One step up the feature pyramid by NNPACK equals the convolutions one after another."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from mask2former.modeling import convolution, pyramid_kernels
from mask2former.modeling.convolution import has_nnpack, serves, smoothed_sum, winograd

needs_nnpack = pytest.mark.skipif(not has_nnpack(), reason="this processor or build of PyTorch has no NNPACK")


def pyramid_step(**changes) -> tuple[Conv2d, Conv2d]:
    smooth = {"kernel_size": 3, "padding": 1, "bias": False, "norm": nn.GroupNorm(4, 16), "activation": F.relu}
    lateral = Conv2d(8, 16, 1, bias=False, norm=nn.GroupNorm(4, 16))
    convs = lateral, Conv2d(16, 16, **(smooth | changes))
    for conv in convs:
        for parameter in conv.parameters():
            nn.init.normal_(parameter)
    return convs


@needs_nnpack
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_step_equals_its_convolutions(memory_format):
    lateral, smooth = pyramid_step()
    features = torch.randn(2, 8, 21, 18).contiguous(memory_format=memory_format)
    coarse = torch.randn(2, 16, 11, 9).contiguous(memory_format=memory_format)
    assert serves(lateral, smooth, features)
    resized = F.interpolate(coarse, (21, 18), mode="bilinear", align_corners=False)
    expected = smooth(lateral(features) + resized)
    before = coarse.clone()
    got = smoothed_sum(lateral, smooth, features, coarse)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(coarse, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(21, 18), (1, 1), (11, 9), (5, 40)])
@pytest.mark.parametrize("biased", [False, True])
@torch.no_grad()
def test_norm_resize_and_sum_in_one_pass_equal_them_one_after_another(dtype, size, biased):
    norm, bias = nn.GroupNorm(4, 16, eps=0.1), 3 * torch.randn(16) if biased else None
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    product, coarse, out = torch.randn(16, *size).to(dtype), torch.randn(16, 11, 9), torch.empty(16, *size)
    product[4:8] += 100  # a mean far from 0 must not cost the variance its digits
    resized = F.interpolate(coarse[None].double(), size, mode="bilinear", align_corners=False)[0]
    exact = product.double() if bias is None else product.double() + bias[:, None, None]
    exact = F.group_norm(exact[None], 4, norm.weight.double(), norm.bias.double(), norm.eps)[0]
    pyramid_kernels.normalized_sum(product, bias, norm, coarse, out)
    torch.testing.assert_close(out.double(), exact + resized, atol=1e-4, rtol=1e-5)
    if dtype == torch.float32:
        pyramid_kernels.normalize_relu(product, bias, norm)
        torch.testing.assert_close(product.double(), exact.relu(), atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_a_nan_in_a_map_reaches_its_group_and_no_other():
    norm, x = nn.GroupNorm(2, 4), torch.randn(4, 3, 3)
    x[0, 1, 1] = float("nan")
    pyramid_kernels.normalize_relu(x, None, norm)
    assert x[:2].isnan().all() and x[2:].isfinite().all()


@needs_nnpack
@torch.no_grad()
def test_winograds_error_stays_below_three_hundred_thousandths_of_the_largest_value():
    x, weight = torch.randn(2, 64, 40, 40), torch.randn(64, 64, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    got = winograd(x, weight, None)
    assert (got - exact).abs().max() < 3e-5 * exact.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_size": 1, "padding": 0},
        {"padding": 2, "dilation": 2},
        {"groups": 4},
        {"norm": None},
        {"norm": nn.BatchNorm2d(16)},
        {"activation": None},
    ],
)
@torch.no_grad()
def test_any_other_convolution_is_left_to_itself(changes):
    assert not serves(*pyramid_step(**changes), torch.zeros(1, 8, 4, 4))


@needs_nnpack
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_a_step_are_those_of_its_convolutions(bias):
    lateral, smooth = pyramid_step(bias=bias)
    features, coarse = torch.randn(2, 8, 21, 18, requires_grad=True), torch.randn(2, 16, 11, 9, requires_grad=True)
    weights = torch.randn(2, 16, 21, 18)  # of the results, so that no gradient cancels out
    result = smoothed_sum(lateral, smooth, features, coarse)
    got = torch.autograd.grad((result * weights).sum(), [features, coarse, *lateral.parameters(), *smooth.parameters()])
    exact = [x.detach().double().requires_grad_() for x in (features, coarse)]
    lateral, smooth = lateral.double(), smooth.double()
    resized = F.interpolate(exact[1], (21, 18), mode="bilinear", align_corners=False)
    result = smooth(lateral(exact[0]) + resized)
    expected = torch.autograd.grad((result * weights).sum(), [*exact, *lateral.parameters(), *smooth.parameters()])
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


@needs_nnpack
def test_only_what_asks_for_a_gradient_gets_one():
    lateral, smooth = pyramid_step(bias=True)
    smooth.weight.requires_grad_(False)
    smoothed_sum(lateral, smooth, torch.randn(1, 8, 6, 6), torch.randn(1, 16, 3, 3)).sum().backward()
    assert smooth.weight.grad is None
    assert smooth.bias.grad is not None
    assert lateral.weight.grad.any()


@needs_nnpack
def test_a_convolution_to_be_differentiated_is_taken_over_if_it_is_large(monkeypatch):
    lateral, smooth = pyramid_step()
    features = torch.zeros(1, 8, 4, 4)
    assert not serves(lateral, smooth, features)
    monkeypatch.setattr(convolution, "PIXELS", 16)
    assert not serves(lateral, smooth, features)
    monkeypatch.setattr(convolution, "CHANNELS", 16)
    assert serves(lateral, smooth, features)


@torch.no_grad()
def test_a_pytorch_without_nnpack_keeps_its_convolutions(monkeypatch):
    monkeypatch.delattr(torch, "_nnpack_spatial_convolution")
    assert not serves(*pyramid_step(), torch.zeros(1, 8, 4, 4))


@torch.no_grad()
def test_without_numba_the_convolutions_are_kept(monkeypatch):
    monkeypatch.setenv("MASK2FORMER_DEFORM_ATTN", "reference")
    assert not serves(*pyramid_step(), torch.zeros(1, 8, 4, 4))


@needs_nnpack
@torch.no_grad()
def test_under_autocast_the_product_alone_is_in_bfloat16():
    lateral, smooth = pyramid_step(norm=nn.GroupNorm(4, 16))
    features, coarse = torch.randn(2, 8, 21, 18), torch.randn(2, 16, 11, 9)
    with torch.autocast("cpu", torch.bfloat16):
        assert serves(lateral, smooth, features) and serves(lateral, smooth, features.bfloat16())
        assert not serves(lateral, smooth, features.half())
        got = smoothed_sum(lateral, smooth, features, coarse)
    rounded = F.conv2d(features.bfloat16(), lateral.weight.bfloat16()).float()
    resized = F.interpolate(coarse, (21, 18), mode="bilinear", align_corners=False)
    torch.testing.assert_close(got, smooth(lateral.norm(rounded) + resized), atol=2e-5, rtol=1e-5)


def test_gradients_under_autocast_and_hooks_leave_it_to_the_convolutions(monkeypatch):
    monkeypatch.setattr(convolution, "CHANNELS", 16)
    monkeypatch.setattr(convolution, "PIXELS", 16)
    lateral, smooth = pyramid_step()
    features = torch.zeros(1, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert not serves(lateral, smooth, features)
    with torch.no_grad():
        assert not serves(lateral, smooth, features.double())
        smooth.norm.register_forward_hook(lambda *args: None)
        assert not serves(lateral, smooth, features)


def test_a_projection_is_a_product_for_each_pixel_and_nothing_else():
    assert convolution.is_projection(Conv2d(6, 5, 1)) and convolution.is_projection(Conv2d(6, 5, 1, bias=False))
    assert not convolution.is_projection(Conv2d(6, 5, 3, padding=1))
    assert not convolution.is_projection(Conv2d(6, 5, 1, norm=nn.GroupNorm(1, 5)))
    assert not convolution.is_projection(Conv2d(6, 5, 1, activation=F.relu))
    assert not convolution.is_projection(nn.Conv2d(6, 5, 1))
    hooked = Conv2d(6, 5, 1)
    hooked.register_forward_hook(lambda *args: None)
    assert not convolution.is_projection(hooked)
