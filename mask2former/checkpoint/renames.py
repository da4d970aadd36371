"""Names of weights: from every layout people have to the names of this project's models.

Each layout is recognised by names only it has, so a file needs no label. All renames keep what they do not know.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..modeling.head import rename_old_keys
from . import huggingface

Weights = dict[str, Tensor]

# FrozenBatchNorm adds this to the variance.
_EPSILON = 1e-5


def to_model_names(weights: Weights) -> tuple[Weights, str]:
    """The weights under the model's names, and what kind of file they came from.

    Args:
        weights: tensors by name, in any known layout. Not changed.

    Returns:
        The renamed weights, with the `_metadata` of the given ones, and a phrase for the report.
    """
    weights = without_prefix(weights, "module.")
    for kind, mark, rename in _LAYOUTS:
        if any(re.match(mark, name) for name in weights):
            return rename(weights), kind
    renamed = same_metadata(OrderedDict(weights), weights)
    if any(name.startswith("sem_seg_head.") for name in renamed):
        rename_old_keys(renamed, "sem_seg_head.")
    return renamed, "detectron2 weights"


def torchvision_resnet(weights: Weights) -> Weights:
    """torchvision's ResNet: `layer1.0.conv1.weight` is `backbone.res2.0.conv1.weight`."""

    def rename(name: str) -> str:
        name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
        name = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
        name = name.replace(".downsample.0.", ".shortcut.").replace(".downsample.1.", ".shortcut.norm.")
        return name if name.startswith("fc.") else f"backbone.{name}"

    return {rename(name): value for name, value in weights.items()}


def msra_resnet(weights: Weights) -> Weights:
    """Caffe2's ResNet: `res2_0_branch2a_w` is `backbone.res2.0.conv1.weight`.

    Its normalisation is a scale and an offset: statistics that leave them alone are added.
    """
    layers = {"branch1": "shortcut", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
    ends = {"w": "weight", "bn_s": "norm.weight", "bn_b": "norm.bias", "bn_rm": "norm.running_mean"}
    ends |= {"bn_riv": "norm.running_var"}
    renamed: Weights = {}
    for name, value in weights.items():
        if name.endswith("_momentum"):
            continue
        block = re.fullmatch(r"res(\d)_(\d+)_(branch1|branch2[abc])_(w|bn_s|bn_b|bn_rm|bn_riv)", name)
        stem = re.fullmatch(r"(?:res_)?conv1_(w|bn_s|bn_b|bn_rm|bn_riv)", name)
        if block:
            name = f"backbone.res{block[1]}.{block[2]}.{layers[block[3]]}.{ends[block[4]]}"
        elif stem:
            name = f"backbone.stem.conv1.{ends[stem[1]]}"
        renamed[name] = value
    for name in [name for name in renamed if name.endswith(".norm.weight")]:
        size = renamed[name].shape
        renamed.setdefault(name.replace("weight", "running_mean"), torch.zeros(size))
        renamed.setdefault(name.replace("weight", "running_var"), torch.full(size, 1 - _EPSILON))
    return renamed


def bare_backbone(weights: Weights) -> Weights:
    """A backbone's weights without the model around it: `stem.conv1.weight` is `backbone.stem.conv1.weight`.

    The classifier of a Swin file (`head`, and `norm` before it) keeps its names: a model has no place for it. Masks of
    its attention are computed from the image here.
    """
    kept = {name: value for name, value in weights.items() if not name.endswith(".attn_mask")}
    return {name if re.match(r"(head|norm)\.", name) else f"backbone.{name}": value for name, value in kept.items()}


def by_endings(weights: Weights, model_names: Iterable[str]) -> Weights:
    """Match names by their endings: each of the model's takes the longest name that ends it after a dot.

    Raises:
        ValueError: a weight fits two names of the model.
    """
    taken: dict[str, str] = {}
    for name in model_names:
        parts = name.split(".")
        ending = next((e for e in (".".join(parts[i:]) for i in range(len(parts))) if e in weights), None)
        if ending is None:
            continue
        if ending in taken:
            raise ValueError(
                f"matching_heuristics=True: {ending!r} of the file fits both {taken[ending]!r} and {name!r}; "
                "rename it in the file."
            )
        taken[ending] = name
    return same_metadata(OrderedDict((taken.get(name, name), value) for name, value in weights.items()), weights)


def without_prefix(weights: Weights, prefix: str) -> Weights:
    """Drop a prefix that every name has, from the metadata as well."""
    if not all(name.startswith(prefix) for name in weights):
        return weights
    bare = OrderedDict((name.removeprefix(prefix), value) for name, value in weights.items())
    metadata = getattr(weights, "_metadata", None)
    if metadata is not None:
        bare._metadata = type(metadata)((name.removeprefix(prefix), value) for name, value in metadata.items())
    return bare


def same_metadata(weights: Any, source: Any) -> Any:
    """Give weights the `_metadata` of the ones they come from: versioned modules need it."""
    if hasattr(source, "_metadata"):
        weights._metadata = source._metadata
    return weights


_LAYOUTS: list[tuple[str, str, Callable[[Weights], Weights]]] = [
    ("Hugging Face weights", r"model\.pixel_level_module\.", huggingface.to_detectron2),
    ("a torchvision ResNet", r"layer1\.0\.conv1\.weight", torchvision_resnet),
    ("an MSRA ResNet (made for INPUT.FORMAT BGR, PIXEL_STD 1, STRIDE_IN_1X1 True)", r"res2_0_branch2a_w", msra_resnet),
    ("a backbone", r"(stem\.conv1|patch_embed\.proj)\.weight", bare_backbone),
]
