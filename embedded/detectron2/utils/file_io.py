"""PathManager: local paths, web addresses and detectron2:// names through one interface (iopath)."""

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any
from urllib.error import URLError
from urllib.parse import urlparse

from iopath.common.file_io import (
    HTTPURLHandler,
    OneDrivePathHandler,
    PathHandler,
    file_lock,
    get_cache_dir,
)
from iopath.common.file_io import (
    PathManager as PathManagerBase,
)

__all__ = ["PathHandler", "PathManager", "atomic_file", "file_lock"]

_MODEL_BUCKET = "https://dl.fbaipublicfiles.com/detectron2/"


class _WebHandler(HTTPURLHandler):
    """Downloads once, and says what to do when it cannot."""

    def _get_local_path(self, path: str, force: bool = False, cache_dir: str | None = None, **kwargs: Any) -> str:
        try:
            return super()._get_local_path(path, force=force, cache_dir=cache_dir, **kwargs)
        except (URLError, OSError) as error:
            cached = os.path.join(get_cache_dir(cache_dir), urlparse(path).path.lstrip("/"))
            raise FileNotFoundError(
                f"Cannot download {path} ({error}). It was looked for at {cached}: "
                "download it where there is a network and put it there, or give the path of a local copy."
            ) from error


class _ModelZooHandler(PathHandler):
    """`detectron2://X` is the file X of detectron2's public model bucket."""

    PREFIX = "detectron2://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(_MODEL_BUCKET + path.removeprefix(self.PREFIX), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> IO[Any]:
        return PathManager.open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager = PathManagerBase()
PathManager.register_handler(_WebHandler())
PathManager.register_handler(OneDrivePathHandler())
PathManager.register_handler(_ModelZooHandler())


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[IO[bytes]]:
    """Write a file that appears under `path` only when it is complete and on the disk."""
    temporary = f"{path}.tmp{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
