"""The published order of operations, as the other side of every comparison; not for use.

Unfused operations on whole tensors: sampling by grid_sample, masks of every layer at full resolution, every query
upsampled twice in float32, all class scores. Weights and, but for rounding, results are
those of the given model.

B images, Q queries, K classes, C channels, h w size of a feature level, H W size of the result.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from plain_criterion import plain_losses
from plain_swin import make_plain
from torch import Tensor, nn

from mask2former.inference import Frame
from mask2former.model import MaskFormer, training_target
from mask2former.modeling import convolution, packed_linear
from mask2former.modeling.backbone import swin
from mask2former.modeling.criterion import SetCriterion
from mask2former.modeling.ops.reference import sampling_points
from mask2former.modeling.pixel_decoder import msdeformattn
from mask2former.modeling.position_encoding import sine_position_encoding
from mask2former.modeling.transformer_decoder.multi_scale import NUM_LEVELS


class PlainModel(nn.Module):
    """A MaskFormer, run plainly."""

    def __init__(self, model: MaskFormer) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        for module in self.model.backbone.modules():
            module.__dict__.pop("forward", None)  # norms as layers of their own
        make_plain(self.model.backbone)
        self.train(model.training)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As `MaskFormer.forward`, for images of one size."""
        model = self.model
        images = [model.normalized(sample) for sample in batched_inputs]
        batch = ImageList.from_tensors(images, model.size_divisibility)
        outputs = self.predictions(batch.tensor)
        if self.training:
            size = tuple(batch.tensor.shape[-2:])
            classes = model.sem_seg_head.num_classes
            targets = [training_target(sample, classes, size, model.device) for sample in batched_inputs]
            return weighted_losses(model.criterion, outputs, targets)
        results = []
        for row, (sample, image) in enumerate(zip(batched_inputs, images, strict=True)):
            height, width = image.shape[-2:]
            output = (int(sample.get("height", height)), int(sample.get("width", width)))
            frame = Frame(tuple(batch.tensor.shape[-2:]), (height, width), output)
            results.append(plain_results(model, outputs["pred_logits"][row], outputs["pred_masks"][row], frame))
        return results

    def predictions(self, images: Tensor) -> dict[str, Any]:
        """Logits and masks of all layers."""
        head = self.model.sem_seg_head
        with unfused():
            features = {name: x.contiguous() for name, x in self.model.backbone(images).items()}  # channels first
            mask_features, _, levels = head.pixel_decoder.forward_features(features)
        return plain_decoder(head.predictor, levels, mask_features)


