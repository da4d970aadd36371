"""Checkpoints: what is read, what is refused, what survives an interruption."""

import collections
import logging
import os
import pickle
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import Checkpointer, DetectionCheckpointer, PeriodicCheckpointer
from torch import nn

only_embedded = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="upstream differs on purpose")


class Versioned(nn.Module):
    """Notes which version of itself the file had."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.seen = "nothing"

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        self.seen = local_metadata.get("version")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


class Net(nn.Module):
    def __init__(self, width: int = 3):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = Versioned()
        self.last = nn.Linear(3, width)
        self.register_buffer("pixel_mean", torch.zeros(3), False)


def random_net(**kwargs) -> Net:
    net = Net(**kwargs)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    return net


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))


def test_save_and_resume(tmp_path: Path):
    net = random_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    DetectionCheckpointer(net, str(tmp_path), optimizer=optimizer).save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000004.pth"]

    other = random_net()
    fresh = torch.optim.SGD(other.parameters(), lr=0.1)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
    assert isinstance(checkpointer, Checkpointer) and checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("ignored.pth", resume=True) == {"iteration": 4}
    assert same(net, other) and fresh.param_groups[0]["lr"] == 0.5 and other.head.seen == 2


def test_without_resume_only_the_model_is_loaded(tmp_path: Path):
    net = random_net()
    DetectionCheckpointer(net, str(tmp_path), optimizer=torch.optim.SGD(net.parameters(), lr=0.5)).save("a")
    other = random_net()
    fresh = torch.optim.SGD(other.parameters(), lr=0.1)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
    rest = checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=False)
    assert same(net, other) and fresh.param_groups[0]["lr"] == 0.1 and "optimizer" in rest


def test_nothing_to_load():
    net = random_net()
    before = [parameter.clone() for parameter in net.parameters()]
    assert DetectionCheckpointer(net).load("") == {}
    assert all(map(torch.equal, before, net.parameters()))
    with pytest.raises(AssertionError, match="not found"):
        DetectionCheckpointer(net).load("no_such_file.pth")


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("arrays", [True, False])
def test_model_zoo_pickles_keep_their_metadata(tmp_path: Path, arrays: bool, protocol: int):
    net = random_net()
    state = net.state_dict()
    if arrays:
        for name, value in state.items():
            state[name] = value.numpy()
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "someone"}, protocol=protocol))
    other = random_net()
    assert DetectionCheckpointer(other).load(str(path))["__author__"] == "someone"
    assert same(net, other) and other.head.seen == 2


def test_a_plain_dict_has_no_version(tmp_path: Path):
    torch.save({"model": dict(random_net().state_dict())}, tmp_path / "a.pth")
    net = random_net()
    DetectionCheckpointer(net).load(str(tmp_path / "a.pth"))
    assert net.head.seen is None


def test_bare_and_wrapped_state_dicts(tmp_path: Path):
    net = random_net()
    torch.save(net.state_dict(), tmp_path / "bare.pth")
    torch.save({"model": nn.DataParallel(net).state_dict()}, tmp_path / "wrapped.pth")
    torch.save({"model_state": net.state_dict()}, tmp_path / "pycls.pyth")
    for name in ("bare.pth", "wrapped.pth", "pycls.pyth"):
        other = random_net()
        DetectionCheckpointer(other).load(str(tmp_path / name))
        assert same(net, other) and other.head.seen == 2, name


def test_other_shapes_are_skipped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    DetectionCheckpointer(random_net(width=5), str(tmp_path)).save("a")
    net = random_net(width=3)
    before = net.last.weight.clone()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(net).load(str(tmp_path / "a.pth"))
    assert torch.equal(net.last.weight, before)
    assert (
        "Skip loading parameter 'last.weight' to the model due to incompatible shapes: (5, 3) in the checkpoint "
        "but (3, 3) in the model!" in caplog.text
    )


def test_missing_and_unknown_names_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    state = random_net().state_dict()
    del state["last.weight"]
    state["nowhere.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(random_net()).load(str(tmp_path / "a.pth"))
    assert "last.weight" in caplog.text and "nowhere.weight" in caplog.text and "pixel_mean" not in caplog.text


def test_names_are_matched_by_their_endings(tmp_path: Path):
    net = random_net()
    state = {name.removeprefix("backbone."): value.numpy() for name, value in net.backbone.state_dict().items()}
    path = tmp_path / "imagenet.pkl"
    path.write_bytes(pickle.dumps({"model": state, "__author__": "x", "matching_heuristics": True}))
    other = random_net()
    DetectionCheckpointer(other).load(str(path))
    assert same(net.backbone, other.backbone) and not same(net.last, other.last)

    torch.save({"0.weight": net.backbone[0].weight.data}, tmp_path / "part.pth")
    other = random_net()
    DetectionCheckpointer(other).load(str(tmp_path / "part.pth") + "?matching_heuristics=True")
    assert torch.equal(other.backbone[0].weight, net.backbone[0].weight)
    with pytest.raises(ValueError, match="query"):
        DetectionCheckpointer(other).load(str(tmp_path / "part.pth") + "?nonsense=1")


def test_a_name_that_fits_twice_is_refused(tmp_path: Path):
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "a.pth")
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match="Cannot match one checkpoint key to multiple keys"):
        DetectionCheckpointer(net).load(str(tmp_path / "a.pth") + "?matching_heuristics=True")


def test_periodic_checkpoints(tmp_path: Path):
    periodic = PeriodicCheckpointer(DetectionCheckpointer(Net(), str(tmp_path)), 3, max_iter=6)
    for iteration in range(6):
        periodic.step(iteration)
    names = {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint"}
    assert set(os.listdir(tmp_path)) == names
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@only_embedded
@pytest.mark.parametrize("name", ["bomb.pkl", "bomb.pth"])
def test_files_that_run_code_are_refused(tmp_path: Path, name: str):
    content = {"model": {}, "__author__": Bomb(tmp_path / "ran")}
    if name.endswith("pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=r"was refused: it asks for \w+.mkdir, which is not"):
        DetectionCheckpointer(Net()).load(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@only_embedded
def test_numpy_numbers_in_a_checkpoint(tmp_path: Path):
    extra = {"best": np.float64(0.5), "curve": np.arange(3), "names": collections.OrderedDict(a=1)}
    torch.save({"model": Net().state_dict(), **extra}, tmp_path / "a.pth")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Net().state_dict(), **extra}))
    for name in ("a.pth", "a.pkl"):
        rest = DetectionCheckpointer(Net()).load(str(tmp_path / name))
        assert rest["best"] == 0.5 and rest["curve"].tolist() == [0, 1, 2] and rest["names"] == {"a": 1}


@only_embedded
def test_damaged_files_are_named(tmp_path: Path):
    DetectionCheckpointer(Net(), str(tmp_path)).save("good")
    good = (tmp_path / "good.pth").read_bytes()
    zoo = pickle.dumps({"model": {"a": np.zeros(100)}, "__author__": "x"})
    damaged = {
        "empty.pth": b"",
        "half.pth": good[: len(good) // 2],
        "half.pkl": zoo[:-300],
        "page.pth": b"<!DOCTYPE html><html>404</html>",
        "pointer.pkl": b"version https://git-lfs.github.com/spec/v1\n",
        "noise.pth": b"\x07" * 50,
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: .*download or copy it again"):
            DetectionCheckpointer(Net()).load(str(tmp_path / name))


@only_embedded
def test_an_interrupted_save_leaves_the_last_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    checkpointer = DetectionCheckpointer(Net(), str(tmp_path))
    checkpointer.save("a")
    complete = (tmp_path / "a.pth").read_bytes()

    def full_disk(data, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="No space"):
            checkpointer.save(name)
    assert sorted(os.listdir(tmp_path)) == ["a.pth", "last_checkpoint"]
    assert (tmp_path / "a.pth").read_bytes() == complete
    assert (tmp_path / "last_checkpoint").read_text() == "a.pth"


@only_embedded
def test_a_load_is_summed_up_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    state = random_net(width=5).state_dict()  # 10 tensors, two of other shapes
    state["nowhere"] = torch.zeros(1)
    torch.save(state, tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(random_net()).load(str(tmp_path / "a.pth"))
    assert "Loaded 8 of 10 tensors" in caplog.text and "2 keep their initial values (2 because" in caplog.text
    assert "1 in the file are not used" in caplog.text


@only_embedded
def test_caffe2_weights_are_refused(tmp_path: Path):
    (tmp_path / "c2.pkl").write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(1)}}))
    with pytest.raises(ValueError, match="Caffe2"):
        DetectionCheckpointer(Net()).load(str(tmp_path / "c2.pkl"))


@only_embedded
def test_safetensors(tmp_path: Path):
    safetensors = pytest.importorskip("safetensors.torch")
    net, other = random_net(), random_net()
    safetensors.save_file(net.state_dict(), tmp_path / "a.safetensors")
    DetectionCheckpointer(other).load(str(tmp_path / "a.safetensors"))
    assert same(net, other)
