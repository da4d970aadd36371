"""Results by Triton equal those of plain PyTorch: on a CUDA device, or anywhere in Triton's interpreter."""

import os

import pytest
import torch
from test_inference import FRAMES

from mask2former.inference import Frame, image_rows, resized_rows

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() or INTERPRETED), reason="needs a CUDA device or TRITON_INTERPRET=1"
)
DEVICE = "cpu" if INTERPRETED else "cuda"
CASES = FRAMES | {
    "wider than a tile": Frame((32, 300), (30, 290), (30, 290)),
    "one pixel": Frame((1, 1), (1, 1), (1, 1)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """The kernels' maps, and what they are when resized by PyTorch: (5, H, W)."""
    from mask2former.result_kernels_triton import Resize

    frame = request.param
    maps = 3 * torch.randn(5, 8, 12)
    maps[3] = -maps[3].abs() - 0.1  # an empty mask
    whole = resized_rows(image_rows(maps, frame), frame.image, frame.output)(0, frame.output[0])
    return Resize(maps.to(DEVICE), *frame), whole


def test_resized_rows(case):
    from mask2former.result_kernels_triton import resized

    maps, whole = case
    height = len(whole[0])
    for start, stop in ((0, height), (height // 3, height // 3 + 1)):
        for sigmoid in (False, True):
            expected = whole[:, start:stop].sigmoid() if sigmoid else whole[:, start:stop]
            got = resized(maps, start, stop, sigmoid=sigmoid).cpu()
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_instances(case):
    from mask2former.result_kernels_triton import instances

    maps, whole = case
    queries = torch.tensor([4, 0, 3, 4])
    masks, area, certainty, boxes = (part.cpu() for part in instances(maps, queries.to(DEVICE)))
    logits = whole[queries]
    inside = logits > 0
    assert (masks != inside).sum() <= 1
    assert area.tolist() == masks.sum((1, 2)).tolist()
    torch.testing.assert_close(certainty, (logits.sigmoid() * masks).sum((1, 2)), atol=1e-3, rtol=1e-4)
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        rows, columns = mask.any(1).nonzero()[:, 0].tolist(), mask.any(0).nonzero()[:, 0].tolist()
        assert box == ([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows else [0, 0, 0, 0])


def test_claims(case):
    from mask2former.result_kernels_triton import claims

    maps, whole = case
    scores = torch.tensor([0.9, 0.3, 0.8, 0.95, 0.5])
    owner, own, won, final = (part.cpu() for part in claims(maps, scores.to(DEVICE)))
    probs = whole.sigmoid()
    winner = (probs * scores[:, None, None]).argmax(0)
    inside = probs.gather(0, winner[None])[0] >= 0.5
    assert (owner != winner.where(inside, 5)).sum() <= 1
    for got, expected in (
        (own, (probs >= 0.5).sum((1, 2))),
        (won, winner.flatten().bincount(minlength=5)),
        (final, winner[inside].bincount(minlength=5)),
    ):
        assert got.dtype == torch.int64 and (got - expected).abs().sum() <= 2


def test_no_queries():
    from mask2former.result_kernels_triton import Resize, instances

    maps = Resize(torch.randn(2, 4, 4, device=DEVICE), (8, 8), (8, 8), (8, 8))
    masks, area, certainty, boxes = instances(maps, torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert (masks.shape, boxes.shape, len(area), len(certainty)) == ((0, 8, 8), (0, 4), 0, 0)
