"""Addresses: found, downloaded, or one line on what was wanted, where it was looked for and how to put it there."""

import http.server
import threading
from functools import partial

import pytest
import torch
from small_models import same_weights, small_model

from mask2former.checkpoint import Mask2FormerCheckpointer
from mask2former.checkpoint.sources import local_copy, split_options


def complaint(address, *expected):
    """The one line a user reads."""
    with pytest.raises(FileNotFoundError) as error:
        Mask2FormerCheckpointer(small_model()).load(address)
    text = str(error.value)
    assert "\n" not in text and f"MODEL.WEIGHTS asks for {address}" in text
    assert all(part in text for part in expected), text
    return text


def test_a_wrong_path(tmp_path):
    complaint(str(tmp_path / "x.pth"), f"no such file or folder (looked at {tmp_path / 'x.pth'})", "put the file there")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server of this folder, and a cache of its own."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "files").mkdir()
    handler = partial(Quiet, directory=str(tmp_path / "files"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_an_address_is_downloaded_once(server, tmp_path):
    model, other = small_model(), small_model(seed=1)
    torch.save({"model": model.state_dict()}, tmp_path / "files" / "model.pth")
    Mask2FormerCheckpointer(other).load(f"{server}/model.pth")
    assert same_weights(model, other)
    (tmp_path / "files" / "model.pth").unlink()
    assert local_copy(f"{server}/model.pth").is_file()


def test_an_address_that_is_not_there(server, tmp_path):
    address = f"{server}/models/x.pth"
    text = complaint(address, "404", f"put it at {tmp_path / 'cache' / 'models' / 'x.pth'}", "local path")
    # Whoever does as the line says is helped.
    place = tmp_path / "cache" / "models" / "x.pth"
    assert str(place) in text
    place.parent.mkdir(parents=True, exist_ok=True)
    model, other = small_model(), small_model(seed=1)
    torch.save(model.state_dict(), place)
    Mask2FormerCheckpointer(other).load(address)
    assert same_weights(model, other)


def test_offline_the_zoo_says_where_to_put_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))

    def no_network(*arguments, **keywords):
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    place = tmp_path / "detectron2" / "ImageNetPretrained" / "torchvision" / "R-50.pkl"
    address = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
    complaint(address, "Name or service not known", str(place), "https://dl.fbaipublicfiles.com/detectron2/ImageNet")


def test_the_hub_says_how_to_fetch_it(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def no_network(*arguments, **keywords):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files\n in the disk cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    complaint("hf://owner/name@v1", "hf download owner/name --revision v1 --local-dir FOLDER", "in the disk cache")


@pytest.mark.parametrize("address", ["hf://name", "hf://owner/name/x y", "hf://../../etc@v1;x"])
def test_a_malformed_hub_address(address):
    with pytest.raises(ValueError, match="expected hf://owner/name"):
        local_copy(address)


def test_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        local_copy("hf://owner/name")


def test_options_of_an_address(tmp_path):
    assert split_options("a.pth") == ("a.pth", set())
    assert split_options("a.pth?partial=True&matching_heuristics=False") == ("a.pth", {"partial"})
    with pytest.raises(ValueError, match="Unsupported option"):
        split_options("a.pth?strict=True")
    (tmp_path / "a?b.pth").touch()
    assert split_options(str(tmp_path / "a?b.pth")) == (str(tmp_path / "a?b.pth"), set())
