"""The one interface every backbone has."""

from abc import ABCMeta, abstractmethod

from torch import Tensor, nn

from detectron2.layers import ShapeSpec


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network from an image to named feature maps.

    A subclass sets `_out_features` (names, in order), `_out_feature_channels` and `_out_feature_strides` (by name),
    or overrides `output_shape`.
    """

    @abstractmethod
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> (B, C, H / stride, W / stride) for each name."""

    @property
    def size_divisibility(self) -> int:
        """What the sides of the input must be a multiple of; 0 for anything."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """Further demands on the input: "square_size", "size_divisibility"; mostly none."""
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature map."""
        channels, strides = self._out_feature_channels, self._out_feature_strides
        return {name: ShapeSpec(channels=channels[name], stride=strides[name]) for name in self._out_features}
