"""Attention in bfloat16: in training on the CPU scores and sums are float32's, which is the faster there."""

import pytest
import torch
import torch.nn.functional as F

from mask2former.modeling.layers import Attention


@pytest.mark.parametrize("trained", [True, False])
def test_bfloat16_attends_in_float32_where_gradients_are_wanted(trained, monkeypatch):
    seen = []
    attend = F.scaled_dot_product_attention

    def spy(q, *args, **kwargs):
        seen.append(q.dtype)
        return attend(q, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    attention = Attention(16, 2)
    query, key = torch.randn(2, 3, 16), torch.randn(2, 7, 16)
    with torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16):
        got = attention(query, key, key)
    assert seen == [torch.float32 if trained else torch.bfloat16]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), attention(query, key, key), atol=2e-2, rtol=2e-2)


def test_what_may_not_be_looked_at_gets_no_gradient():
    attention = Attention(16, 2)
    key = torch.randn(1, 4, 16, requires_grad=True)
    allowed = torch.tensor([True, False, True, False]).expand(1, 1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(1, 3, 16), key, key, allowed).sum().backward()
    touched = key.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [True, False, True, False]
