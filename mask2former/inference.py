"""Logits to semantic, instance and panoptic results.

Mask logits are small (a quarter of the input), results are large. So results are made in blocks of rows that stay in
the processor's cache, and only of queries that are kept: nothing of size Q x H x W in float32 ever exists. Where there
is Numba (CPU) or Triton (CUDA), the steps are fused (`result_kernels`); elsewhere they are PyTorch operations.

Q queries, K classes, N kept queries, h w size of the mask logits, H W size of the result.
"""

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .modeling.ops.deform_attn import choose_backend

# Gives rows start to stop of some (N, H, W) tensor that is never held whole: (N, stop - start, W).
Rows = Callable[[int, int], Tensor]
Size = tuple[int, int]

# Bytes of one block of float32 rows: about a processor's cache, or enough to keep a GPU busy.
_BLOCK_BYTES = {
    "cpu": 4 << 20,
    # Semantic scores on a CPU: a block is one matrix product, and resizing reads two rows more than a block has.
    "scores": 32 << 20,
}
_BLOCK_BYTES_GPU = 256 << 20


class Frame(NamedTuple):
    """Sizes (height, width) on the way from mask logits to a result."""

    padded: Size  # of the model's input
    image: Size  # of the image in its upper left corner
    output: Size  # of the result


class InstanceResult(NamedTuple):
    """N instances, in no particular order; boxes are x1, y1, x2, y2 around each mask, 0 where it is empty."""

    masks: Tensor  # (N, H, W) bool
    boxes: Tensor  # (N, 4) float32
    scores: Tensor  # (N) float32
    classes: Tensor  # (N) int64


def semantic_inference(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, *, resize_masks: bool, label_map: bool
) -> Tensor:
    """Sum over queries of class probability times mask probability.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        resize_masks: resize masks to the output size and then combine; otherwise combine first and resize scores.
        label_map: return the best class of each pixel instead of scores.

    Returns:
        (K, H, W) float32 scores, or (H, W) int64 classes.
    """
    class_probs = class_logits.float().softmax(-1)[:, :-1].T.contiguous()  # (K, Q)
    device = mask_logits.device

    def combined(probs: Rows) -> Rows:
        def rows(start: int, stop: int) -> Tensor:
            block = probs(start, stop)
            return (class_probs @ block.flatten(1)).unflatten(1, block.shape[1:])

        return rows

    if resize_masks:
        scores = combined(prob_rows(mask_logits, frame))
    else:
        at_image_size = combined(prob_rows(mask_logits, frame._replace(output=frame.image)))
        scores = resized_rows(at_image_size, frame.image, frame.output)
    if label_map:
        result = torch.empty(frame.output, dtype=torch.int64, device=device)
    else:
        result = torch.empty(len(class_probs), *frame.output, device=device)
    for start, stop in blocks(max(class_probs.shape), frame.output, device, score_bytes=True):
        block = scores(start, stop)
        if not label_map:
            result[:, start:stop] = block
        elif kernels := _kernels(device):
            kernels.best(block.flatten(1), result[start:stop])
        else:
            result[start:stop] = block.argmax(0)
    return result


def instance_inference(
    class_logits: Tensor, mask_logits: Tensor, frame: Frame, *, topk: int, classes: list[int] | None = None
) -> InstanceResult:
    """The `topk` most probable pairs of a query and a class.

    A score is the class probability times the mean mask probability inside the mask.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        topk: how many pairs to take; fewer if there are fewer.
        classes: then drop the pairs of all other classes.
    """
    probs = class_logits.float().softmax(-1)[:, :-1]  # (Q, K)
    scores, pairs = probs.flatten().topk(min(topk, probs.numel()), sorted=False)
    queries, labels = pairs // probs.shape[1], pairs % probs.shape[1]
    if classes is not None:
        keep = torch.isin(labels, torch.tensor(classes, dtype=labels.dtype, device=labels.device))
        scores, queries, labels = scores[keep], queries[keep], labels[keep]
    if kernels := _kernels(mask_logits.device):
        masks, area, certainty, boxes = kernels.instances(kernels.Resize(mask_logits, *frame), queries)
    else:
        masks, area, certainty, boxes = _instances(mask_logits, frame, queries)
    return InstanceResult(masks, boxes, scores * (certainty / (area + 1e-6)), labels)


