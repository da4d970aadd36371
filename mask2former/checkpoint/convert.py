"""Whole models between this project's files and Hugging Face folders, with the configs that go with them."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..setup_config import changed
from . import huggingface
from .hub_config import (
    NOT_THERE,
    hub_config,
    hub_preprocessor,
    settings_of_hub,
    settings_of_name,
    settings_of_task,
)
from .load import read_weights
from .readers import Weights, read_folder
from .renames import to_model_names
from .sources import local_copy
from .structure import Settings, check_fits, config_of_settings, settings_of_weights, value_of

# Where the weights' header keeps what Hugging Face's configs have no place for.
_HEADER = "detectron2_settings"


def to_hub(
    source: str,
    folder: Path,
    cfg: CfgNode | None = None,
    *,
    task: str | None = None,
    class_names: list[str] | None = None,
) -> None:
    """Write a Hugging Face folder: config.json, preprocessor_config.json and model.safetensors.

    Args:
        source: a checkpoint of a Mask2Former, anything that MODEL.WEIGHTS takes.
        cfg: its config; None: what the weights show, and the published values for the rest.
        task: "semantic", "instance", "panoptic" or "all"; None: the config's.
        class_names: None: those of the config's training data, or else LABEL_0 and so on.

    Raises:
        ValueError: the config does not fit the weights, or Hugging Face's model lacks a part of this one.
    """
    from safetensors.torch import save_file

    weights, _ = to_model_names(read_weights(source)["model"])
    weights = _computed_added(weights)
    if cfg is None:
        cfg = config_of_settings({**settings_of_weights(weights), **settings_of_task(task or "all")})
    elif task is not None:
        cfg = changed(cfg, settings_of_task(task))
    check_fits(weights, cfg)
    config = hub_config(cfg, class_names or names_of_classes(cfg))
    preprocessor = hub_preprocessor(cfg)
    renamed = huggingface.to_huggingface(weights)
    header = {"format": "pt", _HEADER: json.dumps({name: value_of(cfg, name) for name in NOT_THERE})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    save_file(renamed, folder / "model.safetensors", header)


def from_hub(source: str, file: Path, *, task: str | None = None) -> Path:
    """Write a checkpoint from a Hugging Face folder, and beside it the YAML config that fits.

    Args:
        source: a folder, or hf://owner/name[@revision].
        file: to write, `.pkl` (the model zoo's layout) or `.pth`.
        task: see `to_hub`; None: as it was before it went there, or by the name of a published model, or all.

    Returns:
        The path of the config, that of the file with the ending .yaml.

    Raises:
        ValueError: it is not a Mask2Former, or files in the folder do not fit each other.
    """
    if file.suffix not in (".pkl", ".pth"):
        raise ValueError(f"{file}: expected a file name that ends in .pkl or .pth.")
    folder = local_copy(source)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json: expected a folder that save_pretrained wrote.")
    weights = huggingface.to_detectron2(read_folder(folder))
    config = json.loads((folder / "config.json").read_text())
    described = folder / "preprocessor_config.json"
    preprocessor = json.loads(described.read_text()) if described.is_file() else {}
    known = {
        **settings_of_task("all"),
        **settings_of_name(f"{config.get('_name_or_path', '')} {source}"),
        **_header(folder),
    }
    settings = {**settings_of_weights(weights), **settings_of_hub(config, preprocessor), **known}
    settings |= settings_of_task(task) if task else {}
    if settings.get("MODEL.RESNETS.NORM") == "BN" and "MODEL.RESNETS.NORM" not in known:
        # The counters are there in any case; the published models never trained the statistics.
        settings["MODEL.RESNETS.NORM"] = "FrozenBN"
    if settings.get("MODEL.RESNETS.NORM") == "FrozenBN":
        weights = {name: value for name, value in weights.items() if not name.endswith(".num_batches_tracked")}
    cfg = config_of_settings(settings)
    metadata = check_fits(weights, cfg)
    _write(weights, metadata, file)
    described = file.with_suffix(".yaml")
    written = {"VERSION": cfg.VERSION} | {name: value_of(cfg, name) for name in settings} | {"MODEL.WEIGHTS": str(file)}
    described.write_text(yaml.safe_dump(_nested(written)))
    return described


def convert_backbone(source: str, file: Path) -> tuple[str, int]:
    """Write a pretrained backbone as a pickle in the layout of the model zoo, names without "backbone.".

    Args:
        source: a ResNet of torchvision or MSRA, or a published Swin classifier; any address.
        file: to write, `.pkl`.

    Returns:
        What the source is, and how many weights were written; its classifier is left out.

    Raises:
        ValueError: it is none of these.
    """
    if file.suffix != ".pkl":
        raise ValueError(f"{file}: expected a file name that ends in .pkl.")
    weights, kind = to_model_names(read_weights(source)["model"])
    prefix = "backbone."
    arrays = {name.removeprefix(prefix): value.numpy() for name, value in weights.items() if name.startswith(prefix)}
    if not arrays or len(arrays) < len(weights) / 2:
        raise ValueError(f"{source} is not a backbone: expected a ResNet of torchvision or MSRA, or a Swin classifier.")
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": arrays, "__author__": "Mask2Former", "matching_heuristics": True}
    file.write_bytes(pickle.dumps(content, protocol=4))
    return kind, len(arrays)


def names_of_classes(cfg: CfgNode) -> list[str]:
    """Names of the model's classes from the metadata of its data; LABEL_0 and so on where that has none."""
    number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for dataset in (*cfg.DATASETS.TRAIN[:1], *cfg.DATASETS.TEST[:1]):
        metadata = MetadataCatalog.get(dataset)
        for kind in ("stuff_classes", "thing_classes"):
            names = metadata.get(kind) or []
            if len(names) == number:
                return list(names)
    return [f"LABEL_{i}" for i in range(number)]


def _write(weights: Weights, metadata: Any, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".pth":
        ordered: Any = OrderedDict(weights)
        ordered._metadata = metadata
        torch.save({"model": ordered}, file)
        return
    arrays: Any = OrderedDict((name, value.numpy()) for name, value in weights.items())
    # The published code goes by these versions, and renames what is named rightly without them.
    arrays._metadata = metadata
    file.write_bytes(pickle.dumps({"model": arrays, "__author__": "Mask2Former"}, protocol=4))


def _computed_added(weights: Weights) -> Weights:
    """With the indices of position biases, where a file left them out: what is compared is the whole model."""
    added = OrderedDict(weights)
    for name, table in weights.items():
        if name.endswith(".relative_position_bias_table"):
            window = (round(len(table) ** 0.5) + 1) // 2
            added.setdefault(name.replace("bias_table", "index"), huggingface.position_index(window))
    return added


def _header(folder: Path) -> Settings:
    """The settings in the header of the folder's weights, as far as they are ones that we put there."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return {}
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        stored = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
    return {name: value for name, value in stored.items() if name in NOT_THERE}


def _nested(settings: Settings) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *path, leaf = name.split(".")
        node = nested
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = list(value) if isinstance(value, tuple) else value
    return nested
