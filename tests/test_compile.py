"""torch.compile takes the backbone and both decoders whole, without graph breaks, and their numbers stay."""

import pytest
import torch
from detectron2.structures import Instances
from tiny import tiny_config

from mask2former.trainer import Trainer

SWIN = [
    "MODEL.BACKBONE.NAME", "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM", "16",
    "MODEL.SWIN.DEPTHS", "[2, 1, 1, 1]",
    "MODEL.SWIN.NUM_HEADS", "[1, 2, 2, 2]",
    "MODEL.SWIN.WINDOW_SIZE", "4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _forget():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("options", [[], SWIN], ids=["ResNet", "Swin"])
def test_inference(options, tmp_path):
    model = Trainer.build_model(tiny_config(tmp_path, *options)).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = model.predictions(images)
        compile_parts(model)
        got = model.predictions(images)
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [[], SWIN], ids=["ResNet", "Swin"])
def test_training(options, tmp_path):
    model = Trainer.build_model(tiny_config(tmp_path, *options, "MODEL.SWIN.DROP_PATH_RATE", 0.0)).train()
    instances = Instances((64, 64), gt_classes=torch.tensor([0, 9]), gt_masks=torch.rand(2, 64, 64) > 0.5)
    sample = {"image": torch.randint(256, (3, 64, 64), dtype=torch.uint8), "instances": instances}
    expected, expected_gradients = step(model, sample)
    compile_parts(model)
    losses, gradients = step(model, sample)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert gradients == pytest.approx(expected_gradients, rel=1e-3)


def compile_parts(model: torch.nn.Module) -> None:
    for part in (model.backbone, model.sem_seg_head):
        part.compile(backend="aot_eager", fullgraph=True)


def step(model: torch.nn.Module, sample: dict) -> tuple[float, float]:
    """The sum of the losses, and the norm of all gradients."""
    torch.manual_seed(1)
    model.zero_grad()
    total = sum(model([sample]).values())
    total.backward()
    return float(total.detach()), float(
        torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    )
