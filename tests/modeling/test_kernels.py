"""What the CPU's kernels share: threads, numbers by their bits, and the parts that are tested without a model."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit

from mask2former.modeling.backbone.window_kernels import window_attention
from mask2former.modeling.layers import Attention
from mask2former.modeling.masked_attention_kernels import BLOCK, masked_attention
from mask2former.modeling.ops import threads
from mask2former.modeling.ops.numba_tools import bfloat16_bits, bits, exponential, number
from mask2former.modeling.resizing import resized


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("own", [False, True], ids=["PyTorch's threads", "ordinary threads"])
def test_every_item_is_done_once_and_by_two_threads(two_threads, own, monkeypatch):
    if own:
        monkeypatch.setattr(threads, "PROCESS", -1)
    elif threads._openmp() is None:
        pytest.skip("PyTorch has no GNU OpenMP here")
    done, ids = [0] * 7, set()
    both = threading.Barrier(2, timeout=30)  # neither part ends before the other has begun

    def kernel(first, last, step):
        ids.add(threading.get_ident())
        both.wait()
        for item in range(first, last):
            done[item] += step

    threads.in_threads(kernel, 7, 10 * threads.WORK_PER_THREAD, (3,))
    assert done == [3] * 7 and len(ids) == 2


@pytest.mark.parametrize("own", [False, True])
def test_an_error_in_any_part_is_raised(two_threads, own, monkeypatch):
    if own:
        monkeypatch.setattr(threads, "PROCESS", -1)

    def kernel(first, last):
        if last == 2:  # the part that is not the caller's
            raise ZeroDivisionError("of the second part")

    with pytest.raises(ZeroDivisionError, match="of the second part"):
        threads.in_threads(kernel, 2, 10 * threads.WORK_PER_THREAD, ())


def test_little_work_stays_in_the_caller(two_threads):
    ids = []
    threads.in_threads(lambda first, last: ids.append((first, last, threading.get_ident())), 5, 10, ())
    assert ids == [(0, 5, threading.get_ident())]


def test_a_fork_works_although_its_parent_used_threads():
    code = """
import os, sys, torch
torch.set_num_threads(2)
from mask2former.modeling.layers import Attention
from mask2former.modeling.masked_attention_kernels import BLOCK, masked_attention
from mask2former.modeling.ops import threads
def kernel(first, last): done.append((first, last))
for process in ("parent", "child"):
    done = []
    if process == "child" and (pid := os.fork()):
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    threads.in_threads(kernel, 2, 10 * threads.WORK_PER_THREAD, ())
    assert sorted(done) == [(0, 1), (1, 2)]
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_bfloat16_is_rounded_as_pytorch_does():
    as_float = njit(lambda x: number(x))
    x = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3.4e38, 1e-40, float("inf"), -float("inf")])
    x = torch.cat([torch.randn(1000), x])
    rounded = x.bfloat16()
    assert np.array_equal([bfloat16_bits(value) for value in x.numpy()], bits(rounded))
    assert torch.equal(torch.tensor([as_float(value) for value in bits(rounded)]), rounded.float())
    assert np.isnan(as_float(np.uint16(bfloat16_bits(np.float32("nan")))))
    assert as_float(np.float32(1.1)) == np.float32(1.1)


def test_the_exponential_is_exact_to_two_units_in_the_last_place():
    x = np.linspace(-87, 88, 10001).astype(np.float32)
    got, exact = np.array([exponential(value) for value in x]), np.exp(x.astype(np.float64))
    assert np.abs(got / exact - 1).max() < 2 * np.finfo(np.float32).eps
    assert exponential(np.float32(-1000)) < 2e-38 and np.isnan(exponential(np.float32("nan")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("windows", "side", "heads", "channels"), [(5, 7, 3, 32), (2, 12, 2, 32), (3, 2, 1, 5)])
@pytest.mark.parametrize("masked", [False, True])
def test_window_attention_equals_attention_written_out(dtype, windows, side, heads, channels, masked):
    pixels = side * side
    qkv = (2 * torch.randn(windows, pixels, 3, heads, channels)).to(dtype)
    bias = 3 * torch.randn(windows if masked else 1, heads, pixels, pixels)
    if masked:
        bias[:, :, :, 0] -= 100
    got = window_attention(qkv, bias, 0.3)
    queries, keys, values = qkv.double().permute(2, 0, 3, 1, 4)
    probs = (0.3 * queries @ keys.transpose(2, 3) + bias).softmax(-1)
    exact = (probs @ values).transpose(1, 2).reshape(windows * pixels, -1)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2**-8
    torch.testing.assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


def test_window_attention_does_not_overflow_and_lets_a_nan_through():
    qkv = torch.full((2, 4, 3, 1, 16), 1e3)
    assert window_attention(qkv, torch.zeros(1, 1, 4, 4), 1.0).eq(1e3).all()
    qkv[0, 1, 2] = float("nan")
    got = window_attention(qkv, torch.zeros(1, 1, 4, 4), 1.0)
    assert got[:4].isnan().all() and got[4:].eq(1e3).all()


def test_window_attention_is_the_same_on_any_number_of_threads(two_threads):
    qkv, bias = torch.randn(9, 49, 3, 2, 32), torch.randn(1, 2, 49, 49)
    together = window_attention(qkv, bias, 0.2)
    torch.set_num_threads(1)
    assert torch.equal(together, window_attention(qkv, bias, 0.2))


@pytest.mark.parametrize("size", [(10, 12), (5, 6), (3, 2), (1, 1), (20, 24), (19, 24)])
@torch.no_grad()
def test_maps_shrink_as_pytorch_shrinks_them(size):
    x = torch.randn(2, 3, 20, 24)
    torch.testing.assert_close(resized(x, size), F.interpolate(x, size, mode="bilinear", align_corners=False))


@torch.no_grad()
def test_what_grows_or_keeps_its_channels_last_is_left_to_pytorch():
    x = torch.randn(2, 3, 4, 5)
    for given, size in ((x, (8, 3)), (x.contiguous(memory_format=torch.channels_last), (2, 2)), (x.double(), (2, 2))):
        expected = F.interpolate(given, size, mode="bilinear", align_corners=False)
        assert torch.equal(resized(given, size), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "queries", "keys", "channels"), [(2, 3, 7, 300, 32), (1, 1, 1, 256, 5)])
