"""One step up the feature pyramid by NNPACK equals the convolutions one after another."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from mask2former.modeling import convolution
from mask2former.modeling.convolution import serves, smoothed_sum, to_channels_last


def pyramid_step(**changes) -> tuple[Conv2d, Conv2d]:
    smooth = {"kernel_size": 3, "padding": 1, "bias": False, "norm": nn.GroupNorm(4, 16), "activation": F.relu}
    lateral = Conv2d(8, 16, 1, bias=False, norm=nn.GroupNorm(4, 16))
    convs = lateral, Conv2d(16, 16, **(smooth | changes))
    for conv in convs:
        for parameter in conv.parameters():
            nn.init.normal_(parameter)
    return convs


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_a_step_equals_its_convolutions(memory_format):
    lateral, smooth = pyramid_step()
    features = torch.randn(2, 8, 21, 18).contiguous(memory_format=memory_format)
    coarse = torch.randn(2, 16, 11, 9).contiguous(memory_format=memory_format)
    if not torch.backends.nnpack.is_available():
        pytest.skip("this processor or build of PyTorch has no NNPACK")
    assert serves(lateral, smooth, features)
    resized = F.interpolate(coarse, (21, 18), mode="bilinear", align_corners=False)
    expected = smooth(lateral(features) + resized)
    before = coarse.clone()
    got = smoothed_sum(lateral, smooth, features, coarse)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(coarse, before)


@torch.no_grad()
def test_winograds_error_stays_below_three_hundred_thousandths_of_the_largest_value():
    if not torch.backends.nnpack.is_available():
        pytest.skip("this processor or build of PyTorch has no NNPACK")
    x, weight = torch.randn(1, 64, 40, 40), torch.randn(64, 64, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    got = torch._nnpack_spatial_convolution(x, weight, None, 1)
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


def test_gradients_autocast_and_hooks_leave_it_to_the_convolutions():
    lateral, smooth = pyramid_step()
    features = torch.zeros(1, 8, 4, 4)
    assert not serves(lateral, smooth, features)
    with torch.no_grad():
        assert not serves(lateral, smooth, features.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert not serves(lateral, smooth, features)
        smooth.norm.register_forward_hook(lambda *args: None)
        assert not serves(lateral, smooth, features)


@torch.no_grad()
def test_a_projection_turns_channels_to_the_end():
    conv, x = Conv2d(6, 5, 1), torch.randn(2, 6, 7, 9)
    assert convolution.is_projection(conv, x)
    got = to_channels_last(conv, x)
    torch.testing.assert_close(got, conv(x))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert not convolution.is_projection(conv, x.contiguous(memory_format=torch.channels_last))
