"""The ordinary way to set up, train and use a model: all of it from a config, every part to be overridden.

Longer than other files, because scripts import all of this from here, and DefaultTrainer is made of many small methods.
"""

import argparse
import logging
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

from . import hooks
from .train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The command line of a training script; `epilog` is shown below the help text, examples by default."""
    script = sys.argv[0]
    parser = argparse.ArgumentParser(
        epilog=epilog
        or f"""
Examples:
  train, one process:       {script} --config-file FILE
  two processes:            {script} --config-file FILE --num-gpus 2
  change config values:     {script} --config-file FILE SOLVER.BASE_LR 0.0001 MODEL.WEIGHTS FILE
  go on with a run:         {script} --config-file FILE --resume
  two machines, on each:    {script} --config-file FILE --num-gpus 8 --num-machines 2 --machine-rank 0|1 \\
                                --dist-url tcp://MACHINE0:PORT
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--config-file", default="", metavar="FILE", help="config to start from")
    add("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, do not train")
    add("--num-gpus", type=int, default=1, help="GPUs per machine; without CUDA, processes")
    add("--num-machines", type=int, default=1, help="how many machines run this command")
    add("--machine-rank", type=int, default=0, help="which of them this is, from 0")
    # One port per user, so that two users of a machine do not meet.
    user = os.getuid() if hasattr(os, "getuid") else 1
    add(
        "--dist-url",
        default=f"tcp://127.0.0.1:{49152 + hash(user) % 16384}",
        help="where machine 0 listens for the others; auto: a free port, on one machine",
    )
    add(
        "opts",
        nargs=argparse.REMAINDER,
        default=None,
        metavar="KEY VALUE",
        help="config values to change, at the end of the line",
    )
    return parser


def default_setup(cfg: CfgNode, args: Any) -> None:
    """Make the output folder, set up logging, record what is being run, seed everything.

    Args:
        cfg: the final config; its text goes into `config.yaml` in OUTPUT_DIR.
        args: anything; `config_file` and `eval_only` are looked at if it has them.
    """
    from detectron2.utils.collect_env import collect_env_info  # asks every library for its version: slow to import

    output_dir, rank = cfg.OUTPUT_DIR, comm.get_rank()
    if comm.is_main_process() and output_dir:
        PathManager.mkdirs(output_dir)
    setup_logger(output_dir, distributed_rank=rank, name="fvcore")
    logger = setup_logger(output_dir, distributed_rank=rank)

    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    config_file = getattr(args, "config_file", "")
    if config_file:
        with PathManager.open(config_file) as file:
            logger.info("Contents of args.config_file=%s:\n%s", config_file, file.read())
    logger.info("Running with full config:\n%s", cfg.dump())
    if comm.is_main_process() and output_dir:
        path = os.path.join(output_dir, "config.yaml")
        with PathManager.open(path, "w") as file:
            file.write(cfg.dump())
        logger.info("Full config saved to %s", path)

    # Another seed in each process, or all would draw the same points and flips.
    seed_all_rng(cfg.SEED + rank if cfg.SEED >= 0 else None)
    if not getattr(args, "eval_only", False):
        # Trying out convolutions costs more than it gains on the changing sizes of evaluation.
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION and torch.cuda.is_available():
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """The console, `metrics.json` and TensorBoard."""
    PathManager.mkdirs(output_dir)
    return [
        CommonMetricPrinter(max_iter),  # first, as it computes the time left that the others write
        JSONWriter(os.path.join(output_dir, "metrics.json")),
        TensorboardXWriter(output_dir),
    ]


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """Wrap the model for training in several processes; with one process it is returned as it is.

    Args:
        model: on its device.
        fp16_compression: send gradients in float16.
        kwargs: of DistributedDataParallel; `device_ids` is the process's GPU if the model is on one.
    """
    if comm.get_world_size() == 1:
        return model
    if "device_ids" not in kwargs and any(p.is_cuda for p in model.parameters()):
        kwargs["device_ids"] = [comm.get_local_rank()]
    ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


