"""The parts of the model; importing this package registers them with detectron2."""

from .pixel_decoder.msdeformattn import MSDeformAttnPixelDecoder

__all__ = ["MSDeformAttnPixelDecoder"]
