"""Hugging Face's Mask2Former and MaskFormer against ours: the same weights, the same answers, either way and back."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from small_models import MASKFORMER, RESNET, small_config, small_model

from mask2former import add_maskformer2_config
from mask2former.checkpoint import Mask2FormerCheckpointer, load_weights
from mask2former.checkpoint.convert import convert_backbone, from_hub, to_hub
from mask2former.checkpoint.readers import read_file
from mask2former.checkpoint.renames import to_model_names

transformers = pytest.importorskip("transformers")
TOOLS = Path(__file__).parents[2] / "tools"
RESNET18 = {
    **RESNET,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 64,
    "MODEL.RESNETS.NORM": "BN",
}
BACKBONES = {"swin": {}, "resnet50": RESNET, "resnet18": RESNET18}
IMAGE = (1, 3, 70, 101)  # odd sizes: every layer pads
TASKS = ["semantic", "instance", "panoptic"]


def write_official(path: Path, *changes):
    model = small_model(*changes)
    torch.save({"model": model.state_dict()}, path)
    return model


def padded(image):
    """As the head gets it: to a multiple of 32."""
    height, width = (-size % 32 for size in image.shape[-2:])
    return torch.nn.functional.pad(image, (0, width, 0, height))


@torch.no_grad()
def our_layers(model, image):
    """(class logits, mask logits) of every layer."""
    result = model.sem_seg_head(model.backbone(image))
    return [(layer["pred_logits"], layer["pred_masks"]) for layer in [*result["aux_outputs"], result]]


def load_theirs(folder):
    model, info = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder, output_loading_info=True)
    return model.eval(), info


def differences(ours, theirs, image):
    """Largest difference of class logits and of masks over all layers."""
    with torch.no_grad():
        output = theirs(pixel_values=image, output_auxiliary_logits=True)
    layers = [(a["class_queries_logits"], a["masks_queries_logits"]) for a in output.auxiliary_logits]
    layers.append((output.class_queries_logits, output.masks_queries_logits))
    expected = our_layers(ours, image)
    assert len(expected) == len(layers)
    # Masks that say nothing would agree with anything.
    assert all(masks[0, 0].std() > 1e-3 for _, masks in layers)
    pairs = list(zip(expected, layers, strict=True))
    return [max((a[i] - b[i]).abs().max().item() for a, b in pairs) for i in (0, 1)]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_converted_model_gives_the_same_logits_there(tmp_path, backbone):
    ours = write_official(tmp_path / "model.pth", BACKBONES[backbone])
    to_hub(str(tmp_path / "model.pth"), tmp_path / "hub", small_config(BACKBONES[backbone]))
    theirs, info = load_theirs(tmp_path / "hub")
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    image = padded(torch.randn(IMAGE))
    classes, masks = differences(ours, theirs, image)
    print(f"{backbone}: class logits {classes:.1e}, masks {masks:.1e}")
    assert classes < 1e-4 and masks < 1e-4


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("task", "ending"), [("semantic", ".pkl"), ("instance", ".pth"), ("panoptic", ".pkl")])
def test_there_and_back_is_bit_identical(tmp_path, backbone, task, ending):
    write_official(tmp_path / "model.pth", BACKBONES[backbone])
    to_hub(str(tmp_path / "model.pth"), tmp_path / "hub", small_config(BACKBONES[backbone]), task=task)
    written = from_hub(str(tmp_path / "hub"), tmp_path / f"back{ending}")
    before, after = (read_file(tmp_path / name)["model"] for name in ("model.pth", f"back{ending}"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    assert after._metadata["sem_seg_head"]["version"] == 2
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(written))
    test = cfg.MODEL.MASK_FORMER.TEST
    assert [task == name for name in TASKS] == [test.SEMANTIC_ON, test.INSTANCE_ON, test.PANOPTIC_ON]
    expected = small_config(BACKBONES[backbone])
    for node in ("MODEL.SWIN", "MODEL.RESNETS", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "MODEL.MASK_FORMER.NHEADS"):
        if (node == "MODEL.SWIN" and backbone != "swin") or (node == "MODEL.RESNETS" and backbone == "swin"):
            continue
        found, wanted = cfg, expected
        for part in node.split("."):
            found, wanted = found[part], wanted[part]
        assert found == wanted, node
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    Mask2FormerCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_back_and_there_again_is_bit_identical(tmp_path):
    from safetensors.torch import load_file

    theirs = tiny_mask2former("swin")
    theirs.save_pretrained(tmp_path / "first")
    from_hub(str(tmp_path / "first"), tmp_path / "model.pkl")
    to_hub(str(tmp_path / "model.pkl"), tmp_path / "second")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert set(before) == set(after)
    assert all(torch.equal(before[name], after[name]) for name in after)


def tiny_mask2former(backbone):
    """A model made by transformers with random weights."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    if backbone == "swin":
        inner = transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4], window_size=4, out_features=stages
        )
    else:
        sizes = [16, 32, 64, 128]
        inner = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=sizes, depths=[3, 4, 6, 3], out_features=stages
        )
    config = transformers.Mask2FormerConfig(
        backbone_config=inner,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_layers=1,
        decoder_layers=3,
        num_attention_heads=4,
        dim_feedforward=48,
        num_queries=6,
        num_labels=5,
    )
    return shaken(transformers.Mask2FormerForUniversalSegmentation(config))


