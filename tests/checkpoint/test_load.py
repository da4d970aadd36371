"""What the checkpointer takes from a file, adapts, and says about it."""

import logging
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from small_models import MASKFORMER, RESNET, same_weights, small_config, small_model

from mask2former.checkpoint import Mask2FormerCheckpointer, load_weights


@pytest.fixture
def swin():
    return small_model()


def write_zoo_pickle(path: Path, weights: dict) -> str:
    """The layout of the model zoo."""
    arrays = {name: value.numpy() for name, value in weights.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    return str(path)


def report_of(model, weights, **kwargs):
    return load_weights(model, {"model": weights}, "FILE", **kwargs)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pkl", ".safetensors", ".bin"])
def test_every_kind_of_file_loads_every_weight(swin, tmp_path, ending):
    path = tmp_path / f"weights{ending}"
    if ending == ".pkl":
        write_zoo_pickle(path, swin.state_dict())
    elif ending == ".safetensors":
        from safetensors.torch import save_file

        save_file(swin.state_dict(), path)
    else:
        torch.save({"model": swin.state_dict()} if ending == ".pth" else swin.state_dict(), path)
    other = small_model(seed=1)
    assert not same_weights(swin, other)
    Mask2FormerCheckpointer(other).load(str(path))
    assert same_weights(swin, other)


def old_names(weights):
    """As MaskFormer's first files had them."""
    return OrderedDict(
        (name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head.").replace("query_feat", "static_query"), value)
        for name, value in weights.items()
    )


@pytest.mark.parametrize("case", ["metadata", "no metadata", "old names", "static_query", "module."])
def test_official_names_of_all_times(swin, case):
    weights = swin.state_dict()
    assert weights._metadata["sem_seg_head"]["version"] == 2
    if case == "no metadata":
        weights = dict(weights)
    elif case == "old names":
        weights = old_names(weights)
    elif case == "static_query":
        weights = OrderedDict((name.replace("query_feat", "static_query"), value) for name, value in weights.items())
        weights._metadata = swin.state_dict()._metadata
    elif case == "module.":
        weights = OrderedDict((f"module.{name}", value) for name, value in weights.items())
    other = small_model(seed=1)
    report = report_of(other, weights)
    assert same_weights(swin, other)
    assert report.is_clean() and not report.reinitialised and not report.unused
    assert len(report.loaded) == len(swin.state_dict())


def test_maskformer_with_its_old_names():
    model, other = small_model(MASKFORMER), small_model(MASKFORMER, seed=1)
    report = report_of(other, old_names(model.state_dict()))
    assert same_weights(model, other) and not report.unused


def test_the_report_is_logged_once(swin, tmp_path, caplog):
    weights = {name: value for name, value in swin.state_dict().items() if "backbone.layers.3" not in name}
    path = write_zoo_pickle(tmp_path / "w.pkl", weights | {"optimizer.a": torch.zeros(1)})
    with caplog.at_level(logging.INFO, "mask2former"):
        Mask2FormerCheckpointer(small_model(seed=1)).load(path)
    (record,) = [record for record in caplog.records if record.name == "mask2former.checkpoint.load"]
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    missing = sum("backbone.layers.3" in name and "index" not in name for name in swin.state_dict())
    assert f"loaded {len(weights)}, re-initialised {missing}, unused 1 of the file" in text
    assert f"re-initialised, not in the file: backbone.layers.3.* ({missing})" in text
    assert "unused: optimizer.a" in text


def test_other_classes_start_anew_and_the_rest_is_kept(swin):
    other = small_model({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 3}, seed=1)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = report_of(other, swin.state_dict())
    anew = {name for names in report.reinitialised.values() for name in names}
    predictor = "sem_seg_head.predictor.class_embed"
    assert anew == {f"{predictor}.weight", f"{predictor}.bias", "criterion.empty_weight"}
    assert list(report.reinitialised) == ["5 classes in the file, 3 in the model"]
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else swin.state_dict()[name])


@pytest.mark.parametrize("number", [4, 9])
def test_another_number_of_queries_keeps_those_there_are(swin, number):
    other = small_model({"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": number}, seed=1)
    name = "sem_seg_head.predictor.query_feat.weight"
    before = other.state_dict()[name].clone()
    report = report_of(other, swin.state_dict())
    after, rows = other.state_dict()[name], min(7, number)
    assert torch.equal(after[:rows], swin.state_dict()[name][:rows])
    assert torch.equal(after[rows:], before[rows:])
    assert f"7 queries in the file, {number} in the model" in str(report) and not report.reinitialised


def test_position_biases_are_interpolated_to_another_window(swin):
    weights = swin.state_dict()
    name = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    # A plane of slope 0.1 across, 1 down, stays nearly one (the cubic kernel is not exact), in the middle exactly.
    plane = 0.1 * torch.arange(7.0) + torch.arange(7.0)[:, None]
    weights[name] = plane.reshape(49, 1)
    other = small_model({"MODEL.SWIN.WINDOW_SIZE": 7}, seed=1)
    report = report_of(other, weights)
    assert report.notes == ["position biases interpolated from 49 to 169 offsets"]
    found = other.state_dict()[name].reshape(13, 13)
    at = (torch.arange(13) + 0.5) * 7 / 13 - 0.5
    expected = 0.1 * at + at[:, None]
    assert torch.allclose(found[3:-3, 3:-3], expected[3:-3, 3:-3], atol=0.05)
    assert abs(found[6, 6] - 3.3) < 1e-5
    # The window itself is the model's.
    assert other.state_dict()[name.replace("bias_table", "index")].shape == (49, 49)


def test_a_classifier_of_swin_fills_the_backbone(swin):
    bare = {
        name.removeprefix("backbone."): value
        for name, value in swin.state_dict().items()
        if name.startswith("backbone.") and not name.startswith("backbone.norm")
    }
    extra = {"norm.weight": torch.ones(64), "head.weight": torch.ones(9, 64), "head.bias": torch.ones(9)}
    extra |= {"layers.0.blocks.1.attn_mask": torch.zeros(4, 16, 16)}
    other = small_model(seed=1)
    report = report_of(other, bare | extra)
    assert report.is_clean() and report.part() == "backbone."
    assert sorted(report.unused) == ["head.bias", "head.weight", "norm.weight"]
    assert all(torch.equal(other.state_dict()[f"backbone.{name}"], value) for name, value in bare.items())


def torchvision_names(weights):
    """Names of torchvision's ResNet for the backbone of a model."""
    renamed = {}
    for name, value in weights.items():
        if not name.startswith("backbone."):
            continue
        name = name.removeprefix("backbone.").removeprefix("stem.")
        name = re.sub(r"conv(\d)\.norm", r"bn\1", name)
        name = re.sub(r"^res(\d)", lambda match: f"layer{int(match[1]) - 1}", name)
        name = name.replace("shortcut.norm", "downsample.1").replace("shortcut", "downsample.0")
        renamed[name] = value
    return renamed | {"fc.weight": torch.ones(9, 128), "bn1.num_batches_tracked": torch.tensor(3)}


def test_torchvision_resnet():
    model, other = small_model(RESNET), small_model(RESNET, seed=1)
    names = torchvision_names(model.state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias"} <= set(names)
    report = report_of(other, names)
    assert report.is_clean() and report.unused == ["fc.weight"]
    backbone = [name for name in model.state_dict() if name.startswith("backbone.")]
    assert sorted(report.loaded) == sorted(backbone)
    assert all(torch.equal(model.state_dict()[name], other.state_dict()[name]) for name in backbone)


def test_msra_resnet_leaves_the_statistics_out(tmp_path):
    model, other = small_model(RESNET), small_model(RESNET, seed=1)
    blobs = {"pred_w": np.ones(3, np.float32), "conv1_w_momentum": np.ones(3, np.float32)}
    for name, value in model.state_dict().items():
        match = re.match(r"backbone\.res(\d)\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(weight|bias)$", name)
        branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
        if match:
            end = {"weight": "bn_s", "bias": "bn_b"}[match[5]] if match[4] else "w"
            blobs[f"res{match[1]}_{match[2]}_{branch[match[3]]}_{end}"] = value.numpy()
    state = model.state_dict()
    blobs["conv1_w"] = state["backbone.stem.conv1.weight"].numpy()
    blobs["res_conv1_bn_s"] = state["backbone.stem.conv1.norm.weight"].numpy()
    blobs["res_conv1_bn_b"] = state["backbone.stem.conv1.norm.bias"].numpy()
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    Mask2FormerCheckpointer(other).load(str(path))
    found = other.state_dict()
    name = "backbone.res3.0.shortcut.norm"
    assert torch.equal(found[f"{name}.weight"], state[f"{name}.weight"])
    assert torch.equal(found["backbone.res2.1.conv2.weight"], state["backbone.res2.1.conv2.weight"])
    # y = (x - mean) / sqrt(var + 1e-5) * weight + bias must be x * weight + bias.
    assert (found[f"{name}.running_mean"] == 0).all()
    assert torch.allclose(found[f"{name}.running_var"] + 1e-5, torch.ones(32))


def test_a_checkpoint_of_another_model_is_an_error_and_changes_nothing(swin):
    before = {name: value.clone() for name, value in swin.state_dict().items()}
    weights = {f"roi_heads.{i}.weight": torch.zeros(3) for i in range(20)}
    with pytest.raises(ValueError, match=r"fit only 0% of the model.*\n.*unused 20") as error:
        report_of(swin, weights)
    assert "?partial=True" in str(error.value) and "roi_heads.* (" not in str(error.value).split("\n")[0]
    assert all(torch.equal(before[name], value) for name, value in swin.state_dict().items())


def test_half_a_backbone_is_an_error_unless_asked_for(swin, tmp_path):
    weights = {name: value for name, value in swin.state_dict().items() if name.startswith("backbone.layers.0.")}
    path = write_zoo_pickle(tmp_path / "w.pkl", weights)
    other = small_model(seed=1)
    with pytest.raises(ValueError, match="of the backbone"):
        Mask2FormerCheckpointer(other).load(path)
    Mask2FormerCheckpointer(other).load(f"{path}?partial=True")
    assert torch.equal(
        other.state_dict()["backbone.layers.0.blocks.0.norm1.bias"], weights["backbone.layers.0.blocks.0.norm1.bias"]
    )


def test_names_are_matched_by_their_endings_when_the_file_asks(swin, tmp_path):
    weights = {name.removeprefix("backbone.layers."): value for name, value in swin.state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save({"model": {name: value for name, value in weights.items() if name[0] in "0123"}}, path)
    other = small_model(seed=1)
    Mask2FormerCheckpointer(other).load(f"{path}?matching_heuristics=True")
    name = "backbone.layers.2.blocks.1.mlp.fc1.weight"
    assert torch.equal(other.state_dict()[name], swin.state_dict()[name])


def test_resuming_restores_the_optimizer(swin, tmp_path):
    optimizer = torch.optim.SGD(swin.parameters(), lr=0.5)
    Mask2FormerCheckpointer(swin, str(tmp_path), optimizer=optimizer).save("model_0000004", iteration=4)
    other = small_model(seed=1)
    fresh = torch.optim.SGD(other.parameters(), lr=0.1)
    rest = Mask2FormerCheckpointer(other, str(tmp_path), optimizer=fresh).resume_or_load("", resume=True)
    assert same_weights(swin, other) and fresh.param_groups[0]["lr"] == 0.5 and rest["iteration"] == 4


def test_an_empty_address_loads_nothing(swin):
    assert Mask2FormerCheckpointer(swin).load("") == {}


def test_half_precision_is_widened(swin):
    half = {name: value.half() if value.is_floating_point() else value for name, value in swin.state_dict().items()}
    other = small_model(seed=1)
    report_of(other, half)
    name = "backbone.norm0.weight"
    assert other.state_dict()[name].dtype == torch.float32
    assert torch.equal(other.state_dict()[name], half[name].float())


def test_builds_from_its_config():
    assert type(build_model(small_config())).__name__ == "MaskFormer"
