"""From the size a model worked at to the size the user asked for."""

import torch.nn.functional as F
from torch import Tensor


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Cut off the padding and resize to the output size.

    Args:
        result: (C, H, W) scores on the padded image.
        img_size: (h, w) of the image without padding.

    Returns:
        (C, output_height, output_width)
    """
    height, width = img_size
    unpadded = result[None, :, :height, :width]
    return F.interpolate(unpadded, (output_height, output_width), mode="bilinear", align_corners=False)[0]