def tiny_maskformer(backbone):
    """Their MaskFormer with random weights."""
    inner = tiny_mask2former(backbone).config.backbone_config
    decoder = transformers.MaskFormerDetrConfig(
        num_queries=7,
        encoder_layers=1,
        decoder_layers=2,
        decoder_ffn_dim=48,
        decoder_attention_heads=4,
        encoder_attention_heads=4,
        d_model=32,
    )
    config = transformers.MaskFormerConfig(
        backbone_config=inner, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, num_labels=5
    )
    return shaken(transformers.MaskFormerForInstanceSegmentation(config))


def shaken(model):
    """Nothing left at its initial zero or one, where a mistake would not show."""
    for name, value in model.state_dict().items():
        if value.is_floating_point() and name != "criterion.empty_weight" and "encoder.swin.layernorm" not in name:
            noise = 0.05 * torch.randn_like(value)
            value.add_(noise.abs() if name.endswith("running_var") else noise)
    return model.eval()


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
@pytest.mark.parametrize("form", ["folder", "hf://", "state dict"])
def test_their_model_gives_the_same_logits_here(tmp_path, monkeypatch, backbone, form):
    theirs = tiny_mask2former(backbone)
    theirs.save_pretrained(tmp_path / "hub")
    config = from_hub(str(tmp_path / "hub"), tmp_path / "unused.pth")
    source = str(tmp_path / "hub")
    if form == "hf://":
        import huggingface_hub

        asked = []
        folder = source
        download = lambda repo, **arguments: asked.append((repo, arguments["revision"])) or folder
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        source = "hf://owner/name@v1.0"
    elif form == "state dict":  # the names in memory are not those in files
        source = str(tmp_path / "theirs.pth")
        torch.save(theirs.state_dict(), source)
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE = "cpu"
    ours = build_model(cfg).eval()
    Mask2FormerCheckpointer(ours).load(source)
    if form == "hf://":
        assert asked == [("owner/name", "v1.0")]
    classes, masks = differences(ours, theirs, padded(torch.randn(IMAGE)))
    print(f"{backbone}: class logits {classes:.1e}, masks {masks:.1e}")
    assert classes < 1e-4 and masks < 1e-4


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_their_maskformer_gives_the_same_logits_here(tmp_path, backbone):
    theirs = tiny_maskformer(backbone)
    theirs.save_pretrained(tmp_path)
    swin = {"MODEL.SWIN.DEPTHS": [1, 1, 2, 1]}
    ours = small_model(MASKFORMER, swin if backbone == "swin" else RESNET)
    report = load_weights(ours, {"model": read_file(tmp_path / "model.safetensors")["model"]}, "FILE")
    assert report.is_clean(), str(report)
    image = padded(torch.randn(IMAGE))
    with torch.no_grad():
        expected = theirs(pixel_values=image)
    classes, masks = our_layers(ours, image)[-1]
    differing = [
        (classes - expected.class_queries_logits).abs().max().item(),
        (masks - expected.masks_queries_logits).abs().max().item(),
    ]
    assert expected.masks_queries_logits[0, 0].std() > 1e-3
    print(f"MaskFormer {backbone}: class logits {differing[0]:.1e}, masks {differing[1]:.1e}")
    assert max(differing) < 1e-4


