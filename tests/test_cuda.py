"""On a CUDA device: the recorded answers, the same losses and results as on the CPU, and one wait in a step."""

import json
import warnings

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from test_golden import GOLDEN, ROOT, fill
from test_inference import FRAMES
from tiny import tiny_config

from mask2former.data.loader import build_train_loader
from mask2former.data.mappers import build_mapper
from mask2former.inference import instance_inference, panoptic_inference, semantic_inference
from mask2former.modeling.ops import ms_deform_attn, ms_deform_attn_projected
from mask2former.modeling.pixel_decoder.msdeformattn import pixel_centers
from mask2former.setup_config import read_config
from mask2former.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# Loss, and gradients: those of samples at pixel centres jump.
TOLERANCES = {"float32": (2e-4, 0.005), "bfloat16": (0.03, 0.3), "float16": (0.01, 0.1)}


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    """Convolutions in float32 proper."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def drawn_on_the_host(monkeypatch):
    """Random points that do not depend on the device."""
    draw = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, device=None, **kw: draw(*size, **kw).to(device or "cpu"))


@pytest.mark.parametrize("name", ["coco_panoptic_r50", "coco_instance_swin_tiny", "ade20k_semantic_r50"])
def test_the_recorded_answers(name):
    recorded = dict(np.load(GOLDEN / f"{name}.npz"))
    meta = json.loads(str(recorded["meta"]))
    cfg = read_config(ROOT / "configs" / meta["config"], ["MODEL.DEVICE", "cuda"])
    model = fill.fill_(Trainer.build_model(cfg)).eval()
    image = model.normalized({"image": torch.from_numpy(recorded["image"])})
    height, width = (-(-side // 32) * 32 for side in image.shape[1:])
    padded = torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]))
    with torch.no_grad():
        outputs = model.predictions(padded[None])
    for key in ("pred_logits", "pred_masks"):
        if key in recorded:
            apart = np.abs(outputs[key][0].cpu().numpy() - recorded[key]).max() / np.abs(recorded[key]).max()
            assert apart < 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_follows_float32(precision, tmp_path):
    options = ("MODEL.DEVICE", "cuda", "MODEL.MASK_FORMER.TEST.PRECISION")
    models = [Trainer.build_model(tiny_config(tmp_path, *options, p)).eval() for p in ("float32", precision)]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(2, 3, 64, 96, device="cuda")
    with torch.no_grad():
        exact, half = (model.predictions(images)["pred_masks"].float() for model in models)
    assert (half - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("precision", TOLERANCES)
def test_losses_and_gradients_are_those_of_the_cpu(precision, tmp_path, drawn_on_the_host):
    options = ("MODEL.RESNETS.NORM", "FrozenBN")
    host = Trainer.build_model(tiny_config(tmp_path, *options)).train()
    device = Trainer.build_model(tiny_config(tmp_path, *options, "MODEL.DEVICE", "cuda")).train()
    device.load_state_dict(host.state_dict())
    expected, expected_gradients = step(host, "float32")
    losses, gradients = step(device, precision)
    of_loss, of_gradients = TOLERANCES[precision]
    assert losses == pytest.approx(expected, rel=of_loss)
    apart = torch.cat([(a - b).flatten() for a, b in zip(gradients, expected_gradients, strict=True)]).norm()
    assert apart < of_gradients * torch.cat([g.flatten() for g in expected_gradients]).norm()


def step(model: torch.nn.Module, precision: str) -> tuple[float, list[torch.Tensor]]:
    """The sum of the losses, and all gradients."""
    torch.manual_seed(1)
    with torch.autocast(model.device.type, getattr(torch, precision), enabled=precision != "float32"):
        total = sum(model(batch()).values())
    scale = 1024.0 if precision == "float16" else 1.0
    (total * scale).backward()
    return float(total.detach()), [p.grad.float().cpu() / scale for p in model.parameters() if p.grad is not None]


def batch() -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    samples = []
    for labels in ([0, 9, 3], [1]):
        masks = torch.rand(len(labels), 64, 64, generator=generator) > 0.5
        instances = Instances((64, 64), gt_classes=torch.tensor(labels), gt_masks=masks)
        image = torch.randint(256, (3, 64, 64), dtype=torch.uint8, generator=generator)
        samples.append({"image": image, "instances": instances})
    return samples


def test_the_host_waits_once_in_a_step_for_the_matcher(tmp_path):
    model = Trainer.build_model(tiny_config(tmp_path, "MODEL.DEVICE", "cuda")).train()
    samples = batch()
    for sample in samples:
        sample["image"] = sample["image"].pin_memory()
    sum(model(samples).values()).backward()  # fills the caches
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sum(model(samples).values()).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [f"{w.filename}:{w.lineno}" for w in caught if "synchronizing CUDA operation" in str(w.message)]
    assert len(waits) == 1 and "matcher" in waits[0], waits


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_results_are_those_of_the_cpu(frame):
    class_logits, mask_logits = 2 * torch.randn(9, 5), 3 * torch.randn(9, 8, 12)
    results = []
    for device in ("cpu", "cuda"):
        logits = class_logits.to(device), mask_logits.to(device)
        panoptic, segments = panoptic_inference(
            *logits, frame, things={0, 1}, object_mask_threshold=0.2, overlap_threshold=0.3
        )
        instances = instance_inference(*logits, frame, topk=20)
        order = instances.scores.sort().indices
        results.append(
            [semantic_inference(*logits, frame, resize_masks=resized, label_map=False) for resized in (True, False)]
            + [panoptic, torch.tensor([segment["category_id"] for segment in segments])]
            + [part[order] for part in instances]
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b.cpu(), a, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_triton_is_chosen_and_equals_the_reference_with_gradients(dtype):
    shapes = ((9, 13), (5, 7), (1, 1))
    value = torch.randn(2, 153, 8, 32).to("cuda", dtype).requires_grad_()
    projected = (2 * torch.randn(2, 153, 8 * 3 * 4 * 3)).to("cuda", dtype).requires_grad_()
    centers = pixel_centers(shapes, torch.device("cuda"))
    answers = []
    for backend in ("reference", None):
        out = ms_deform_attn_projected(value, shapes, centers, projected, backend)
        loss = (out.float() * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum()
        answers.append([out, *torch.autograd.grad(loss, (value, projected))])
    for a, b in zip(*answers, strict=True):
        # Means: the slope of a bilinear sample jumps at pixel centres, where rounding decides.
        assert (b - a).float().abs().mean() < max(1e-5, torch.finfo(dtype).eps) * a.float().abs().mean()
    named = ms_deform_attn_projected(value, shapes, centers, projected, "triton")
    assert torch.equal(named, answers[1][0])


def test_locations_and_weights_equal_the_reference():
    value = torch.randn(2, 36, 2, 8, device="cuda", requires_grad=True)
    locations = torch.rand(2, 5, 2, 2, 3, 2, device="cuda", requires_grad=True)
    weights = torch.rand(2, 5, 2, 2, 3, device="cuda", requires_grad=True)
    leaves = (value, locations, weights)
    answers = []
    for backend in ("reference", "triton"):
        out = ms_deform_attn(value, [(5, 7), (1, 1)], locations, weights, backend)
        answers.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(b, a, atol=1e-4, rtol=1e-4)


def test_batches_come_pinned_masks_too(tiny_shapes, tmp_path):
    cfg = tiny_config(tmp_path, "MODEL.DEVICE", "cuda")
    for sample in next(iter(build_train_loader(cfg, build_mapper(cfg)))):
        assert sample["image"].is_pinned() and sample["instances"].gt_masks.is_pinned()


def test_mixed_precision_trains_and_resumes(tiny_shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, evaluators=None: {}))
    options = ("MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", True)
    first = Trainer(tiny_config(tmp_path, *options, "SOLVER.MAX_ITER", 3))
    first.train()
    assert first._trainer.grad_scaler.is_enabled()
    second = Trainer(tiny_config(tmp_path, *options))
    second.resume_or_load(resume=True)
    assert second.start_iter == 3
    second.train()
    assert all(p.isfinite().all() and p.device.type == "cuda" for p in second.model.parameters())


@pytest.mark.parametrize("training", [False, True])
def test_compiled_by_inductor_the_numbers_stay(training, tmp_path):
    model = Trainer.build_model(tiny_config(tmp_path, "MODEL.DEVICE", "cuda", "MODEL.RESNETS.NORM", "FrozenBN"))
    model.train(training)
    images = torch.randn(2, 3, 64, 96, device="cuda")
    with torch.set_grad_enabled(training):
        expected = model.predictions(images)["pred_masks"]
        for part in (model.backbone, model.sem_seg_head):
            part.compile(fullgraph=True)
        got = model.predictions(images)["pred_masks"]
    assert (got - expected).norm() < 1e-3 * expected.norm()


@torch.inference_mode()
def test_with_cuda_graphs_the_numbers_stay_from_image_to_image(tmp_path):
    model = Trainer.build_model(tiny_config(tmp_path, "MODEL.DEVICE", "cuda", "MODEL.RESNETS.NORM", "FrozenBN")).eval()
    images = torch.randn(4, 1, 3, 64, 96, device="cuda")
    expected = [model.predictions(image)["pred_masks"] for image in images]
    for part in (model.backbone, model.sem_seg_head):
        part.compile(fullgraph=True, mode="reduce-overhead")
    for image, masks in zip(images, expected, strict=True):  # the first runs record
        torch.compiler.cudagraph_mark_step_begin()
        got = model.predictions(image)["pred_masks"]
        assert (got - masks).norm() < 1e-3 * masks.norm()
