"""DetectionCheckpointer: fvcore's Checkpointer that reads more formats, runs no code and never leaves half a file."""

import os
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from detectron2.checkpoint import files
from detectron2.checkpoint.matching import match_names
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager, atomic_file

__all__ = ["DetectionCheckpointer"]


class DetectionCheckpointer(Checkpointer):
    """Reads `.pth`, model-zoo `.pkl`, `.pyth` and `.safetensors`; writes `.pth`.

    Args:
        model: the module, possibly wrapped for distributed training.
        save_dir: the folder of the run.
        save_to_disk: default: only on the main process.
        checkpointables: objects with state_dict and load_state_dict that are saved with the model.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        super().__init__(
            model,
            save_dir,
            save_to_disk=comm.is_main_process() if save_to_disk is None else save_to_disk,
            **checkpointables,
        )
        self.path_manager = PathManager
        self._match_names = False  # asked for in the address of the file being loaded
        self._source = ""

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load the model, and the named checkpointables that the file has.

        Args:
            path: path or address; ending in `?matching_heuristics=True` it also matches names by their endings. With an
                empty path nothing is loaded.
            checkpointables: names; None means all.

        Returns:
            What else the file holds.

        Raises:
            AssertionError: there is no such file.
            ValueError: the file is damaged, or holds more than data.
        """
        if not path:
            return super().load(path, checkpointables)
        path, self._match_names = _split_query(path)
        self._source = path
        self.logger.info("Loading from %s ...", path)
        if not os.path.isfile(path):
            path = self.path_manager.get_local_path(path)
        checkpoint = self._read_on_all(path)
        self._log_incompatible_keys(self._load_model(checkpoint))
        for name in self.checkpointables if checkpointables is None else checkpointables:
            if name in checkpoint:
                self.logger.info("Loading %s from %s ...", name, path)
                self.checkpointables[name].load_state_dict(checkpoint.pop(name))
        return checkpoint

    def save(self, name: str, **kwargs: Any) -> None:
        """Write `{save_dir}/{name}.pth`, then its name to `last_checkpoint`; either file is complete or not there.

        Args:
            name: without a folder or an ending.
            kwargs: more to save.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        assert os.path.basename(name) == name, f"Expected a file name without a folder, got {name!r}"
        states = {key: item.state_dict() for key, item in self.checkpointables.items()}
        folder = self.path_manager.get_local_path(self.save_dir)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_file(path) as file:
            torch.save({"model": self.model.state_dict(), **states, **kwargs}, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make this file of `save_dir` the one that is resumed from."""
        folder = self.path_manager.get_local_path(self.save_dir)
        with atomic_file(os.path.join(folder, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def _read_on_all(self, path: str) -> dict[str, Any]:
        """Read the file, or get it from rank 0 where some processes cannot see it."""
        seen = comm.all_gather(os.path.isfile(path))
        assert seen[0], (
            f"Checkpoint {path} not found! If last_checkpoint names it, write the name of an existing .pth file there."
        )
        if all(seen):
            return self._load_file(path)
        blind = [rank for rank, sees in enumerate(seen) if not sees]
        self.logger.warning("Processes %s cannot read %s: they get it from process 0.", blind, path)
        box: list[Any] = [self._load_file(path) if comm.is_main_process() else None]
        dist.broadcast_object_list(box, src=0, group=comm._object_group(None))
        return box[0]

    def _load_file(self, f: str) -> dict[str, Any]:
        """The file as a dict with "model" (tensors or arrays by name) and what else it holds."""
        if f.endswith(".pkl"):
            checkpoint = _from_pickle(files.read_pickle(f), f)
            if "__author__" in checkpoint:
                self.logger.info("Reading a file from '%s'", checkpoint["__author__"])
        elif f.endswith(".safetensors"):
            checkpoint = {"model": files.read_safetensors(f)}
        else:
            checkpoint = files.read_torch(f)
            if not isinstance(checkpoint, dict):
                raise ValueError(f"{f} holds a {type(checkpoint).__name__}, expected weights by name.")
            if f.endswith(".pyth") and "model_state" in checkpoint:
                checkpoint["model"] = checkpoint.pop("model_state")
            if "model" not in checkpoint:
                checkpoint = {"model": checkpoint}
        if self._match_names:
            checkpoint["matching_heuristics"] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        """Load checkpoint["model"] into the model as far as names and shapes agree."""
        if checkpoint.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(checkpoint["model"])
            shapes = {name: tuple(value.shape) for name, value in self.model.state_dict().items()}
            checkpoint["model"] = match_names(shapes, checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        self._summarise(incompatible)
        # The statistics of the images come from the config; anchors are computed from it.
        for name in {"pixel_mean", "pixel_std"}.intersection(incompatible.missing_keys):
            incompatible.missing_keys.remove(name)
        for name in [key for key in incompatible.unexpected_keys if "anchor_generator.cell_anchors" in key]:
            incompatible.unexpected_keys.remove(name)
        return incompatible

    def _summarise(self, incompatible: Any) -> None:
        total = len(self.model.state_dict())
        shapes = len(incompatible.incorrect_shapes)
        absent = {*incompatible.missing_keys, *(name for name, _, _ in incompatible.incorrect_shapes)}
        absent &= set(self.model.state_dict())
        loaded = total - len(absent)
        log = self.logger.info if loaded else self.logger.warning
        log(
            "Loaded %d of %d tensors of the model from %s; %d keep their initial values (%d because of their shape), "
            "%d in the file are not used.",
            loaded,
            total,
            self._source,
            len(absent),
            shapes,
            len(incompatible.unexpected_keys),
        )

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        # In place: the OrderedDict of a state dict carries `_metadata`, which versioned modules need.
        for name, value in state_dict.items():
            if isinstance(value, np.ndarray | np.generic):
                value = np.asarray(value)
                state_dict[name] = torch.from_numpy(value if value.flags.writeable else value.copy())
            elif not isinstance(value, torch.Tensor):
                raise ValueError(f"Unsupported type found in checkpoint! {name}: {type(value)}, expected an array.")


def _split_query(path: str) -> tuple[str, bool]:
    """(path without its query, whether the query asks for matching by endings)."""
    if os.path.isfile(path):
        return path, False
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    wants = query.pop("matching_heuristics", ["False"]) == ["True"]
    if query:
        raise ValueError(f"Unsupported query in {path!r}: {sorted(query)}, expected at most matching_heuristics=True.")
    return path.removesuffix(f"?{parts.query}"), wants


def _from_pickle(data: Any, path: str) -> dict[str, Any]:
    """The content of a .pkl file in the form of the others."""
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds a {type(data).__name__}, expected weights by name.")
    if "model" in data:
        return data
    if "blobs" in data:
        raise ValueError(
            f"{path} holds Caffe2 weights (Detectron1), whose names only upstream detectron2 converts: load it there "
            "and save the model's state dict."
        )
    weights = {name: value for name, value in data.items() if not name.endswith("_momentum")}
    return {"model": weights, "matching_heuristics": True}
