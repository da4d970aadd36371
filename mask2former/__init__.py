"""Mask2Former as a detectron2 extension."""

__version__ = "0.1.0"

try:
    import detectron2 as _detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ModuleNotFoundError(
        "mask2former needs detectron2. Either run `pip install -r requirements.txt` in this project's folder, which "
        "installs the small embedded one, or install the original: https://detectron2.readthedocs.io.",
        name="detectron2",
    ) from None

from .config import add_maskformer2_config
from .model import MaskFormer

__all__ = ["MaskFormer", "add_maskformer2_config"]