@pytest.mark.parametrize("share", [0.5, 0.01])
def test_masked_attention_equals_attention_written_out(dtype, batch, heads, queries, keys, channels, share):
    q = 3 * torch.randn(batch, heads, queries, channels)
    k, v = (torch.randn(batch, keys, heads, channels).to(dtype).transpose(1, 2) for _ in range(2))
    allowed = torch.rand(batch, 1, queries, keys) < share
    allowed[..., -1] = True  # also where the first block has nothing to look at
    got = masked_attention(q, k, v, allowed)
    logits = (q.double() @ k.double().transpose(2, 3)) * channels**-0.5
    exact = logits.masked_fill(~allowed, -torch.inf).softmax(-1) @ v.double()
    torch.testing.assert_close(got.double(), exact, atol=1e-5, rtol=1e-5)


def test_masked_attention_is_the_same_on_any_number_of_threads(two_threads):
    q, k, v = torch.randn(1, 1, 30, 16), torch.randn(1, 1, 700, 16), torch.randn(1, 1, 700, 16)
    allowed = torch.rand(1, 1, 30, 700) < 0.02
    allowed[..., 3] = True
    together = masked_attention(q, k, v, allowed)
    torch.set_num_threads(1)
    assert torch.equal(together, masked_attention(q, k, v, allowed))


def test_what_no_query_of_four_may_look_at_is_not_read():
    q, k, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 3 * BLOCK, 8), torch.randn(1, 1, 3 * BLOCK, 8)
    allowed = torch.zeros(1, 1, 4, 3 * BLOCK, dtype=torch.bool)
    allowed[..., BLOCK + 5] = True
    k[:, :, 2 * BLOCK :] = v[:, :, 2 * BLOCK :] = float("nan")
    torch.testing.assert_close(masked_attention(q, k, v, allowed), v[:, :, [BLOCK + 5]].expand(1, 1, 4, 8))


@torch.no_grad()
def test_attention_takes_the_kernel_where_keys_are_many_and_masked(monkeypatch):
    from mask2former.modeling import layers

    attention, calls = Attention(16, 2).eval(), []
    monkeypatch.setattr(layers, "KEYS", 40)
    monkeypatch.setattr(
        "mask2former.modeling.masked_attention_kernels.masked_attention",
        lambda *args: calls.append(len(args)) or masked_attention(*args),
    )
    for keys, mask in ((40, True), (39, True), (40, False)):
        x, y = torch.randn(2, 3, 16), torch.randn(2, keys, 16)
        allowed = torch.rand(2, 1, 3, keys) < 0.5 if mask else None
        if mask:
            allowed[..., 0] = True
        got = attention(x, y, y, allowed)
        with torch.enable_grad():
            torch.testing.assert_close(got, attention(x, y, y, allowed).detach(), atol=1e-5, rtol=1e-5)
    assert calls == [4]


@pytest.mark.parametrize("query", range(4))
def test_a_block_that_one_query_of_four_may_look_at_is_read(query):
    q, k, v = torch.randn(1, 1, 4, 8), torch.randn(1, 1, 2 * BLOCK, 8), torch.randn(1, 1, 2 * BLOCK, 8)
    allowed = torch.zeros(1, 1, 4, 2 * BLOCK, dtype=torch.bool)
    allowed[..., BLOCK + 5] = True
    allowed[0, 0, query] = False
    allowed[0, 0, query, 3] = True
    got = masked_attention(q, k, v, allowed)[0, 0]
    expected = v[0, 0, [BLOCK + 5]].repeat(4, 1)
    expected[query] = v[0, 0, 3]
    torch.testing.assert_close(got, expected)
