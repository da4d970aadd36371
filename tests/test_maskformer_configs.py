"""The configs of MaskFormer and of its per-pixel baselines: parameters at full size, one step and results when tiny."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from mask2former import load_config
from mask2former.optimizer import build_optimizer
from mask2former.setup_config import settings_without_effect

FOLDER = Path(__file__).parents[1] / "configs" / "maskformer"
NAMES = ["maskformer_R50", "maskformer_R50_enc", "per_pixel_baseline_R50", "per_pixel_baseline_plus_R50"]
# On top of any of them: narrower and shallower, with 5 classes.
TINY = [
    "MODEL.DEVICE", "cpu",
    "MODEL.RESNETS.DEPTH", 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM", 16,
    "MODEL.MASK_FORMER.HIDDEN_DIM", 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", 16,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 5,
    "MODEL.MASK_FORMER.DEC_LAYERS", 2,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 32,
    "SOLVER.BASE_LR", 0.001,
]  # fmt: skip


def test_every_file_of_the_folder_is_tested():
    assert sorted(NAMES) == sorted(path.stem for path in FOLDER.iterdir())


@pytest.mark.parametrize(
    ("name", "millions"),
    # MaskFormer's paper gives 41M for R50 (table 1); the rest by hand: an encoder layer has 1.32M parameters with
    # 2048 hidden, a projection 2048 x 256 0.52M; without it the pyramid's 3 x 3 on 2048 channels has 4.13M more.
    [("maskformer_R50", 41.3), ("maskformer_R50_enc", 45.0), ("per_pixel_baseline_R50", 31.1),
     ("per_pixel_baseline_plus_R50", 41.3)],
)  # fmt: skip
def test_the_model_has_its_size(name, millions):
    cfg = load_config(FOLDER / f"{name}.yaml", ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.2)
    assert settings_without_effect(cfg) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_one_image_lowers_its_loss_and_every_parameter_learns(name):
    cfg = load_config(FOLDER / f"{name}.yaml", TINY)
    model = build_model(cfg).train()
    optimizer = build_optimizer(cfg, model)
    sample = _sample(cfg)
    first = _loss(model, sample)
    first.backward()
    still = [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert still == []
    optimizer.step()
    for _ in range(3):
        optimizer.zero_grad()
        _loss(model, sample).backward()
        optimizer.step()
    assert _loss(model, sample) < first


@pytest.mark.parametrize("name", NAMES)
def test_results_are_scores_at_the_asked_size(name):
    cfg = load_config(FOLDER / f"{name}.yaml", TINY)
    model = build_model(cfg).eval()
    with torch.no_grad():
        (result,) = model([{"image": _sample(cfg)["image"], "height": 50, "width": 70}])
    assert list(result) == ["sem_seg"]
    assert result["sem_seg"].shape == (5, 50, 70) and result["sem_seg"].isfinite().all()


def _loss(model, sample) -> torch.Tensor:
    torch.manual_seed(0)
    return sum(model([sample]).values())


def _sample(cfg) -> dict:
    from detectron2.structures import Instances

    sem_seg = torch.zeros(64, 64, dtype=torch.int64)
    sem_seg[:, 32:] = 3
    sem_seg[:8] = 255  # ignored
    instances = Instances((64, 64))
    instances.gt_classes = torch.tensor([0, 3])
    instances.gt_masks = torch.stack([sem_seg == 0, sem_seg == 3])
    image = torch.where(sem_seg == 3, 200.0, 50.0).expand(3, -1, -1)
    return {"image": image, "sem_seg": sem_seg, "instances": instances}
