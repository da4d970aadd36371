"""The one trainer: DefaultTrainer with evaluators, loaders, optimiser and schedule chosen by the config."""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import HookBase
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm
from torch import nn

from mask2former.checkpoint import Mask2FormerCheckpointer
from mask2former.data.loader import RunPosition, build_train_loader, seed_random
from mask2former.data.mappers import build_mapper
from mask2former.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator, InstanceSegEvaluator
from mask2former.modeling.settings import check_names, registered
from mask2former.optimizer import build_optimizer, gradient_norm
from mask2former.setup_config import changed, report_settings_without_effect, runnable_here

logger = logging.getLogger(__name__)


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware; elsewhere bfloat16 is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


class Trainer(DefaultTrainer):
    """Trains and scores any Mask2Former config.

    A run is a function of its seed: stopped at any moment and resumed, it goes on as if it had not been stopped.
    """

    checkpointer: DetectionCheckpointer

    def __init__(self, cfg: CfgNode) -> None:
        cfg = runnable_here(cfg)
        # detectron2's mixed-precision trainer needs CUDA; on the CPU the model does it itself.
        mixed_on_cpu = cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu"
        super().__init__(changed(cfg, {"SOLVER.AMP.ENABLED": False}) if mixed_on_cpu else cfg)
        precision = "float16" if cfg.SOLVER.AMP.ENABLED else "float32"
        if mixed_on_cpu:
            precision = "bfloat16" if cpu_has_bfloat16() else "float32, as this processor has no bfloat16"
        if precision == "bfloat16":
            train_in_bfloat16(unwrapped(self.model))
        logger.info(
            "Training %d iterations of %d images, on %s in %s, in %d process(es).",
            cfg.SOLVER.MAX_ITER,
            cfg.SOLVER.IMS_PER_BATCH,
            cfg.MODEL.DEVICE,
            precision,
            comm.get_world_size(),
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The model of MODEL.META_ARCHITECTURE.

        Raises:
            ValueError: there is no such model, or one of its parts.
        """
        registered(META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE)
        check_names(cfg)
        report_settings_without_effect(cfg)
        model = build_model(cfg)
        _log_model(cfg, model)
        return model

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        return build_train_loader(cfg, build_mapper(cfg))

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    def build_hooks(self) -> list[HookBase | None]:
        # detectron2's reads fewer kinds of weights; the hooks made here hold on to the one they find.
        made = self.checkpointer
        self.checkpointer = Mask2FormerCheckpointer(made.model, made.save_dir, **made.checkpointables)
        run = getattr(self.data_loader, "run", None) or RunPosition(max(self.cfg.SEED, 0))
        self._steps = SeededSteps(run)
        return [self._steps, *super().build_hooks()]

    def run_step(self) -> None:
        """One iteration of training.

        Raises:
            FloatingPointError: a loss is infinite or NaN; says where, and with which images.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            raise FloatingPointError(self._divergence(error)) from error

    def _divergence(self, error: FloatingPointError) -> str:
        rates = sorted({group["lr"] for group in self.optimizer.param_groups})
        where = f" of process {comm.get_rank()}" if comm.get_world_size() > 1 else ""
        return (
            f"{error}\nIt came at iteration {self.iter}, with learning rate {', '.join(f'{r:.3g}' for r in rates)}; "
            f"gradient norm of the step before, unclipped: {gradient_norm(self.optimizer):.3g}; "
            f"images{where}: {', '.join(self._steps.images)}. "
            "Look at these images and their annotations, or lower SOLVER.BASE_LR."
        )

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume=resume)
        run = getattr(self.data_loader, "run", None)
        if run is not None:
            run.start = self.start_iter * (self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size())
        elif self.start_iter:
            logger.warning("The training loader is the script's own: after this resume it starts from its beginning.")

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Score the model on DATASETS.TEST, in all processes with the weights that a checkpoint would have."""
        if comm.get_world_size() > 1:
            # Every process has seen other images: their running statistics of batch norm differ.
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Score semantic segmentation with test-time augmentation (TEST.AUG); task names get the suffix `_TTA`."""
        from mask2former.test_time_augmentation import SemanticSegmentorWithTTA

        logger.info("Running inference with test-time augmentation ...")
        cfg = _semantic_only(cfg)
        model = SemanticSegmentorWithTTA(cfg, model)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, output_folder=folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, model, evaluators)
        return {f"{name}_TTA": scores for name, scores in results.items()}


