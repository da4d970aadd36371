"""The trainer: a run that stops and goes on is the run that does not stop; it says what it does; NaN is explained."""

import itertools
import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine.hooks import HookBase
from tiny import tiny_config

from mask2former.trainer import Trainer, build_evaluator, cpu_has_bfloat16


class StopAt(HookBase):
    """Ends the run as Ctrl-C does, before an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


class Untested(Trainer):
    """Does not evaluate at the end."""

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        return {}


def trained(cfg, resume=False, stop_at=None) -> Trainer:
    torch.manual_seed(cfg.SEED)  # default_setup does, before the model is made
    trainer = Untested(cfg)
    trainer.resume_or_load(resume)
    if stop_at is not None:
        trainer.register_hooks([StopAt(stop_at)])
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return trainer


def assert_same_state(one: Trainer, other: Trainer) -> None:
    for (name, a), (_, b) in zip(one.model.state_dict().items(), other.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    states = [trainer.optimizer.state_dict()["state"] for trainer in (one, other)]
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items())
    assert one.scheduler.get_last_lr() == other.scheduler.get_last_lr()


# ---- resuming


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tiny_shapes, tmp_path, workers):
    options = ("DATALOADER.NUM_WORKERS", workers)
    whole = trained(tiny_config(tmp_path / "whole", *options))
    stopped = trained(tiny_config(tmp_path / "parts", *options), stop_at=4)
    assert stopped.iter == 4
    resumed = trained(tiny_config(tmp_path / "parts", *options), resume=True)
    assert resumed.start_iter == 3 and resumed.iter == 6  # the checkpoint of iteration 3, not the stop at 4
    assert_same_state(whole, resumed)
    assert any(not torch.equal(a, b) for a, b in zip(whole.model.parameters(), stopped.model.parameters()))


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(tiny_shapes, tmp_path):
    cfg = tiny_config(tmp_path, "SEED", -1, "DATALOADER.NUM_WORKERS", 0)
    torch.manual_seed(0)
    first = Untested(cfg)
    first.register_hooks([StopAt(3)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = Untested(cfg)
    assert second.data_loader.run.seed != first.data_loader.run.seed
    second.resume_or_load(resume=True)
    assert second.data_loader.run.seed == first.data_loader.run.seed and second.data_loader.run.start == 3 * 2
    ahead = [image["file_name"] for batch in itertools.islice(first.data_loader, 5) for image in batch]
    after = [image["file_name"] for batch in itertools.islice(second.data_loader, 2) for image in batch]
    assert after == ahead[6:]


def test_the_number_of_workers_changes_nothing(tiny_shapes, tmp_path):
    runs = [trained(tiny_config(tmp_path / str(n), "DATALOADER.NUM_WORKERS", n, "SOLVER.MAX_ITER", 2)) for n in (0, 1)]
    assert_same_state(*runs)


def test_a_loader_of_the_users_own_is_used_and_told_of_on_resume(tiny_shapes, tmp_path, caplog):
    class Own(Untested):
        @classmethod
        def build_train_loader(cls, cfg):
            return list(itertools.islice(Trainer.build_train_loader(cfg), 6))

    cfg = tiny_config(tmp_path)
    first = Own(cfg)
    first.register_hooks([StopAt(3)])
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = Own(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 3 and "script's own" in caplog.text
    second.train()
    assert second.iter == 6


# ---- what is said


def test_the_log_opens_with_what_is_trained(tiny_shapes, tmp_path, caplog):
    caplog.set_level(logging.INFO, "mask2former")
    Untested(tiny_config(tmp_path, "SOLVER.AMP.ENABLED", "False"))
    said = [record.getMessage() for record in caplog.records if record.name.startswith("mask2former")]
    assert said[0].startswith("MaskFormer with ResNet-18: panoptic + instance + semantic segmentation, 13 classes, 11.")
    assert said[1].startswith("Training on 8 images of shapes_train_panoptic, 13 classes: ball, crate, star")
    assert said[-1] == "Training 6 iterations of 2 images, on cpu in float32, in 1 process(es)."


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_a_config_for_gpus_trains_on_the_cpu_and_one_line_says_so(tiny_shapes, tmp_path, caplog):
    cfg = tiny_config(tmp_path, "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 1)
    trainer = trained(cfg)
    assert next(trainer.model.parameters()).device.type == "cpu"
    assert [r.getMessage() for r in caplog.records if "CUDA" in r.getMessage()] == [
        "MODEL.DEVICE is cuda, but there is no CUDA device: running on the CPU."
    ]


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_mixed_precision_on_the_cpu_is_bfloat16_where_the_processor_has_it(
    tiny_shapes, tmp_path, monkeypatch, caplog, has_bfloat16
):
    caplog.set_level(logging.INFO, "mask2former")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    assert cpu_has_bfloat16() == has_bfloat16
    trainer = Untested(tiny_config(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 1))
    seen = []
    trainer.model.backbone.stem.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
    trainer.train()
    expected = torch.bfloat16 if has_bfloat16 else torch.float32
    assert seen == [expected] and all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert f"on cpu in {'bfloat16' if has_bfloat16 else 'float32, as this processor has no bfloat16'}" in caplog.text
    with torch.no_grad():
        trainer.model.eval()([{"image": torch.zeros(3, 64, 64)}])
    assert seen[1] == torch.float32  # evaluation is exact


# ---- what goes wrong


def test_a_loss_that_is_not_a_number_says_where_and_with_which_images(tiny_shapes, tmp_path):
    trainer = Untested(tiny_config(tmp_path, "SOLVER.BASE_LR", 0.001))

    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                with torch.no_grad():
                    self.trainer.model.sem_seg_head.predictor.class_embed.weight.fill_(float("nan"))

    trainer.register_hooks([Poison()])
    batches = itertools.islice(Trainer.build_train_loader(trainer.cfg), 3)
    third = [image["file_name"] for image in list(batches)[2]]
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    message = str(error.value)
    assert "infinite or NaN" in message
    assert "at iteration 2, with learning rate 0.000694" in message  # 0.001 * (1 - 2/6)^0.9
    assert f"images: {third[0]}, {third[1]}. Look at these images" in message
    norm = float(message.partition("unclipped: ")[2].partition(";")[0])
    assert 0.1 < norm < 1e6  # larger than CLIP_VALUE: the one before clipping
    assert not (tmp_path / "last_checkpoint").exists()  # broken weights are not kept


def test_an_image_without_targets_alone_in_its_batch_trains(tiny_shapes, tmp_path):
    class Empty(Untested):
        @classmethod
        def build_train_loader(cls, cfg):
            batches = list(itertools.islice(Trainer.build_train_loader(cfg), 2))
            for image in itertools.chain(*batches):
                image["instances"] = image["instances"][:0]
            return batches

    trainer = Empty(tiny_config(tmp_path, "SOLVER.MAX_ITER", 2))
    trainer.train()
    assert all(p.grad is not None for p in trainer.model.parameters() if p.requires_grad)
    assert all(p.isfinite().all() for p in trainer.model.parameters())


# ---- evaluators


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("coco", ["COCOEvaluator"]),
        ("sem_seg", ["SemSegEvaluator"]),
        ("coco_panoptic_seg", ["COCOPanopticEvaluator", "COCOEvaluator", "SemSegEvaluator"]),
    ],
)
def test_the_dataset_says_how_it_is_scored(tiny_shapes, tmp_path, kind, names):
    cfg = tiny_config(tmp_path)
    name = {"coco": "shapes_val_instance", "sem_seg": "shapes_val_semantic"}.get(kind, "shapes_val_panoptic")
    made = build_evaluator(cfg, name)
    assert [type(one).__name__ for one in getattr(made, "_evaluators", [made])] == names


def test_an_unknown_kind_of_dataset_names_the_known_ones(tmp_path):
    MetadataCatalog.get("test_trainer_unknown").set(evaluator_type="pascal_voc")
    with pytest.raises(ValueError, match="has evaluator_type 'pascal_voc', expected one of: coco, sem_seg"):
        build_evaluator(tiny_config(tmp_path), "test_trainer_unknown")
