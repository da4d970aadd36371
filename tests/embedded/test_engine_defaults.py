"""DefaultTrainer, DefaultPredictor and set-up, on a model of one weight and a data set of four images in memory."""

import json
import logging
from types import SimpleNamespace

import detectron2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    create_ddp_model,
    default_argument_parser,
    default_setup,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import CommonMetricPrinter, JSONWriter, TensorboardXWriter
from torch import nn

embedded_only = pytest.mark.skipif(not getattr(detectron2, "EMBEDDED", False), reason="not in upstream detectron2")


@META_ARCH_REGISTRY.register()
class ToyMean(nn.Module):
    """Learns the mean of the images' values; answers with it and with the image it saw."""

    def __init__(self, cfg) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        if not self.training:
            return [{"mean": self.mean.item(), "input": one} for one in batch]
        values = torch.stack([image["image"].float().mean() for image in batch]).to(self.mean.device)
        noise = torch.rand(1, device=self.mean.device) + np.random.rand()
        return {"loss_mean": (self.mean - values).square().mean() * noise}


class MeanEvaluator(DatasetEvaluator):
    def reset(self):
        self.means = []

    def process(self, inputs, outputs):
        self.means += [output["mean"] for output in outputs]

    def evaluate(self):
        return {"toy": {"mean": float(np.mean(self.means)), "images": len(self.means)}}


def _toy_mapper(record):
    return {**record, "image": torch.full((3, 2, 2), float(record["image_id"]))}


class ToyTrainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=_toy_mapper)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=_toy_mapper)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return MeanEvaluator()


@pytest.fixture(autouse=True)
def _toy_data():
    for name in ("toy_a", "toy_b"):
        DatasetCatalog.register(name, lambda: [{"image_id": i, "height": 2, "width": 2} for i in (1, 2, 4, 7)])
    yield
    for name in ("toy_a", "toy_b"):
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ToyMean"
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = ("toy_a",)
    cfg.DATASETS.TEST = ("toy_b",)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 8
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WARMUP_ITERS = 4
    cfg.SOLVER.BASE_LR = 0.02
    cfg.SOLVER.CHECKPOINT_PERIOD = 3
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SEED = 1
    return cfg


class StopAt(HookBase):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


def _run(cfg, resume=False, stop_at=None):
    trainer = ToyTrainer(cfg)
    if stop_at is not None:
        trainer.register_hooks([StopAt(stop_at)])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def _metrics(cfg) -> list[dict]:
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return [json.loads(line) for line in file]


def test_a_run_learns_checkpoints_evaluates_and_writes(cfg, tmp_path):
    cfg.TEST.EVAL_PERIOD = 4
    trainer = _run(cfg)
    assert 0.1 < trainer.model.mean.item() <= 3
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"model_0000002.pth", "model_0000005.pth", "model_final.pth", "last_checkpoint", "metrics.json"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    lines = _metrics(cfg)
    assert [line["iteration"] for line in lines] == [3, 7, 8]  # 3 is from the evaluation there
    assert set(lines[1]) >= {"total_loss", "lr", "time", "data_time", "eta_seconds"}
    assert lines[-1]["toy/mean"] == pytest.approx(trainer.model.mean.item()) and lines[-1]["toy/images"] == 4


def test_the_content_of_a_checkpoint(cfg, tmp_path):
    _run(cfg)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth")  # weights_only, as everyone should
    assert set(checkpoint) == {"model", "iteration", "trainer"} and set(checkpoint["model"]) == {"mean"}
    trainer = checkpoint["trainer"]
    assert checkpoint["iteration"] == trainer["iteration"] == trainer["_trainer"]["iteration"] == 7
    assert trainer["hooks"]["LRScheduler"]["last_epoch"] == 8
    assert set(trainer["_trainer"]["optimizer"]) == {"state", "param_groups"}


def test_a_run_that_was_killed_goes_on_to_the_same_end(cfg, tmp_path):
    whole = _run(cfg)
    last_rate = _metrics(cfg)[-2]["lr"]  # the last line is the evaluation

    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        _run(cfg, stop_at=5)
    resumed = _run(cfg, resume=True)
    assert resumed.start_iter == 3 and resumed.iter == whole.iter == 8
    assert (tmp_path / "killed" / "last_checkpoint").read_text() == "model_final.pth"
    assert _metrics(cfg)[-2]["lr"] == last_rate


def test_resume_without_a_checkpoint_loads_the_weights_and_starts_at_0(cfg, tmp_path):
    torch.save({"model": {"mean": torch.tensor([2.5])}, "iteration": 41}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0 and trainer.model.mean.item() == 2.5


def test_several_test_sets_are_keyed_by_name_and_one_is_not(cfg):
    model = ToyTrainer.build_model(cfg)
    assert ToyTrainer.test(cfg, model) == {"toy": {"mean": 0.0, "images": 4}}
    cfg.DATASETS.TEST = ("toy_a", "toy_b")
    assert list(ToyTrainer.test(cfg, model, [MeanEvaluator(), MeanEvaluator()])) == ["toy_a", "toy_b"]
    with pytest.raises(AssertionError):
        ToyTrainer.test(cfg, model, [MeanEvaluator()])


def test_a_trainer_without_an_evaluator_trains_all_the_same(cfg):
    class NoEvaluator(ToyTrainer):
        build_evaluator = DefaultTrainer.build_evaluator

    with pytest.raises(NotImplementedError):
        NoEvaluator.build_evaluator(cfg, "toy_b")
    assert NoEvaluator.test(cfg, ToyTrainer.build_model(cfg)) == {}


def test_expected_results_are_checked_at_the_end(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["toy", "images", 4, 0.1]]
    trainer = ToyTrainer(cfg)
    assert trainer.train()["toy"]["images"] == 4
    cfg.TEST.EXPECTED_RESULTS = [["toy", "images", 9, 0.1]]
    with pytest.raises(SystemExit):
        ToyTrainer(cfg).train()


def test_the_parts_are_the_ones_overridden(cfg, tmp_path):
    class Own(ToyTrainer):
        @classmethod
        def build_optimizer(cls, cfg, model):
            return torch.optim.AdamW(model.parameters(), lr=cfg.SOLVER.BASE_LR)

        @classmethod
        def build_lr_scheduler(cls, cfg, optimizer):
            return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)

        def build_hooks(self):
            return [*super().build_hooks(), StopAt(99)]

        def build_writers(self):
            return [JSONWriter(str(tmp_path / "own.json"))]

    trainer = Own(cfg)
    trainer.train()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.scheduler.get_last_lr() == [0.02 / 16]
    assert (tmp_path / "own.json").read_text()


