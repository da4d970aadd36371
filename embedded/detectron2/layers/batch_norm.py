"""Normalisation layers, and `get_norm`, which finds them by the names used in configs."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn

BatchNorm2d = nn.BatchNorm2d


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation with fixed statistics: the same affine map per channel in training and inference.

    It has no parameters, only the buffers `weight, bias, running_mean, running_var`.
    """

    _version = 3
    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - eps}.items():
            self.register_buffer(name, torch.full((num_features,), value))
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), in the dtype and memory format of `x`."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # With gradients: a product with a constant does not keep `x` for the backward pass, batch_norm does.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        per_channel = (1, -1, 1, 1)
        return torch.addcmul(shift.to(x.dtype).view(per_channel), x, scale.to(x.dtype).view(per_channel))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if (local_metadata.get("version") or 0) < 2:
            # Weights of that age come with mean and variance already inside weight and bias.
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)  # a plain batch norm's counter: of no use here
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def extra_repr(self) -> str:
        return f"num_features={self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm and SyncBatchNorm in `module` by a frozen one with the same values.

        Returns:
            `module`, changed in place; or its replacement where it is itself a batch norm.
        """
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            for name, child in list(module.named_children()):
                frozen = cls.convert_frozen_batchnorm(child)
                if frozen is not child:
                    setattr(module, name, frozen)
            return module
        frozen = cls(module.num_features, module.eps).to(module.running_mean.device)
        values = module.state_dict()
        for name in values.keys() & {"weight", "bias", "running_mean", "running_var"}:
            getattr(frozen, name).copy_(values[name])
        return frozen.train(module.training)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on any device (nn.SyncBatchNorm needs CUDA).

    Args:
        stats_mode: "" when every process counts alike, "N" when each counts by its number of images (which
            may differ, and may be zero).
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        if stats_mode not in ("", "N"):
            raise ValueError(f'stats_mode is "{stats_mode}"; it can be "" or "N"')
        super().__init__(*args, **kwargs)
        self._stats_mode = stats_mode

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), float32 inside."""
        alone = not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1
        if alone or not self.training:
            return super().forward(x)
        values = x.float()
        # An empty batch has no mean; it takes part with weight 0.
        moments = torch.stack([values.mean((0, 2, 3)), values.square().mean((0, 2, 3))]) if len(x) else None
        if moments is None:
            moments = values.sum() * 0.0 + values.new_zeros(2, self.num_features)
        share = float(len(x)) if self._stats_mode == "N" else 1.0
        total = differentiable_all_reduce(torch.cat([moments.flatten() * share, values.new_tensor([share])]))
        count = total[-1].detach()
        mean, mean_square = total[:-1].view(2, -1) / count.clamp(min=1.0)
        var = mean_square - mean.square()
        if count > 0:
            self._update_running(mean.detach(), var.detach())
        scale = self.weight * (var + self.eps).rsqrt()
        shift = self.bias - mean * scale
        return (values * scale[:, None, None] + shift[:, None, None]).to(x.dtype)

    def _update_running(self, mean: Tensor, var: Tensor) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(var, momentum)
        self.num_batches_tracked.add_(1)


class LayerNorm(nn.Module):
    """Layer normalisation over the channels of a (B, C, H, W) map, at every position by itself."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        channels_last = x.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm2d,
    "GN": lambda channels: nn.GroupNorm(32, channels),
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Make the normalisation layer a config names.

    Args:
        norm: a name ("BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN"), a callable
            from a number of channels to a layer, or None or "" for none.

    Raises:
        KeyError: the name is not one of these.
    """
    if norm is None or norm == "":
        return None
    if isinstance(norm, str):
        if norm not in _NORMS:
            raise KeyError(f'unknown normalisation "{norm}"; known: {", ".join(_NORMS)}')
        return _NORMS[norm](out_channels)
    return norm(out_channels)
