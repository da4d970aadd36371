"""The sine encoding by its formula, and the cache of constants."""

import math

import pytest
import torch

from mask2former.modeling.position_encoding import cached_per_shape, sine_position_encoding


def test_each_entry_follows_the_formula():
    height, width, channels = 3, 5, 8
    got = sine_position_encoding(height, width, channels).reshape(height, width, channels)
    for y in range(height):
        for x in range(width):
            expected = []
            for position in ((y + 1) / (height + 1e-6) * 2 * math.pi, (x + 1) / (width + 1e-6) * 2 * math.pi):
                for pair in range(2):
                    angle = position / 10000 ** (2 * pair / 4)
                    expected += [math.sin(angle), math.cos(angle)]
            torch.testing.assert_close(got[y, x], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_channels_must_divide_by_four():
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sine_position_encoding(2, 2, 6)


def test_the_cache_keeps_the_most_recent_and_tells_types_apart():
    calls = []

    @cached_per_shape(maxsize=2)
    def constant(size: int) -> torch.Tensor:
        calls.append(size)
        return torch.zeros(size)

    assert constant(1) is constant(1)
    for size in (2, 1, 3, 1, 2):
        constant(size)
    assert calls == [1, 2, 3, 2]
    half = sine_position_encoding(2, 2, 8, None, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert sine_position_encoding(2, 2, 8).dtype == torch.float32


def test_what_a_prediction_cached_can_be_trained_with():
    with torch.inference_mode():
        sine_position_encoding(7, 3, 8)
    weight = torch.ones(8, requires_grad=True)
    (sine_position_encoding(7, 3, 8) * weight).sum().backward()
    assert weight.grad is not None


def test_fake_tensors_never_reach_the_cache():
    with torch._subclasses.FakeTensorMode():
        sine_position_encoding(11, 3, 8)
    assert type(sine_position_encoding(11, 3, 8)) is torch.Tensor
    with torch._subclasses.FakeTensorMode():
        assert type(sine_position_encoding(11, 3, 8)) is not torch.Tensor
