"""Images of different sizes as one padded tensor."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, device, stack


class ImageList:
    """A padded batch that remembers how large each image was.

    Attributes:
        tensor: (B, H, W) or (B, C, H, W); padding is at the right and the bottom.
        image_sizes: (h, w) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: Mapping[str, int] | None = None,
    ) -> "ImageList":
        """Pad images to the largest height and width among them.

        Args:
            tensors: each (C, h, w) or (h, w), alike but for h and w.
            size_divisibility: if above 1, height and width are rounded up to a multiple of it.
            pad_value: what padding is filled with.
            padding_constraints: what a backbone asks for: "size_divisibility" as above (it takes precedence),
                "square_size" pads to that side, whatever the images.

        Raises:
            ValueError: without images, or if an image is larger than "square_size".
        """
        if len(tensors) == 0:
            raise ValueError("ImageList.from_tensors got no images, expected at least one.")
        sizes = [(int(t.shape[-2]), int(t.shape[-1])) for t in tensors]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)

        constraints = padding_constraints or {}
        square = constraints.get("square_size", 0)
        if square > 0:
            if max(height, width) > square:
                raise ValueError(
                    f"An image of the batch ({height} x {width}) is larger than the square of side {square} the "
                    "backbone asks for. Resize images so that their longer side fits."
                )
            height = width = square
        multiple = constraints.get("size_divisibility", size_divisibility)
        if multiple > 1:
            height, width = (-(-side // multiple) * multiple for side in (height, width))

        padded = [F.pad(t, (0, width - w, 0, height - h), value=pad_value) for t, (h, w) in zip(tensors, sizes)]
        return ImageList(stack(padded).contiguous(), sizes)

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, index: int) -> Tensor:
        """One image without its padding: a view (C, h, w) or (h, w)."""
        height, width = self.image_sizes[index]
        return self.tensor[index, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> "ImageList":
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> device:
        return self.tensor.device