def _instances(mask_logits: Tensor, frame: Frame, queries: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `result_kernels.instances`."""
    (height, width), device = frame.output, mask_logits.device
    numbers, row = queries.unique(return_inverse=True)  # one query may come with several classes
    distinct, mask_logits = len(numbers), mask_logits[numbers]
    masks = torch.empty(len(queries), height, width, dtype=torch.bool, device=device)
    source = resized_rows(image_rows(mask_logits, frame), frame.image, frame.output)
    area = torch.zeros(distinct, device=device)
    certainty = torch.zeros(distinct, device=device)
    rows_hit = torch.zeros(distinct, height, dtype=torch.bool, device=device)
    columns_hit = torch.zeros(distinct, width, dtype=torch.bool, device=device)
    for start, stop in blocks(distinct, frame.output, device):
        logits = source(start, stop)
        inside = logits > 0
        masks[:, start:stop] = inside[row]
        area += inside.sum((1, 2))
        certainty += (logits.sigmoid() * inside).sum((1, 2))
        rows_hit[:, start:stop] = inside.any(2)
        columns_hit |= inside.any(1)
    return masks, area[row], certainty[row], _boxes(rows_hit, columns_hit)[row]


def panoptic_inference(
    class_logits: Tensor,
    mask_logits: Tensor,
    frame: Frame,
    *,
    things: set[int],
    object_mask_threshold: float,
    overlap_threshold: float,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Give each pixel to the query that claims it most, and drop segments that lose most of their mask.

    Args:
        class_logits: (Q, K+1).
        mask_logits: (Q, h, w).
        things: classes whose segments are told apart; segments of any other class become one.
        object_mask_threshold: queries need a higher class probability than this.
        overlap_threshold: a segment needs this share of its own mask.

    Returns:
        (H, W) int32 segment ids, 0 where there is none, and for each segment its "id" (from 1), "isthing",
        "category_id", and "score": the class probability of its (first) query.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)
    keep = ((labels != class_logits.shape[-1] - 1) & (scores > object_mask_threshold)).nonzero()[:, 0]
    scores, labels = scores[keep], labels[keep]
    device, count = mask_logits.device, len(keep)
    if not count:
        return torch.zeros(frame.output, dtype=torch.int32, device=device), []
    owner, own_area, won_area, final_area = _claims(mask_logits[keep], scores, frame)
    enough = (own_area > 0) & (final_area > 0) & (won_area / own_area >= overlap_threshold)
    ids, segments = _segments(enough.tolist(), labels.tolist(), scores.tolist(), things)
    lookup = torch.tensor([*ids, 0], dtype=torch.int32, device=device)
    return lookup.index_select(0, owner.flatten()).view(frame.output), segments


def _claims(mask_logits: Tensor, scores: Tensor, frame: Frame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give each pixel to the query with the largest product of mask probability and score.

    Args:
        mask_logits: (N, h, w).
        scores: (N).

    Returns:
        (H, W) int32 owner, N for nobody; and three areas (N) int64: of the query's mask, of the pixels it claims
        most, and of both.
    """
    device, count = mask_logits.device, len(scores)
    if kernels := _kernels(device):
        return kernels.claims(kernels.Resize(mask_logits, *frame), scores)
    source = resized_rows(image_rows(mask_logits, frame), frame.image, frame.output)
    owner = torch.empty(frame.output, dtype=torch.int32, device=device)
    own_area = torch.zeros(count, dtype=torch.int64, device=device)
    won_area = torch.zeros_like(own_area)
    final_area = torch.zeros_like(own_area)
    for start, stop in blocks(count, frame.output, device):
        probs = source(start, stop).sigmoid()
        winner = (probs * scores[:, None, None]).argmax(0)
        inside = probs.gather(0, winner[None])[0] >= 0.5
        own_area += (probs >= 0.5).sum((1, 2))
        won_area += winner.flatten().bincount(minlength=count)
        final_area += winner[inside].bincount(minlength=count)
        owner[start:stop] = winner.where(inside, count)
    return owner, own_area, won_area, final_area


def _segments(
    enough: list[bool], labels: list[int], scores: list[float], things: set[int]
) -> tuple[list[int], list[dict[str, Any]]]:
    """Number the segments: the id of each query (0: dropped), and what is known of each segment."""
    ids: list[int] = []
    segments: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}
    for is_kept, label, score in zip(enough, labels, scores, strict=True):
        if not is_kept:
            ids.append(0)
        elif label in stuff:
            ids.append(stuff[label])
        else:
            ids.append(len(segments) + 1)
            segments.append({"id": ids[-1], "isthing": label in things, "category_id": label, "score": score})
            if label not in things:
                stuff[label] = ids[-1]
    return ids, segments


