"""The Triton back end: on a CUDA device, or anywhere in Triton's interpreter (TRITON_INTERPRET=1)."""

import os

import pytest
import torch

from mask2former.modeling.ops.reference import ms_deform_attn_reference, sampling_points

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs a CUDA device or TRITON_INTERPRET=1"
)
DEVICE = "cpu" if INTERPRETED else "cuda"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [3, 32])
def test_values_and_gradients_equal_the_reference_in_float64(dtype, channels):
    from mask2former.modeling.ops import triton_kernels

    shapes = [(5, 7), (1, 1)]
    value = torch.randn(2, 36, 2, channels).to(dtype)
    locations = torch.empty(2, 17, 2, 2, 2, 2).uniform_(-0.4, 1.4)
    locations[0, :3] = 1e6
    weights = torch.rand(2, 17, 2, 2, 2)
    grad = torch.randn(2, 17, 2 * channels)
    leaves = [x.double().requires_grad_() for x in (value, locations, weights)]
    expected = ms_deform_attn_reference(leaves[0], shapes, *leaves[1:])
    expected.backward(grad.double())

    flat = [x.to(DEVICE) for x in (value, locations.flatten(2), weights.flatten(2))]
    got = triton_kernels.forward(flat[0], shapes, *flat[1:], None).cpu()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=torch.finfo(dtype).eps)
    grad_value, grad_inputs = triton_kernels.backward(grad.to(DEVICE), flat[0], shapes, *flat[1:], None)
    wanted = torch.cat([leaves[1].grad.flatten(2), leaves[2].grad.flatten(2)], -1)
    torch.testing.assert_close(grad_value.cpu().double(), leaves[0].grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad_inputs.cpu().double(), wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("channels", "points"), [(3, 3), (32, 4)])
def test_offsets_and_logits_equal_the_reference_in_float64(dtype, channels, points):
    from mask2former.modeling.ops import triton_kernels

    shapes = [(5, 7), (1, 1), (2, 3)]
    value = torch.randn(2, 42, 2, channels).to(dtype)
    centers = torch.rand(19, 2)
    projected = (torch.randn(2, 19, 2 * 3 * points * 3) * 2).to(dtype)
    projected[0, :3, : 2 * 3 * points * 2] = 1e4
    grad = torch.randn(2, 19, 2 * channels)
    leaves = [x.double().requires_grad_() for x in (value, projected)]
    located = sampling_points(shapes, centers.double(), leaves[1], 2)
    expected = ms_deform_attn_reference(leaves[0], shapes, *located)
    expected.backward(grad.double())

    tensors = [x.to(DEVICE) for x in (value, projected, centers)]
    got = triton_kernels.forward(tensors[0], shapes, tensors[1], None, tensors[2]).cpu()
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=torch.finfo(dtype).eps)
    grad_value, grad_projected = triton_kernels.backward(
        grad.to(DEVICE), tensors[0], shapes, tensors[1], None, tensors[2]
    )
    torch.testing.assert_close(grad_value.cpu().double(), leaves[0].grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grad_projected.cpu().double(), leaves[1].grad, atol=1e-3, rtol=1e-4)


def test_nothing_to_do():
    from mask2former.modeling.ops import triton_kernels

    value = torch.zeros(0, 4, 1, 2, device=DEVICE)
    empty = torch.zeros(0, 3, 2, device=DEVICE), torch.zeros(0, 3, 1, device=DEVICE)
    assert triton_kernels.forward(value, [(2, 2)], *empty, None).shape == (0, 3, 2)
    grad_value, grad_inputs = triton_kernels.backward(
        torch.zeros(0, 3, 2, device=DEVICE), value, [(2, 2)], *empty, None
    )
    assert grad_value.shape == value.shape and grad_inputs.shape == (0, 3, 3)