class DefaultPredictor:
    """From a picture to a result: `DefaultPredictor(cfg)(image)`, with the weights in MODEL.WEIGHTS."""

    def __init__(self, cfg: CfgNode) -> None:
        from detectron2.data import MetadataCatalog
        from detectron2.data.transforms import ResizeShortestEdge
        from detectron2.modeling import build_model

        self.cfg = cfg.clone()
        self.input_format: str = cfg.INPUT.FORMAT
        assert self.input_format in ("RGB", "BGR"), f"INPUT.FORMAT is {self.input_format!r}, expected 'RGB' or 'BGR'"
        self.model = build_model(self.cfg).eval()
        if cfg.DATASETS.TEST:
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """
        Args:
            original_image: (H, W, 3) uint8, BGR as OpenCV reads it, whatever INPUT.FORMAT says.

        Returns:
            What the model answers for one image, at the size (H, W).
        """
        height, width = original_image.shape[:2]
        image = original_image if self.input_format == "BGR" else original_image[:, :, ::-1]
        image = self.aug.get_transform(image).apply_image(image)
        tensor = torch.from_numpy(image.astype("float32").transpose(2, 0, 1).copy())
        return self.model([{"image": tensor, "height": height, "width": width}])[0]


class DefaultTrainer(TrainerBase):
    """Trains what a config says. To change a part, override the method of its name.

    Attributes: `cfg`, `scheduler`, `checkpointer`, `start_iter`, `max_iter`; `model`, `optimizer` and `data_loader`
    belong to the inner trainer, `_trainer`, which runs the steps.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detectron2").handlers:
            setup_logger()  # the caller left out default_setup: show at least what is going on
        cfg = _on_this_machine(self.auto_scale_workers(cfg, comm.get_world_size()))

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, forward_sync_buffers=False)
        inner = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer: SimpleTrainer = inner(model, data_loader, optimizer)
        self._trainer.register_hooks([_AfterBackward(weakref.proxy(self))])
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A strong reference to the trainer would keep all of this alive in a circle.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.cfg = cfg
        self.start_iter = 0
        self.max_iter: int = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    @property
    def model(self) -> nn.Module:
        return self._trainer.model

    @property
    def optimizer(self) -> Optimizer:
        return self._trainer.optimizer

    @property
    def data_loader(self) -> Any:
        return self._trainer.data_loader

    def resume_or_load(self, resume: bool = True) -> None:
        """Load MODEL.WEIGHTS; with `resume`, go on from the last checkpoint in OUTPUT_DIR instead, if there is one."""
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # load_state_dict set `iter` to the iteration that the checkpoint has finished.
            self.start_iter = self.iter + 1

    def build_hooks(self) -> list[HookBase | None]:
        """What happens around the steps, in this order. The writers come last, to write what the others report."""
        cfg = self.cfg
        is_main = comm.is_main_process()

        def evaluate() -> Mapping[str, Any]:
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        precise_bn = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            loader_cfg = cfg.clone()
            loader_cfg.defrost()
            loader_cfg.DATALOADER.NUM_WORKERS = 0  # it is idle most of the time
            precise_bn = hooks.PreciseBN(
                cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(loader_cfg), cfg.TEST.PRECISE_BN.NUM_ITER
            )
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            precise_bn,
            # Saved before the evaluation, so that an error there does not lose the training.
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if is_main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
            hooks.PeriodicWriter(self.build_writers(), period=20) if is_main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        """What PeriodicWriter writes to."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self) -> Mapping[str, Any] | None:  # type: ignore[override]  # the run knows where it starts and ends
        """Train from `start_iter` to the end.

        Returns:
            The results of the last evaluation, checked, if TEST.EXPECTED_RESULTS lists any; else None.
        """
        super().train(self.start_iter, self.max_iter)
        if not (self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process()):
            return None
        from detectron2.evaluation import verify_results

        assert hasattr(self, "_last_eval_results"), "TEST.EXPECTED_RESULTS is set and nothing was evaluated"
        verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        from detectron2.modeling import build_model

        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        from detectron2.solver import build_optimizer

        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        from detectron2.solver import build_lr_scheduler

        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        from detectron2.data import build_detection_train_loader

        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        from detectron2.data import build_detection_test_loader

        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """A DatasetEvaluator, or a list of them. Which one depends on the task, so there is no default."""
        raise NotImplementedError(
            f"No evaluator for {dataset_name}: override {cls.__name__}.build_evaluator, or pass evaluators to test()"
        )

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate the model on every dataset in DATASETS.TEST.

        Args:
            cfg: whose DATASETS.TEST counts.
            model: as it is, no weights are loaded.
            evaluators: one per dataset, a single one for a single dataset; None to call `build_evaluator`.

        Returns:
            The results of the dataset; of several, {dataset name: its results}.
        """
        from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format

        logger = logging.getLogger(__name__)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        names: Sequence[str] = cfg.DATASETS.TEST
        if evaluators is not None and len(evaluators) != len(names):
            raise AssertionError(
                f"{len(evaluators)} evaluators for the {len(names)} datasets of DATASETS.TEST, {names}"
            )
        results: OrderedDict[str, Any] = OrderedDict()
        for index, name in enumerate(names):
            try:
                evaluator = evaluators[index] if evaluators is not None else cls.build_evaluator(cfg, name)
            except NotImplementedError as error:
                logger.warning("%s is not evaluated. %s", name, error)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if comm.is_main_process():
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Fit a config made for SOLVER.REFERENCE_WORLD_SIZE processes to another number of them.

        Batch and learning rate grow with the number of processes, every number of iterations shrinks with it.

        Args:
            cfg: not changed; returned as it is where its reference is 0 or `num_workers`.
            num_workers: processes there are.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        was_frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver, growth = cfg.SOLVER, num_workers / reference
        if solver.IMS_PER_BATCH % reference:
            raise AssertionError(
                f"SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} does not divide among REFERENCE_WORLD_SIZE {reference}"
            )

        def shrunk(iterations: int) -> int:
            return round(iterations / growth)

        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * growth)
        solver.BASE_LR *= growth
        solver.STEPS = tuple(shrunk(step) for step in solver.STEPS)
        for node, key in (
            (solver, "MAX_ITER"),
            (solver, "WARMUP_ITERS"),
            (solver, "CHECKPOINT_PERIOD"),
            (cfg.TEST, "EVAL_PERIOD"),
        ):
            node[key] = shrunk(node[key])
        solver.REFERENCE_WORLD_SIZE = num_workers  # so that scaling twice changes nothing
        logging.getLogger(__name__).info(
            "Config scaled from %d to %d processes: batch %d, learning rate %g, %d iterations, warm-up %d",
            reference,
            num_workers,
            solver.IMS_PER_BATCH,
            solver.BASE_LR,
            solver.MAX_ITER,
            solver.WARMUP_ITERS,
        )
        if was_frozen:
            cfg.freeze()
        return cfg


class _AfterBackward(HookBase):
    """Lets the hooks of the outer trainer know that the inner one has its gradients."""

    def __init__(self, outer: TrainerBase) -> None:
        self._outer = outer

    def after_backward(self) -> None:
        self._outer.after_backward()


def _on_this_machine(cfg: CfgNode) -> CfgNode:
    """The config with a device that exists. Configs made for GPUs run on the CPU, and the log has one line on it."""
    if not cfg.MODEL.DEVICE.startswith("cuda") or torch.cuda.is_available():
        return cfg
    if not cfg.SOLVER.AMP.ENABLED:  # else AMPTrainer says it, with the precision
        logging.getLogger(__name__).info("No CUDA: training on the CPU in float32")
    was_frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    if was_frozen:
        cfg.freeze()
    return cfg
