"""detectron2.layers: the few things they do beyond PyTorch."""

import copy

import pytest
import torch
from detectron2.layers import (
    BatchNorm2d,
    CNNBlockBase,
    Conv2d,
    FrozenBatchNorm2d,
    NaiveSyncBatchNorm,
    ShapeSpec,
    cat,
    cross_entropy,
    get_norm,
    nonzero_tuple,
    shapes_to_tensor,
)
from torch import nn


def trained_batch_norm(channels=4):
    norm = nn.BatchNorm2d(channels)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.normal_()
    norm.running_var.uniform_(0.5, 2)
    return norm.eval()


def test_conv_normalises_then_activates():
    conv = Conv2d(3, 4, 3, bias=False, norm=trained_batch_norm(), activation=torch.relu)
    x = torch.randn(2, 3, 8, 8)
    expected = torch.relu(conv.norm(nn.functional.conv2d(x, conv.weight)))
    assert torch.equal(conv(x), expected)
    assert [name for name, _ in conv.named_parameters()] == ["weight", "norm.weight", "norm.bias"]


def test_an_empty_batch_stays_empty():
    assert Conv2d(3, 4, 3, stride=2, padding=1, norm=FrozenBatchNorm2d(4))(torch.zeros(0, 3, 8, 8)).shape == (
        0,
        4,
        4,
        4,
    )


def test_frozen_batch_norm_is_batch_norm_at_inference():
    norm = trained_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(norm))
    x = torch.randn(2, 4, 5, 5)
    for mode in (True, False):
        torch.testing.assert_close(frozen.train(mode)(x), norm(x))
    assert list(frozen.parameters()) == []
    assert sorted(frozen.state_dict()) == ["bias", "running_mean", "running_var", "weight"]


def test_frozen_batch_norm_with_gradients_is_the_same_map():
    norm = trained_batch_norm()
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(copy.deepcopy(norm))
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = frozen(x)
    torch.testing.assert_close(y, norm(x))
    weights = torch.randn_like(y)
    expected = torch.autograd.grad((norm(x) * weights).sum(), x)
    torch.testing.assert_close(torch.autograd.grad((y * weights).sum(), x), expected)


@pytest.mark.parametrize("requires_grad", [True, False])
def test_frozen_batch_norm_keeps_dtype_and_memory_format(requires_grad):
    x = torch.randn(2, 4, 5, 5).bfloat16().to(memory_format=torch.channels_last).requires_grad_(requires_grad)
    y = FrozenBatchNorm2d(4)(x)
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)


def test_a_new_frozen_batch_norm_changes_nothing():
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(FrozenBatchNorm2d(3)(x), x)


def test_old_weights_without_statistics_load_silently():
    frozen = FrozenBatchNorm2d(2)
    frozen.load_state_dict({"weight": torch.tensor([2.0, 3.0]), "bias": torch.tensor([0.0, 1.0])})
    assert frozen.running_mean.tolist() == [0, 0] and frozen.running_var.tolist() == [1, 1]


def test_conversion_reaches_every_batch_norm():
    inside = nn.Sequential(trained_batch_norm(), nn.SyncBatchNorm(4))
    model = nn.ModuleDict({"a": inside, "b": nn.GroupNorm(2, 4)})
    assert FrozenBatchNorm2d.convert_frozen_batchnorm(model) is model
    assert [type(m) for m in model["a"]] == [FrozenBatchNorm2d] * 2 and isinstance(model["b"], nn.GroupNorm)


def test_norms_by_name():
    kinds = {
        "BN": BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "nnSyncBN": nn.SyncBatchNorm,
        "FrozenBN": FrozenBatchNorm2d,
        "GN": nn.GroupNorm,
        "naiveSyncBN": NaiveSyncBatchNorm,
        "naiveSyncBN_N": NaiveSyncBatchNorm,
    }
    for name, kind in kinds.items():
        assert isinstance(get_norm(name, 64), kind)
    assert get_norm("GN", 64).num_groups == 32
    assert get_norm("", 64) is None and get_norm(None, 64) is None
    assert isinstance(get_norm(lambda channels: nn.GroupNorm(2, channels), 64), nn.GroupNorm)
    with pytest.raises(KeyError):
        get_norm("XN", 64)


def test_layer_norm_normalises_channels_at_each_position():
    norm, x = get_norm("LN", 6), torch.randn(2, 6, 3, 4)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    torch.testing.assert_close(norm(x), (x - mean) / (var + 1e-6).sqrt())


def test_naive_sync_batch_norm_on_one_process_is_batch_norm():
    x = torch.randn(3, 4, 5, 5)
    ours, plain = NaiveSyncBatchNorm(4), nn.BatchNorm2d(4)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.running_var, plain.running_var)


def _batch():
    return torch.arange(4 * 2 * 3 * 3.0).view(4, 2, 3, 3).sin()


def _train_on_share(rank, file, queue):
    """One of two processes: both ways of counting, its share of the batch."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for mode, first in (("", 2), ("N", 1)):
        share = _batch().split([first, 4 - first])[rank].clone().requires_grad_()
        norm = NaiveSyncBatchNorm(2, stats_mode=mode)
        y = norm(share)
        y.pow(3).sum().backward()
        queue.put((mode, rank, y.tolist(), share.grad.tolist(), norm.running_mean.tolist()))
    dist.barrier()
    dist.destroy_process_group()


def test_naive_sync_batch_norm_on_two_processes_is_batch_norm_of_the_whole_batch(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = [(rank, str(tmp_path / "rendezvous"), queue) for rank in (0, 1)]
    workers = [context.Process(target=_train_on_share, args=args) for args in arguments]
    for worker in workers:
        worker.start()
    answers = sorted(queue.get(timeout=90) for _ in range(4))
    for worker in workers:
        worker.join()

    batch, norm = _batch().requires_grad_(), nn.BatchNorm2d(2)
    y = norm(batch)
    y.pow(3).sum().backward()
    for first, second in (answers[:2], answers[2:]):  # mode "", mode "N"
        outputs, gradients = (torch.cat([torch.tensor(first[i]), torch.tensor(second[i])]) for i in (2, 3))
        torch.testing.assert_close(outputs, y.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, batch.grad, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(torch.tensor(first[4]), norm.running_mean)


def test_a_frozen_block_has_no_gradients_and_no_batch_statistics():
    class Block(CNNBlockBase):
        def __init__(self):
            super().__init__(3, 4, stride=2)
            self.conv = Conv2d(3, 4, 3, norm=nn.BatchNorm2d(4))

    block = Block()
    assert block.freeze() is block
    assert not any(parameter.requires_grad for parameter in block.parameters())
    assert isinstance(block.conv.norm, FrozenBatchNorm2d)


def test_small_helpers():
    x = torch.ones(2, 3)
    assert cat([x]) is x and cat([x, x], dim=1).shape == (2, 6)
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.long), reduction="mean")
    loss.backward()
    assert loss == 0 and logits.grad is not None
    assert [i.tolist() for i in nonzero_tuple(torch.tensor([[0, 1], [1, 0]]))] == [[0, 1], [1, 0]]
    assert shapes_to_tensor([3, 4]).tolist() == [3, 4]
    assert ShapeSpec(channels=3) == ShapeSpec(3, None, None, None)