def test_the_folder_says_what_the_config_says(tmp_path):
    write_official(tmp_path / "model.pth")
    names = ["person", "tree", "sky", "sea", "sand"]
    to_hub(str(tmp_path / "model.pth"), tmp_path / "hub", small_config(), class_names=names)
    theirs, _ = load_theirs(tmp_path / "hub")
    assert theirs.config.id2label == dict(enumerate(names))
    assert theirs.config.label2id == {name: i for i, name in enumerate(names)}
    assert (theirs.config.num_queries, theirs.config.decoder_layers, theirs.config.num_labels) == (7, 4, 5)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hub")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]
    assert list(processor.image_std) == [0.229, 0.224, 0.225]
    assert processor.size["shortest_edge"] == 800 and processor.size["longest_edge"] == 1333
    image = torch.randint(0, 256, (60, 90, 3), dtype=torch.uint8).numpy()
    batch = processor(image, return_tensors="pt", size={"shortest_edge": 64, "longest_edge": 96})
    with torch.no_grad():
        output = theirs(**{name: value for name, value in batch.items() if name.startswith("pixel")})
    (labels,) = processor.post_process_semantic_segmentation(output, target_sizes=[(60, 90)])
    assert labels.shape == (60, 90)
    assert processor.post_process_panoptic_segmentation(output, target_sizes=[(60, 90)])[0]["segmentation"].shape == (
        60,
        90,
    )


def test_without_a_config_the_weights_say_what_they_are(tmp_path):
    for name, change in BACKBONES.items():
        ours = write_official(tmp_path / f"{name}.pth", change)
        to_hub(str(tmp_path / f"{name}.pth"), tmp_path / name)
        theirs, _ = load_theirs(tmp_path / name)
        assert max(differences(ours, theirs, padded(torch.randn(IMAGE)))) < 1e-4


