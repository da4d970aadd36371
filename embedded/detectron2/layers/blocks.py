"""What the blocks of a convolutional backbone have in common."""

from torch import nn

from detectron2.layers.batch_norm import FrozenBatchNorm2d


class CNNBlockBase(nn.Module):
    """A block with one input and one output map, of known channels and stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride

    def freeze(self) -> "CNNBlockBase":
        """Stop training: no parameter takes a gradient and batch statistics stay as they are."""
        self.requires_grad_(False)
        FrozenBatchNorm2d.convert_frozen_batchnorm(self)
        return self
