"""Deformable attention: every back end against a plain loop over points, in float64."""

import math
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from mask2former.modeling.ops import deform_attn as operator
from mask2former.modeling.ops import ms_deform_attn, ms_deform_attn_projected
from mask2former.modeling.ops.deform_attn import choose_backend
from mask2former.modeling.ops.reference import sampling_points

pytest.importorskip("numba")
FAST = ["reference", "numba"]


def loop(value: Tensor, shapes: list, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition, one corner at a time."""
    batch, _, heads, channels = value.shape
    out = torch.zeros(batch, locations.shape[1], heads, channels, dtype=torch.float64)
    for b, q, a, level, p in torch.cartesian_prod(*[torch.arange(n) for n in weights.shape]).tolist():
        h, w = shapes[level]
        image = value[b, sum(i * j for i, j in shapes[:level]) :][: h * w, a].double().reshape(h, w, channels)
        x, y = locations[b, q, a, level, p].double().tolist()
        x, y = x * w - 0.5, y * h - 0.5
        for i in (math.floor(y), math.floor(y) + 1):
            for j in (math.floor(x), math.floor(x) + 1):
                if 0 <= i < h and 0 <= j < w:
                    share = (1 - abs(x - j)) * (1 - abs(y - i))
                    out[b, q, a] += weights[b, q, a, level, p].double() * share * image[i, j]
    return out.flatten(2)


def inputs(shapes, batch=2, queries=5, heads=2, channels=3, points=2, low=-0.3, high=1.3):
    pixels = sum(h * w for h, w in shapes)
    value = torch.randn(batch, pixels, heads, channels)
    locations = torch.empty(batch, queries, heads, len(shapes), points, 2).uniform_(low, high)
    weights = torch.rand(batch, queries, heads, len(shapes), points)
    return value, locations, weights


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("channels", [1, 3, 8, 16, 37, 75])
def test_it_is_the_weighted_sum_of_bilinear_samples(backend, channels):
    shapes = [(3, 5), (1, 1), (1, 7), (6, 1)]
    value, locations, weights = inputs(shapes, channels=channels)
    got = ms_deform_attn(value, shapes, locations, weights, backend)
    torch.testing.assert_close(got.double(), loop(value, shapes, locations, weights), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", FAST)
def test_a_point_on_a_pixel_centre_reads_that_pixel_and_one_on_the_border_half_of_it(backend):
    value = torch.tensor([10.0, 20.0, 30.0, 40.0]).reshape(1, 4, 1, 1)
    at = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.5, 0.5], [0.0, 0.25], [0.0, 0.0], [1.0, 1.0]])
    got = ms_deform_attn(value, [(2, 2)], at.reshape(1, 7, 1, 1, 1, 2), torch.ones(1, 7, 1, 1, 1), backend)
    assert got.flatten().tolist() == [10, 20, 40, 25, 5, 2.5, 10]


@pytest.mark.parametrize("backend", FAST)
def test_far_outside_points_give_zero_and_zero_gradients(backend):
    value, locations, weights = inputs([(3, 4)])
    locations = torch.where(locations > 0.5, 1e9, -1e9)
    tensors = [x.requires_grad_() for x in (value, locations, weights)]
    out = ms_deform_attn(value, [(3, 4)], locations, weights, backend)
    out.sum().backward()
    assert not out.any()
    assert not any(x.grad.any() for x in tensors)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(("batch", "queries"), [(0, 5), (2, 0)])
def test_empty_batches_and_no_queries(backend, batch, queries):
    value, locations, weights = inputs([(3, 4)], batch, queries)
    value.requires_grad_()
    out = ms_deform_attn(value, [(3, 4)], locations, weights, backend)
    assert out.shape == (batch, queries, 6)
    out.sum().backward()
    assert not value.grad.any()


def test_gaps_between_numbers_do_not_matter():
    shapes = [(3, 5), (2, 2)]
    value, locations, weights = inputs(shapes)
    expected = ms_deform_attn(value, shapes, locations, weights, "numba")
    spread = [torch.stack([x, -x], -1)[..., 0] for x in (value, locations, weights)]
    turned = value.transpose(1, 2).contiguous().transpose(1, 2)
    assert not any(x.is_contiguous() for x in (*spread, turned))
    assert torch.equal(ms_deform_attn(spread[0], shapes, *spread[1:], "numba"), expected)
    assert torch.equal(ms_deform_attn(turned, shapes, locations, weights, "numba"), expected)


def test_gradcheck_of_the_reference():
    shapes = [(3, 4), (1, 2)]
    value, locations, weights = (x.double().requires_grad_() for x in inputs(shapes, 1, 2, 2, 2))
    assert torch.autograd.gradcheck(lambda v, at, w: ms_deform_attn(v, shapes, at, w), (value, locations, weights))


def gradients(function, *tensors):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    out = function(*leaves)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("channels", [1, 8, 37])
def test_gradients_equal_the_references(channels):
    shapes = [(5, 7), (1, 1), (2, 3)]
    tensors = inputs(shapes, queries=40, channels=channels)
    expected = gradients(lambda v, at, w: ms_deform_attn(v, shapes, at, w), *[x.double() for x in tensors])
    got = gradients(lambda v, at, w: ms_deform_attn(v, shapes, at, w, "numba"), *tensors)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-4, rtol=1e-4)


def projected_inputs(shapes, batch=2, queries=40, heads=2, channels=8, points=3, spread=2.0):
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, channels)
    return value, torch.rand(queries, 2), spread * torch.randn(batch, queries, heads * len(shapes) * points * 3)


def test_softmax_and_locations_inside_the_kernel_equal_those_outside():
    shapes = [(5, 7), (1, 1), (2, 3)]
    value, centers, projected = projected_inputs(shapes)

    def composed(v, x):
        return ms_deform_attn(v, shapes, *sampling_points(shapes, centers.double(), x, 2))

    expected = gradients(composed, value.double(), projected.double())
    got = gradients(lambda v, x: ms_deform_attn_projected(v, shapes, centers, x, "numba"), value, projected)
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-4, rtol=1e-4)


def test_softmax_of_large_logits_is_exact_and_a_nan_stays_visible():
    value = torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1)
    logits = [(0.0, 0.0), (500.0, -500.0), (-1e4, -1e4 + math.log(3))]
    rows = torch.tensor([[0.0, 0.0, 1.0, 0.0, *pair] for pair in logits])[None]  # the second point: one pixel right
    centers = torch.tensor([[0.25, 0.5]]).expand(3, 2)
    got = ms_deform_attn_projected(value, [(1, 2)], centers, rows, "numba").flatten()
    torch.testing.assert_close(got, torch.tensor([1.5, 1.0, 1.75]), atol=5e-4, rtol=0)
    rows[0, 0, 4] = math.nan
    rows[0, 1, 0] = math.nan
    got = ms_deform_attn_projected(value, [(1, 2)], centers, rows, "numba").flatten()
    assert got.isnan().tolist() == [True, True, False]


def test_the_same_bits_on_any_number_of_threads():
    shapes = [(12, 20), (6, 10)]
    value, centers, projected = projected_inputs(shapes, queries=700, heads=4, points=4, spread=4.0)

    def bits():
        return gradients(lambda v, x: ms_deform_attn_projected(v, shapes, centers, x, "numba"), value, projected)

    expected = bits()
    try:
        for threads in (2, 3, 5):
            torch.set_num_threads(threads)
            assert all(torch.equal(x, y) for x, y in zip(bits(), expected, strict=True))
    finally:
        torch.set_num_threads(1)


def test_two_python_threads_may_call_it_at_once():
    shapes = [(12, 20)]
    tensors = inputs(shapes, queries=3000, channels=8)
    expected = ms_deform_attn(tensors[0], shapes, *tensors[1:], "numba")
    results = []
    call = lambda: results.append(ms_deform_attn(tensors[0], shapes, *tensors[1:], "numba"))
    torch.set_num_threads(2)
    try:
        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(1)
    assert len(results) == 4 and all(torch.equal(x, expected) for x in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_are_summed_in_float32(dtype):
    shapes = [(5, 7), (2, 3)]
    value, locations, weights = inputs(shapes, channels=8, low=0.0, high=1.0)
    value = value.to(dtype)
    expected = loop(value, shapes, locations, weights)
    for backend in FAST:
        got = ms_deform_attn(value, shapes, locations, weights, backend)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_operators_are_well_formed_for_autograd_and_the_compiler(grad_dtype):
    shapes = [(3, 5), (2, 2)]
    value, locations, weights = inputs(shapes, channels=8)
    value = value.to(grad_dtype).requires_grad_()
    sizes = [3, 5, 2, 2]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    arguments = (value, sizes, locations.requires_grad_(), weights.requires_grad_())
    torch.library.opcheck(operator._sample, arguments, test_utils=checks, atol=1e-2, rtol=1e-2)
    projected = torch.randn(2, 5, 2 * 2 * 3 * 3, requires_grad=True)
    arguments = (value, sizes, torch.rand(5, 2), projected)
    torch.library.opcheck(operator._sample_projected, arguments, test_utils=checks, atol=1e-2, rtol=1e-2)


def test_it_compiles_without_graph_breaks_and_exports_without_our_operator():
    shapes = [(3, 5), (2, 2)]
    value, centers, projected = projected_inputs(shapes)

    class Model(torch.nn.Module):
        def forward(self, value: Tensor, projected: Tensor) -> Tensor:
            return ms_deform_attn_projected(value, shapes, centers, projected)

    expected = Model()(value, projected)
    compiled = torch.compile(Model(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(value, projected), expected)
    program = torch.export.export(Model(), (value, projected))
    torch.testing.assert_close(program.module()(value, projected), expected, atol=1e-5, rtol=1e-5)
    assert not any("mask2former" in str(node.target) for node in program.graph.nodes)


def test_the_back_end_follows_the_device_the_environment_and_the_argument(monkeypatch):
    monkeypatch.delenv("MASK2FORMER_DEFORM_ATTN", raising=False)
    assert choose_backend("cpu", torch.float32) == "numba"
    assert choose_backend("cpu", torch.float64) == "reference"
    assert choose_backend("mps", torch.float32) == "reference"
    monkeypatch.setenv("MASK2FORMER_DEFORM_ATTN", "reference")
    assert choose_backend("cpu", torch.float32) == "reference"
    assert choose_backend("cpu", torch.float32, "numba") == "numba"
    with pytest.raises(ValueError, match="no back end 'cuda'; choose one of auto, reference"):
        choose_backend("cpu", torch.float32, "cuda")
    with pytest.raises(ValueError, match=r"not torch\.float64 on cpu"):
        choose_backend("cpu", torch.float64, "numba")


def test_without_numba_it_says_so_once_and_goes_on(monkeypatch, caplog):
    monkeypatch.delenv("MASK2FORMER_DEFORM_ATTN", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    operator._is_installed.cache_clear()
    value, locations, weights = inputs([(3, 4)])
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert ms_deform_attn(value, [(3, 4)], locations, weights).shape == (2, 5, 6)
    operator._is_installed.cache_clear()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["numba is not installed"]


def test_wrong_shapes_are_refused_with_both_shapes_named():
    value, locations, weights = inputs([(3, 4)])
    with pytest.raises(ValueError, match=r"levels \[\(3, 5\)\] are 1 and have 15 pixels"):
        ms_deform_attn(value, [(3, 5)], locations, weights)
    with pytest.raises(ValueError, match="do not fit value"):
        ms_deform_attn(value, [(3, 4)], locations, weights[:, :1])
    with pytest.raises(ValueError, match="not a multiple of 3"):
        ms_deform_attn_projected(value, [(3, 4)], torch.rand(5, 2), torch.rand(2, 5, 13))


def test_importing_the_package_does_not_import_numba():
    code = "import sys, mask2former.modeling.ops; sys.exit('numba' in sys.modules or 'triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_without_a_folder_for_compiled_code_it_compiles_each_time_and_says_so(monkeypatch, caplog):
    from mask2former.modeling.ops import numba_tools

    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba_tools, "njit", njit)
    with caplog.at_level("WARNING"):
        assert numba_tools.compiled(loop) is loop
    assert "NUMBA_CACHE_DIR" in caplog.text