def test_a_config_of_another_model_is_an_error(tmp_path):
    write_official(tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"does not fit the weights: .* differ, such as"):
        to_hub(str(tmp_path / "model.pth"), tmp_path / "hub", small_config({"MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8}))
    assert not (tmp_path / "hub").exists()


def test_a_part_that_is_missing_is_an_error():
    theirs = tiny_mask2former("swin").state_dict()
    name = next(name for name in theirs if name.endswith("decoder.layers.1.self_attn.k_proj.weight"))
    del theirs[name]
    with pytest.raises(ValueError, match=r"only 2 of the 3 parts of .*in_proj_weight"):
        to_model_names(theirs)


def test_the_position_index_is_swins():
    from mask2former.checkpoint.huggingface import position_index

    model = small_model()
    assert torch.equal(position_index(4), model.state_dict()["backbone.layers.0.blocks.0.attn.relative_position_index"])


def run_tool(name, monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(TOOLS))
    module = __import__(name)
    module.main([str(argument) for argument in arguments])


def test_the_tool_goes_both_ways(tmp_path, monkeypatch):
    ours = write_official(tmp_path / "model.pth")
    run_tool("convert_checkpoint", monkeypatch, tmp_path / "model.pth", tmp_path / "hub", "--task", "instance")
    run_tool("convert_checkpoint", monkeypatch, tmp_path / "hub", tmp_path / "back.pkl")
    back = pickle.loads((tmp_path / "back.pkl").read_bytes())
    assert back["__author__"] and set(back["model"]) == set(ours.state_dict())
    with pytest.raises(SystemExit, match=r"no config\.json"):
        (tmp_path / "hub" / "config.json").unlink()
        run_tool("convert_checkpoint", monkeypatch, tmp_path / "hub", tmp_path / "again.pkl")


@pytest.mark.parametrize("given", ["weights", "config"])
def test_a_maskformer_is_not_written_for_hugging_face(tmp_path, monkeypatch, given):
    write_official(tmp_path / "model.pth", MASKFORMER)
    arguments: list = [tmp_path / "model.pth", tmp_path / "hub"]
    if given == "config":
        (tmp_path / "model.yaml").write_text(small_config(MASKFORMER).dump())
        arguments += ["--config-file", tmp_path / "model.yaml"]
    with pytest.raises(SystemExit) as ended:
        run_tool("convert_checkpoint", monkeypatch, *arguments)
    assert ended.value.code == (
        "convert_checkpoint: Only Mask2Former is written for Hugging Face, and this is a MaskFormer (BasePixelDecoder "
        "with StandardTransformerDecoder). Reading a MaskFormer from there works: MODEL.WEIGHTS takes its folder."
    )
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize("backbone", ["swin", "resnet"])
def test_their_maskformer_is_not_taken_for_a_mask2former(tmp_path, monkeypatch, backbone):
    tiny_maskformer(backbone).save_pretrained(tmp_path / "hub")
    with pytest.raises(SystemExit, match=r"config\.json is of a 'maskformer' model, expected 'mask2former'") as ended:
        run_tool("convert_checkpoint", monkeypatch, tmp_path / "hub", tmp_path / "model.pkl")
    assert "MODEL.WEIGHTS takes" in str(ended.value.code) and not (tmp_path / "model.pkl").exists()


def test_a_converted_backbone_is_in_the_zoos_layout(tmp_path, monkeypatch):
    from test_load import torchvision_names

    model = small_model(RESNET)
    torch.save(torchvision_names(model.state_dict()), tmp_path / "resnet.pth")
    run_tool("convert_backbone", monkeypatch, tmp_path / "resnet.pth", tmp_path / "R-50.pkl")
    content = pickle.loads((tmp_path / "R-50.pkl").read_bytes())
    assert content["matching_heuristics"] is True and "stem.conv1.norm.running_var" in content["model"]
    other = small_model(RESNET, seed=1)
    Mask2FormerCheckpointer(other).load(str(tmp_path / "R-50.pkl"))
    assert torch.equal(
        other.state_dict()["backbone.res4.2.conv3.weight"], model.state_dict()["backbone.res4.2.conv3.weight"]
    )
    with pytest.raises(ValueError, match="is not a backbone"):
        torch.save(small_model().state_dict(), tmp_path / "model.pth")
        convert_backbone(str(tmp_path / "model.pth"), tmp_path / "x.pkl")


def test_a_published_name_says_data_and_task(tmp_path):
    tiny_mask2former("swin").save_pretrained(tmp_path / "mask2former-swin-tiny-coco-panoptic")
    written = from_hub(str(tmp_path / "mask2former-swin-tiny-coco-panoptic"), tmp_path / "model.pth")
    text = written.read_text()
    assert (
        "coco_2017_val_panoptic_with_sem_seg" in text and "PANOPTIC_ON: true" in text and "SEMANTIC_ON: false" in text
    )


def test_no_code_is_needed_from_transformers_to_convert(tmp_path, monkeypatch):
    write_official(tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "transformers", None)
    to_hub(str(tmp_path / "model.pth"), tmp_path / "hub")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["model_type"] == "mask2former"