class SeededSteps(HookBase):
    """Sets the random state before every forward pass from the run's seed, the iteration and the rank.

    So a resumed run draws what the uninterrupted one would have drawn, on every rank and with any number of loader
    workers, without saving any state but the seed.
    """

    def __init__(self, run: RunPosition) -> None:
        self.run = run
        self.images: list[str] = []  # of the batch being trained on

    def before_train(self) -> None:
        self._handle = unwrapped(self.trainer.model).register_forward_pre_hook(self._before_forward)

    def after_train(self) -> None:
        self._handle.remove()

    def _before_forward(self, model: nn.Module, inputs: tuple[list[dict[str, Any]]]) -> None:
        if model.training:  # evaluation draws nothing
            seed_random(self.run.seed, self.trainer.iter, comm.get_rank())
            self.images = [str(image.get("file_name", image.get("image_id", "unnamed"))) for image in inputs[0]]

    def state_dict(self) -> dict[str, int]:
        return {"seed": self.run.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.run.seed = state["seed"]


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
    """The evaluators of a dataset by its `evaluator_type` and the tasks that are on.

    Raises:
        ValueError: the dataset's `evaluator_type` is unknown.
    """
    folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    test = cfg.MODEL.MASK_FORMER.TEST
    evaluators: list[DatasetEvaluator] = []
    if kind == "cityscapes_instance":
        return CityscapesInstanceEvaluator(dataset_name)
    if kind == "cityscapes_sem_seg":
        return CityscapesSemSegEvaluator(dataset_name)
    if kind in ("sem_seg", "ade20k_panoptic_seg"):
        evaluators.append(SemSegEvaluator(dataset_name, distributed=True, output_dir=folder))
    if kind == "coco":
        evaluators.append(COCOEvaluator(dataset_name, output_dir=folder))
    if kind in PANOPTIC:
        if test.PANOPTIC_ON:
            evaluators.append(COCOPanopticEvaluator(dataset_name, folder))
        if test.INSTANCE_ON:
            evaluators.append(PANOPTIC[kind](dataset_name, folder))
        if test.SEMANTIC_ON and kind == "cityscapes_panoptic_seg":
            evaluators.append(CityscapesSemSegEvaluator(dataset_name))
        elif test.SEMANTIC_ON and kind != "ade20k_panoptic_seg":
            evaluators.append(SemSegEvaluator(dataset_name, distributed=True, output_dir=folder))
    if not evaluators:
        raise ValueError(
            f"Dataset '{dataset_name}' has evaluator_type {kind!r}, expected one of: coco, sem_seg, "
            f"cityscapes_instance, cityscapes_sem_seg, {', '.join(PANOPTIC)}. Set it with "
            f"MetadataCatalog.get('{dataset_name}').set(evaluator_type=...), or override Trainer.build_evaluator."
        )
    return evaluators[0] if len(evaluators) == 1 else DatasetEvaluators(evaluators)


# How the instances of a panoptic dataset are scored.
PANOPTIC: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "coco_panoptic_seg": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "ade20k_panoptic_seg": lambda name, folder: InstanceSegEvaluator(name, output_dir=folder),
    "mapillary_vistas_panoptic_seg": lambda name, folder: InstanceSegEvaluator(name, output_dir=folder),
    "cityscapes_panoptic_seg": lambda name, folder: CityscapesInstanceEvaluator(name),
}


def train_in_bfloat16(model: nn.Module) -> None:
    """Run the model's training forward passes under bfloat16 autocast on the CPU; evaluation stays float32."""
    forward = model.forward

    def mixed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.training):
            return forward(*args, **kwargs)

    model.forward = mixed


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or the model itself."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _semantic_only(cfg: CfgNode) -> CfgNode:
    """The config with the other tasks off, so that they are not evaluated either.

    Raises:
        ValueError: the model is not for semantic segmentation.
    """
    test = cfg.MODEL.MASK_FORMER.TEST
    if not test.SEMANTIC_ON:
        raise ValueError(
            "Test-time augmentation averages semantic scores, but MODEL.MASK_FORMER.TEST.SEMANTIC_ON is False. "
            "Set it, or TEST.AUG.ENABLED False."
        )
    return changed(cfg, {f"MODEL.MASK_FORMER.TEST.{task}_ON": False for task in ("PANOPTIC", "INSTANCE")})


def _log_model(cfg: CfgNode, model: nn.Module) -> None:
    """One line on what the model is and does."""
    test = cfg.MODEL.MASK_FORMER.TEST
    on = {"panoptic": test.PANOPTIC_ON, "instance": test.INSTANCE_ON, "semantic": test.SEMANTIC_ON}
    backbone = cfg.MODEL.BACKBONE.NAME
    parameters = list(model.parameters())
    logger.info(
        "%s with %s: %s segmentation, %d classes, %.1fM parameters (%.1fM trainable).",
        type(model).__name__,
        f"ResNet-{cfg.MODEL.RESNETS.DEPTH}" if "resnet" in backbone else backbone,
        " + ".join(task for task, is_on in on.items() if is_on),
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        sum(p.numel() for p in parameters) / 1e6,
        sum(p.numel() for p in parameters if p.requires_grad) / 1e6,
    )
