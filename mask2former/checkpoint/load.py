"""Mask2FormerCheckpointer: any source of MODEL.WEIGHTS into the model, with a report of what was taken."""

import logging
from collections import OrderedDict
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from .readers import read_file, read_folder
from .renames import by_endings, same_metadata, to_model_names
from .report import LoadReport
from .sources import local_copy, split_options

Weights = dict[str, Tensor]

logger = logging.getLogger(__name__)

# The least share of the model, or of its backbone if the file is a backbone's, that a file must fill.
LEAST_MATCH = 0.5
_QUERIES = ("sem_seg_head.predictor.query_feat.weight", "sem_seg_head.predictor.query_embed.weight")
_CLASSES = (
    *("sem_seg_head.predictor.class_embed.weight", "sem_seg_head.predictor.class_embed.bias"),
    *("sem_seg_head.predictor.weight", "sem_seg_head.predictor.bias"),  # of the per-pixel baseline
    "criterion.empty_weight",
)


class Mask2FormerCheckpointer(DetectionCheckpointer):
    """Loads detectron2's, Hugging Face's, torchvision's, MSRA's and Swin's weights; saves as detectron2 does."""

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and the named checkpointables that the file has; report what was loaded.

        Args:
            path: a file or folder, https://, detectron2:// or hf:// address, "" for nothing. Ending in `?partial=True`
                it may fill less than half of the model; in `?matching_heuristics=True` names match by their endings.
            checkpointables: names; None means all.

        Returns:
            What else the file holds.

        Raises:
            FileNotFoundError: there is no such file, or the address cannot be reached.
            ValueError: the file is damaged, holds more than data, or fits less than half of the model.
        """
        if not path:
            return super().load(path, checkpointables)
        address, options = split_options(path)
        checkpoint = _read_on_all(address)
        if "matching_heuristics" in options:
            checkpoint["matching_heuristics"] = True
        report = load_weights(self.model, checkpoint, address, partial="partial" in options)
        logger.log(logging.INFO if report.is_clean() else logging.WARNING, "%s", report)
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in checkpoint:
                self.checkpointables[name].load_state_dict(checkpoint.pop(name))
        checkpoint.pop("model")
        return checkpoint


def load_weights(model: nn.Module, checkpoint: dict[str, Any], source: str, *, partial: bool = False) -> LoadReport:
    """Put the weights of a checkpoint into a model, as far as names and shapes agree or can be made to.

    Args:
        checkpoint: with tensors by name under "model"; `matching_heuristics` asks for names matched by endings.
        source: for messages.
        partial: accept a file that fills less than half of the model.

    Raises:
        ValueError: the file fills less than half; the model is unchanged.
    """
    own = model.state_dict()
    weights, kind = to_model_names(checkpoint["model"])
    if checkpoint.get("matching_heuristics") and not set(weights) & set(own):
        weights = by_endings(weights, own)
    report = LoadReport(source, kind)
    fitted: Weights = same_metadata(OrderedDict(), weights)
    for name, target in own.items():
        if name not in weights:
            report.skip(name, "not in the file")
            continue
        value = fit(name, weights[name], target, report)
        if value is not None:
            fitted[name] = value
            report.loaded.append(name)
    report.unused = [name for name in weights if name not in own and not _is_computed(name)]
    if report.match() < LEAST_MATCH and not partial:
        part = "backbone" if report.part() else "model"
        raise ValueError(
            f"The weights fit only {report.match():.0%} of the {part}: this is probably a checkpoint of another model, "
            f"or the config does not fit it.\n{report}\nIf that is meant, append ?partial=True to MODEL.WEIGHTS."
        )
    # `strict` would also object to what the report has said already.
    model.load_state_dict(fitted, strict=False)
    return report


def fit(name: str, value: Tensor, target: Tensor, report: LoadReport) -> Tensor | None:
    """The value in the target's shape, None where it cannot be; says so in the report."""
    old, new = tuple(value.shape), tuple(target.shape)
    if old == new:
        return value
    if name in _CLASSES:
        # "No object" is the last row, and no class.
        less = 0 if name.startswith("sem_seg_head.predictor.w") or name == "sem_seg_head.predictor.bias" else 1
        report.skip(name, f"{old[0] - less} classes in the file, {new[0] - less} in the model")
    elif name in _QUERIES and old[1:] == new[1:]:
        what = "the first are kept" if old[0] > new[0] else "the rest keep their initial values"
        report.notes.append(f"{name}: {old[0]} queries in the file, {new[0]} in the model; {what}")
        rows = min(old[0], new[0])
        return torch.cat([value[:rows].to(target), target[rows:]])
    elif name.endswith(".relative_position_bias_table") and old[1:] == new[1:]:
        note = f"position biases interpolated from {old[0]} to {new[0]} offsets"
        if note not in report.notes:
            report.notes.append(note)
        return resized_table(value, new[0])
    elif name.endswith(".absolute_pos_embed") and value.dim() == 3 and old[2] == new[1]:
        side = round(old[1] ** 0.5)
        report.notes.append(f"{name}: positions interpolated from {side}x{side} to {new[2]}x{new[3]}")
        return resized(value.transpose(1, 2).reshape(1, old[2], side, side), new[2:])
    else:
        report.skip(name, "of another shape" if len(old) > 4 else f"shape {old} in the file, {new} in the model")
    return None


def resized_table(table: Tensor, rows: int) -> Tensor:
    """A Swin position-bias table for another window; ((2w-1)^2, A) to (rows, A)."""
    old, new = round(len(table) ** 0.5), round(rows**0.5)
    grid = table.T.reshape(1, table.shape[1], old, old)
    return resized(grid, (new, new)).reshape(table.shape[1], rows).T.contiguous()


def resized(grid: Tensor, size: tuple[int, ...]) -> Tensor:
    """(1, C, H, W) to (1, C, *size)."""
    return F.interpolate(grid.float(), size, mode="bicubic", align_corners=False)


def read_weights(address: str) -> dict[str, Any]:
    """The checkpoint behind any address: weights by the names of the file under "model", and what else it holds.

    Raises:
        FileNotFoundError, ValueError: see `Mask2FormerCheckpointer.load`.
    """
    place = local_copy(address)
    return {"model": read_folder(place)} if place.is_dir() else read_file(place)


def _is_computed(name: str) -> bool:
    """Whether a name that the model lacks says nothing: the config has it, or the model computes it."""
    return name in ("pixel_mean", "pixel_std") or name.endswith((".num_batches_tracked", ".relative_position_index"))


def _read_on_all(address: str) -> dict[str, Any]:
    """Read on every process; those that do not see the file get it from the first one."""
    if comm.get_world_size() == 1:
        return read_weights(address)
    error: Exception | None = None
    checkpoint: dict[str, Any] | None = None
    try:
        checkpoint = read_weights(address)
    except (OSError, ValueError, ImportError) as caught:
        error = caught
    failures = comm.all_gather(str(error) if error else None)
    if failures[0]:
        raise error or FileNotFoundError(failures[0])
    if any(failures):
        box = [checkpoint if comm.is_main_process() else None]
        dist.broadcast_object_list(box, src=0)
        checkpoint = box[0]
    assert checkpoint is not None
    return checkpoint