@contextmanager
def unfused() -> Iterator[None]:
    """Deformable attention by grid_sample, and whole tensors step by step, by what PyTorch chooses for them."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(msdeformattn, "ms_deform_attn_projected", stacked_attention))
        for module in (msdeformattn, swin):
            stack.enter_context(mock.patch.object(module, "may_run_in_blocks", return_value=False))
        for module in (convolution, packed_linear):
            stack.enter_context(mock.patch.object(module, "is_ordinary", return_value=False))
        yield


def stacked_attention(
    value: Tensor, shapes: list[tuple[int, int]], centers: Tensor, offsets_and_logits: Tensor
) -> Tensor:
    """`ms_deform_attn_projected`, with the samples of all levels in one tensor before they are weighted and summed."""
    batch, _, heads, channels = value.shape
    locations, weights = sampling_points(shapes, centers, offsets_and_logits, heads)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * A, Q, L, P, 2)
    samples = []
    for level, (part, (height, width)) in enumerate(
        zip(value.split([h * w for h, w in shapes], 1), shapes, strict=True)
    ):
        image = part.flatten(2).transpose(1, 2).reshape(batch * heads, channels, height, width)
        samples.append(F.grid_sample(image.to(grids.dtype), grids[:, :, level], align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, -1, weights.shape[3] * weights.shape[4])
    total = (torch.stack(samples, -2).flatten(-2) * weights).sum(-1)  # (B * A, C / A, Q)
    return total.view(batch, heads * channels, -1).transpose(1, 2).to(value.dtype).contiguous()


def plain_decoder(decoder: nn.Module, levels: list[Tensor], mask_features: Tensor) -> dict[str, Any]:
    """`MultiScaleMaskedTransformerDecoder`, with masks of every layer at full size and attention step by step."""
    memory = []
    for i, level in enumerate(levels):
        projected = decoder.input_proj[i](level)
        values = projected.flatten(2).transpose(1, 2) + decoder.level_embed.weight[i]
        position = sine_position_encoding(*projected.shape[2:], projected.shape[1], values.device)
        memory.append((values + position, values))
    batch = len(mask_features)
    queries = decoder.query_feat.weight.expand(batch, -1, -1)
    position = decoder.query_embed.weight.expand(batch, -1, -1)
    layers = []

    def predict() -> None:
        state = decoder.decoder_norm(queries)
        masks = torch.einsum("bqc,bchw->bqhw", decoder.mask_embed(state), mask_features)
        layers.append({"pred_logits": decoder.class_embed(state), "pred_masks": masks})

    predict()
    for i, cross in enumerate(decoder.transformer_cross_attention_layers):
        keys, values = memory[i % NUM_LEVELS]
        masks = F.interpolate(
            layers[-1]["pred_masks"], levels[i % NUM_LEVELS].shape[-2:], mode="bilinear", align_corners=False
        )
        hidden = (masks.sigmoid().flatten(2) < 0.5).detach()  # (B, Q, S)
        hidden = hidden & ~hidden.all(-1, keepdim=True)
        queries = cross.after(
            queries, plain_attention(cross.multihead_attn, cross.before(queries) + position, keys, values, hidden)
        )
        layer = decoder.transformer_self_attention_layers[i]
        content = layer.before(queries)
        placed = content + position
        queries = layer.after(queries, plain_attention(layer.self_attn, placed, placed, content))
        queries = decoder.transformer_ffn_layers[i](queries)
        predict()
    return layers[-1] | {"aux_outputs": layers[:-1]}


def plain_attention(
    layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None = None
) -> Tensor:
    """Attention with its weights written down; `hidden` (B, Q, S) is True where a query may not look."""
    mask = None if hidden is None else hidden.repeat_interleave(layer.num_heads, 0)
    out, _ = F.multi_head_attention_forward(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        query.shape[-1],
        layer.num_heads,
        layer.in_proj_weight,
        layer.in_proj_bias,
        None,
        None,
        False,
        0.0,
        layer.out_proj.weight,
        layer.out_proj.bias,
        attn_mask=mask,
        need_weights=True,
    )
    return out.transpose(0, 1)


def weighted_losses(
    criterion: SetCriterion, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    losses = plain_losses(criterion, outputs, targets)
    return {name: loss * criterion.weight_dict[name] for name, loss in losses.items() if name in criterion.weight_dict}


def plain_results(model: MaskFormer, class_logits: Tensor, mask_logits: Tensor, frame: Frame) -> dict[str, Any]:
    """Results from float32 masks of every query, resized whole."""
    resize = {"mode": "bilinear", "align_corners": False}
    height, width = frame.image
    masks = F.interpolate(mask_logits[None].float(), frame.padded, **resize)
    early = model.sem_seg_postprocess_before_inference
    if early:
        masks = F.interpolate(masks[..., :height, :width], frame.output, **resize)
    masks, class_logits = masks[0], class_logits.float()
    probs = class_logits.softmax(-1)
    result: dict[str, Any] = {}
    if model.semantic_on:
        scores = torch.einsum("qk,qhw->khw", probs[:, :-1], masks.sigmoid())
        if not early:
            scores = F.interpolate(scores[None, :, :height, :width], frame.output, **resize)[0]
        result["sem_seg"] = scores.argmax(0) if model.semantic_label_map else scores
    if model.panoptic_on:
        result["panoptic_seg"] = plain_panoptic(model, probs, masks)
    if model.instance_on:
        classes = probs.shape[1] - 1
        scores, pairs = probs[:, :-1].flatten().topk(model.test_topk_per_image, sorted=False)
        chosen, labels = masks[pairs // classes], pairs % classes
        if model.panoptic_on:
            keep = torch.isin(labels, torch.tensor(sorted(model.thing_classes()), device=labels.device))
            scores, chosen, labels = scores[keep], chosen[keep], labels[keep]
        inside = (chosen > 0).float()
        quality = (chosen.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        result["instances"] = {"pred_masks": inside, "scores": scores * quality, "pred_classes": labels}
    return result


def plain_panoptic(model: MaskFormer, probs: Tensor, masks: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """A product of score and probability for every kept query, and the best at each pixel."""
    scores, labels = probs.max(-1)
    keep = (labels != probs.shape[1] - 1) & (scores > model.object_mask_threshold)
    scores, labels, masks = scores[keep], labels[keep], masks[keep].sigmoid()
    ids = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    segments: list[dict[str, Any]] = []
    if not len(scores):
        return ids, segments
    winner = (scores[:, None, None] * masks).argmax(0)
    things, stuff = model.thing_classes(), {}
    for n, label in enumerate(labels.tolist()):
        won, own = winner == n, masks[n] >= 0.5
        final = won & own
        if not final.any() or won.sum() / own.sum() < model.overlap_threshold:
            continue
        if label in stuff:
            ids[final] = stuff[label]
            continue
        segments.append({"id": len(segments) + 1, "isthing": label in things, "category_id": label})
        ids[final] = len(segments)
        if label not in things:
            stuff[label] = len(segments)
    return ids, segments