def blocks(count: int, size: Size, device: torch.device, *, score_bytes: bool = False) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose `count` float32 maps fit the block size; at least one row. None without maps."""
    if not count:
        return
    height, width = size
    budget = _BLOCK_BYTES.get("scores" if score_bytes and device.type == "cpu" else device.type, _BLOCK_BYTES_GPU)
    step = min(height, max(1, budget // (4 * width * count)))
    for start in range(0, height, step):
        yield start, min(start + step, height)


def _kernels(device: torch.device) -> ModuleType | None:
    """Fused kernels for this device, imported at the first call; None where PyTorch does it."""
    if torch.compiler.is_compiling():
        return None
    backend = choose_backend(device.type, torch.float32)
    if backend == "numba":
        from . import result_kernels

        return result_kernels
    if backend == "triton":
        from . import result_kernels_triton

        return result_kernels_triton
    return None


def prob_rows(mask_logits: Tensor, frame: Frame) -> Rows:
    """(N, h, w) mask logits, resized to the output, and squashed to probabilities."""
    if kernels := _kernels(mask_logits.device):
        return functools.partial(kernels.resized, kernels.Resize(mask_logits, *frame), sigmoid=True)
    logits = resized_rows(image_rows(mask_logits, frame), frame.image, frame.output)
    return lambda start, stop: logits(start, stop).sigmoid()


def image_rows(mask_logits: Tensor, frame: Frame) -> Rows:
    """(N, h, w) mask logits, resized to the padded input and cut to the image."""
    mask_logits = mask_logits.float()
    in_size = (mask_logits.shape[-2], mask_logits.shape[-1])
    upsampled = resized_rows(lambda start, stop: mask_logits[:, start:stop], in_size, frame.padded)
    width = frame.image[1]
    return lambda start, stop: upsampled(start, stop)[..., :width]


def resized_rows(source: Rows, in_size: Size, out_size: Size) -> Rows:
    """Bilinear resizing, as `interpolate(..., mode="bilinear", align_corners=False)` of the whole would be."""
    (in_height, in_width), (out_height, out_width) = in_size, out_size
    if in_size == out_size:
        return source

    def rows(start: int, stop: int) -> Tensor:
        if (start, stop) == (0, out_height):
            whole = source(0, in_height)
            return F.interpolate(whole[None], out_size, mode="bilinear", align_corners=False)[0]
        position = ((torch.arange(start, stop) + 0.5) * (in_height / out_height) - 0.5).clamp(min=0)
        above = position.long()
        below = (above + 1).clamp(max=in_height - 1)
        first = int(above[0])
        needed = source(first, int(below[-1]) + 1)  # (N, few, w)
        weight = (position - above)[:, None].to(needed.device)
        above, below = (index.sub_(first).to(needed.device) for index in (above, below))
        mixed = torch.lerp(needed[:, above], needed[:, below], weight)  # (N, rows, w)
        if in_width == out_width:
            return mixed
        return F.interpolate(mixed[None], (stop - start, out_width), mode="bilinear", align_corners=False)[0]

    return rows


def _boxes(rows_hit: Tensor, columns_hit: Tensor) -> Tensor:
    """(N, H) and (N, W) bool, rows and columns with a pixel of the mask, to (N, 4) boxes."""

    def extent(hit: Tensor) -> tuple[Tensor, Tensor]:
        hit = hit.to(torch.uint8)
        first, after_last = hit.argmax(1), hit.shape[1] - hit.flip(1).argmax(1)
        return first, after_last

    (y1, y2), (x1, x2) = extent(rows_hit), extent(columns_hit)
    return torch.stack([x1, y1, x2, y2], 1).float() * rows_hit.any(1, keepdim=True)
