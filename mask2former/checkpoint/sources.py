"""Where weights come from: an address of any kind in, a local file or folder out."""

import os
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from detectron2.utils.file_io import PathManager

from .claims import clipped

HUB = "hf://"
_HUB_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
# detectron2:// is short for this address.
_DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"


def split_options(address: str) -> tuple[str, set[str]]:
    """(address without its options, which of `partial` and `matching_heuristics` it sets to True).

    Raises:
        ValueError: another option.
    """
    if os.path.exists(address) or "?" not in address:
        return address, set()
    bare, _, query = address.rpartition("?")
    options = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}
    unknown = set(options) - {"partial", "matching_heuristics"}
    if unknown:
        raise ValueError(
            f"Unsupported option {sorted(unknown)} in {address!r}: expected partial=True or matching_heuristics=True."
        )
    return bare, {name for name, value in options.items() if value == "True"}


def local_copy(address: str) -> Path:
    """The local file or folder behind an address; downloaded, or found in the cache, if need be.

    Args:
        address: a path, https://..., detectron2://... or hf://owner/name[@revision].

    Raises:
        FileNotFoundError: it is not there, or cannot be reached; one line says how to put it there.
        ValueError: the address is malformed.
        ImportError: hf:// needs the package huggingface_hub.
    """
    if address.startswith(HUB):
        return _from_hub(address)
    if "://" not in address:
        path = Path(address).expanduser()
        if not path.exists():
            raise FileNotFoundError(
                f"MODEL.WEIGHTS asks for {address}: there is no such file or folder (looked at {path.absolute()}). "
                "Correct the path, or put the file there."
            )
        return path
    try:
        return Path(PathManager.get_local_path(address))
    except (OSError, AssertionError, RuntimeError) as error:
        raise FileNotFoundError(_unreachable(address, error)) from error


def _unreachable(address: str, error: Exception) -> str:
    url = address.replace("detectron2://", _DETECTRON2, 1)
    reason = clipped(" ".join(str(error.__cause__ or error).split()), 160) or type(error).__name__
    if not url.startswith("http"):
        return f"MODEL.WEIGHTS asks for {address}: {reason}. Give the path of a local file instead."
    # The cache mirrors the path of the address.
    cache = Path(os.environ.get("FVCORE_CACHE", "~/.torch/iopath_cache")).expanduser()
    place = cache / urlsplit(url).path.lstrip("/")
    return (
        f"MODEL.WEIGHTS asks for {address}: it is neither in the cache ({place}) nor could it be downloaded from {url} "
        f"({reason}). Correct the address, or download it where there is a network and put it at {place}, or give its "
        "local path as MODEL.WEIGHTS."
    )


def _from_hub(address: str) -> Path:
    match = _HUB_ADDRESS.fullmatch(address)
    if match is None:
        raise ValueError(f"MODEL.WEIGHTS is {address!r}, expected hf://owner/name or hf://owner/name@revision.")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"MODEL.WEIGHTS {address} needs the package huggingface_hub: `pip install huggingface_hub safetensors`, or "
            "download the folder yourself and give its path."
        ) from error
    repo, revision = match["repo"], match["revision"]
    # The pickled weights only where there are no others.
    for weights in ("model*.safetensors*", "pytorch_model*.bin*"):
        try:
            wanted = ["config.json", "preprocessor_config.json", weights]
            folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted))
        except Exception as error:  # of the hub, of its client and of the network: no common class
            reason = clipped(" ".join(str(error).split()), 160) or type(error).__name__
            cache = huggingface_hub.constants.HF_HUB_CACHE
            at = f" --revision {revision}" if revision else ""
            raise FileNotFoundError(
                f"MODEL.WEIGHTS asks for {address}: it is neither in the cache ({cache}) nor could it be downloaded "
                f"from {huggingface_hub.constants.ENDPOINT}/{repo} ({reason}). Correct the address, or run `hf "
                f"download {repo}{at} --local-dir FOLDER` where there is a network and give FOLDER as MODEL.WEIGHTS."
            ) from error
        if any(folder.glob(weights)):
            return folder
    raise FileNotFoundError(
        f"MODEL.WEIGHTS asks for {address}: {repo} has neither model.safetensors nor pytorch_model.bin (looked in "
        f"{folder}). Name a repository with weights of transformers."
    )