def test_a_hook_between_gradient_and_step_sees_the_outer_trainer(cfg):
    seen = []

    class Gradient(HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.mean.grad.item())

    trainer = ToyTrainer(cfg)
    trainer.register_hooks([Gradient()])
    trainer.train()
    if getattr(detectron2, "EMBEDDED", False):
        assert len(seen) == 8 and all(seen)


def test_the_default_writers(cfg, tmp_path):
    from detectron2.engine import default_writers

    kinds = [type(writer) for writer in default_writers(str(tmp_path / "new"), 5)]
    assert kinds == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]


@embedded_only
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
@pytest.mark.parametrize("amp", [False, True])
def test_a_config_for_gpus_runs_on_the_cpu_and_one_line_says_so(cfg, amp, caplog):
    cfg.MODEL.DEVICE = "cuda"
    cfg.SOLVER.AMP.ENABLED = amp
    cfg.freeze()
    logger = logging.getLogger("detectron2")
    logger.addHandler(caplog.handler)
    try:
        trainer = _run(cfg)
    finally:
        logger.removeHandler(caplog.handler)
    assert trainer.model.mean.device.type == "cpu" and trainer.cfg.MODEL.DEVICE == "cpu"
    assert cfg.MODEL.DEVICE == "cuda" and trainer.cfg.is_frozen()
    lines = {message for message in caplog.messages if "CUDA" in message and "CPU" in message}
    assert len(lines) == 1 and ("bfloat16" in str(lines) or "float32" in str(lines))


def test_scaling_to_another_number_of_processes():
    cfg = get_cfg()
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 16, 0.1, 5000
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS, cfg.SOLVER.CHECKPOINT_PERIOD = 1000, (4000, 4500), 1000
    cfg.TEST.EVAL_PERIOD = 2000
    cfg.freeze()
    solver = (scaled := DefaultTrainer.auto_scale_workers(cfg, 16)).SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER, solver.WARMUP_ITERS) == (32, 0.2, 2500, 500)
    assert (tuple(solver.STEPS), solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == ((2000, 2250), 500, 1000)
    assert solver.REFERENCE_WORLD_SIZE == 16 and scaled.is_frozen() and cfg.SOLVER.MAX_ITER == 5000
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg


def test_the_command_line():
    parser = default_argument_parser()
    args = parser.parse_args([])
    assert (args.config_file, args.resume, args.eval_only, args.opts) == ("", False, False, [])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.dist_url.startswith("tcp://127.0.0.1:") and 49152 <= int(args.dist_url.split(":")[-1]) < 65536
    args = parser.parse_args(["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "SOLVER.MAX_ITER", "5"])
    assert (args.config_file, args.resume, args.num_gpus) == ("a.yaml", True, 2)
    assert args.opts == ["SOLVER.MAX_ITER", "5"]


def test_set_up_records_the_config_and_seeds(cfg, tmp_path):
    cfg.OUTPUT_DIR = str(tmp_path / "deep" / "out")
    default_setup(cfg, SimpleNamespace())
    first = (torch.rand(1).item(), np.random.rand())
    default_setup(cfg, SimpleNamespace(config_file="", eval_only=True))
    assert (torch.rand(1).item(), np.random.rand()) == first
    again = get_cfg()
    again.merge_from_file(cfg.OUTPUT_DIR + "/config.yaml")
    assert again.SOLVER == cfg.SOLVER and again.MODEL.META_ARCHITECTURE == "ToyMean"
    text = (tmp_path / "deep" / "out" / "log.txt").read_text()
    assert "Rank of current process: 0. World size: 1" in text and "META_ARCHITECTURE: ToyMean" in text


def test_one_process_needs_no_wrapper():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_predictor_resizes_orders_channels_and_loads_weights(cfg, tmp_path, order):
    torch.save({"model": {"mean": torch.tensor([1.5])}}, tmp_path / "weights.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TEST = order, 8
    cfg.freeze()
    predictor = DefaultPredictor(cfg)
    bgr = np.zeros((4, 6, 3), dtype=np.uint8)
    bgr[..., 0] = 200
    result = predictor(bgr)
    seen = result["input"]
    assert result["mean"] == 1.5 and not predictor.model.training
    assert (seen["height"], seen["width"]) == (4, 6)
    assert seen["image"].shape == (3, 8, 12) and seen["image"].dtype == torch.float32
    blue = 0 if order == "BGR" else 2
    assert seen["image"].mean((1, 2)).tolist() == [200.0 if channel == blue else 0.0 for channel in range(3)]
    assert predictor.metadata is MetadataCatalog.get("toy_b") and predictor.input_format == order


def test_the_predictor_refuses_an_unknown_format(cfg):
    cfg.INPUT.FORMAT = "L"
    with pytest.raises(AssertionError):
        DefaultPredictor(cfg)
