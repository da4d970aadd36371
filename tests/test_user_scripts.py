"""Scripts as users of the published package write them: unchanged on the embedded and on the original detectron2."""

import copy
import itertools
import json
from collections import OrderedDict
from pathlib import Path

import cv2
import detectron2.utils.comm as comm
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    hooks,
)
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, inference_on_dataset, print_csv_format
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from detectron2.utils.visualizer import ColorMode, Visualizer

from mask2former import (
    COCOInstanceNewBaselineDatasetMapper,
    InstanceSegEvaluator,
    MaskFormer,
    SemanticSegmentorWithTTA,
    add_maskformer2_config,
)

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = [
    "MODEL.WEIGHTS", "",
    "MODEL.DEVICE", "cpu",
    "MODEL.RESNETS.STEM_OUT_CHANNELS", "8",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP", "4",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM", "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM", "32",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "1",
    "MODEL.MASK_FORMER.HIDDEN_DIM", "32",
    "MODEL.MASK_FORMER.NHEADS", "2",
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD", "32",
    "MODEL.MASK_FORMER.DEC_LAYERS", "4",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "20",
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "64",
    "INPUT.IMAGE_SIZE", "64",
    "INPUT.MIN_SIZE_TEST", "64",
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.AMP.ENABLED", "False",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "3",
    "SOLVER.CHECKPOINT_PERIOD", "2",
    "TEST.EVAL_PERIOD", "0",
    "TEST.DETECTIONS_PER_IMAGE", "10",
    "TEST.EXPECTED_RESULTS", "[['segm', 'AP', 50.0, 60.0]]",  # whatever it is: with it, training returns the scores
]  # fmt: skip
NAMES = ["box", "bar"]


@pytest.fixture
def my_data(tmp_path):
    """A COCO file with ids that are not 0, 1, ...; registered as users do."""
    images, annotations = [], []
    for number in range(4):
        pixels = np.full((48, 64, 3), 40, dtype=np.uint8)
        for k, (category, x, y, w, h) in enumerate([(3, 5, 5, 20, 20), (7, 30 + number, 10, 8, 30)]):
            pixels[y : y + h, x : x + w] = (200, 50, 50) if category == 3 else (50, 200, 50)
            annotations.append(
                {
                    "id": 10 * number + k + 1,
                    "image_id": number + 100,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        cv2.imwrite(str(tmp_path / f"{number}.png"), pixels)
        images.append({"id": number + 100, "file_name": f"{number}.png", "height": 48, "width": 64})
    categories = [{"id": 3, "name": "box"}, {"id": 7, "name": "bar"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "my.json").write_text(json.dumps(content))
    for name in ("my_train", "my_val"):
        register_coco_instances(name, {}, str(tmp_path / "my.json"), str(tmp_path))
    yield tmp_path
    for name in ("my_train", "my_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def setup(args):
    cfg = get_cfg()
    # for poly lr schedule
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


class MyTrainer(DefaultTrainer):
    """In the style of the published train_net.py."""

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        if output_folder is None:
            output_folder = str(Path(cfg.OUTPUT_DIR) / "inference")
        # The original's fast implementation is compiled, which it is not everywhere.
        return DatasetEvaluators([InstanceSegEvaluator(dataset_name, output_dir=output_folder, use_fast_impl=False)])

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = COCOInstanceNewBaselineDatasetMapper(cfg, True)
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_optimizer(cls, cfg, model):
        groups = []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                factor = cfg.SOLVER.BACKBONE_MULTIPLIER if "backbone" in name else 1.0
                groups.append({"params": [parameter], "lr": cfg.SOLVER.BASE_LR * factor})

        class ClippingAdamW(torch.optim.AdamW):
            def step(self, closure=None):
                everything = itertools.chain(*[group["params"] for group in self.param_groups])
                torch.nn.utils.clip_grad_norm_(everything, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)
                super().step(closure=closure)

        optimizer = ClippingAdamW(groups, cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)
        if cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE != "full_model":
            optimizer = maybe_add_gradient_clipping(cfg, optimizer)
        return optimizer

    @classmethod
    def test_with_TTA(cls, cfg, model):
        model = SemanticSegmentorWithTTA(cfg, model)
        evaluators = [
            SemSegEvaluator(name, distributed=True, output_dir=str(Path(cfg.OUTPUT_DIR) / "inference_TTA"))
            for name in cfg.DATASETS.TEST
        ]
        results = cls.test(cfg, model, evaluators)
        return OrderedDict({name + "_TTA": value for name, value in results.items()})


def main(args):
    cfg = setup(args)
    if args.eval_only:
        model = MyTrainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        return MyTrainer.test(cfg, model)
    trainer = MyTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def command_line(folder, *words, config="coco/instance-segmentation/maskformer2_R50_bs16_50ep.yaml"):
    options = [
        *SMALL,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2",
        "DATASETS.TRAIN", "('my_train',)",
        "DATASETS.TEST", "('my_val',)",
        "OUTPUT_DIR", str(folder / "output"),
    ]  # fmt: skip
    flags = [word for word in words if word.startswith("--")]
    more = [word for word in words if not word.startswith("--")]
    return default_argument_parser().parse_args(["--config-file", str(CONFIGS / config), *flags, *options, *more])


def test_a_training_script_trains_resumes_and_scores(my_data):
    scores = main(command_line(my_data))
    assert set(scores["segm"]) >= {"AP", "AP50", "AP-box", "AP-bar"}
    output = my_data / "output"
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    assert {"model_0000001.pth", "model_final.pth", "metrics.json"} <= {path.name for path in output.iterdir()}
    logged = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert {"loss_ce", "loss_mask_2", "loss_dice", "lr", "total_loss"} <= set().union(*logged)
    main(command_line(my_data, "--resume", "SOLVER.MAX_ITER", "5"))
    checkpoint = torch.load(output / "model_final.pth", weights_only=False)
    assert checkpoint["iteration"] == 4 and "optimizer" in checkpoint["trainer"]["_trainer"]
    again = main(command_line(my_data, "--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth")))
    assert set(again["segm"]) == set(scores["segm"])


def test_a_script_scores_semantic_segmentation_with_augmentation(tiny_shapes, tmp_path):
    args = command_line(
        tmp_path,
        "TEST.AUG.MIN_SIZES", "[48, 64]",
        config="shapes/semantic.yaml",
    )  # fmt: skip
    names = DatasetCatalog.list()
    train, val = (next(n for n in names if n.startswith("shapes") and s in n and "sem" in n) for s in ("train", "val"))
    args.opts += ["DATASETS.TRAIN", f"('{train}',)", "DATASETS.TEST", f"('{val}',)"]
    classes = len(MetadataCatalog.get(val).stuff_classes)
    args.opts += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", str(classes), "TEST.EXPECTED_RESULTS", "[]"]
    for key in ("STEM_OUT_CHANNELS", "RES2_OUT_CHANNELS", "WIDTH_PER_GROUP"):  # a ResNet-18 comes in one width
        args.opts += [f"MODEL.RESNETS.{key}", "64"]
    cfg = setup(args)
    model = MyTrainer.build_model(cfg).eval()
    results = MyTrainer.test_with_TTA(cfg, model)
    assert 0 <= results["sem_seg_TTA"]["mIoU"] <= 100


def test_a_predictor_and_a_visualizer_draw_every_task(my_data):
    args = command_line(
        my_data,
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "True",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON", "True",
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "0.0",
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", "0.0",
    )  # fmt: skip
    cfg = setup(args)
    DatasetCatalog.get("my_train")  # fills the metadata
    metadata = MetadataCatalog.get("my_train").set(
        stuff_classes=NAMES, stuff_colors=[(9, 9, 9), (99, 99, 99)], ignore_label=255
    )
    predictor = DefaultPredictor(cfg)
    im = cv2.imread(str(my_data / "0.png"))
    outputs = predictor(im)
    assert set(outputs) == {"sem_seg", "panoptic_seg", "instances"}

    v = Visualizer(im[:, :, ::-1], metadata, scale=1.2, instance_mode=ColorMode.IMAGE_BW)
    panoptic_seg, segments_info = outputs["panoptic_seg"]
    panoptic = v.draw_panoptic_seg(panoptic_seg.to("cpu"), segments_info).get_image()
    v = Visualizer(im[:, :, ::-1], metadata, scale=1.2, instance_mode=ColorMode.IMAGE_BW)
    instances = v.draw_instance_predictions(outputs["instances"].to("cpu")).get_image()
    v = Visualizer(im[:, :, ::-1], metadata, scale=1.2, instance_mode=ColorMode.IMAGE_BW)
    semantic = v.draw_sem_seg(outputs["sem_seg"].argmax(0).to("cpu")).get_image()
    for picture in (panoptic, instances, semantic):
        assert picture.shape == (57, 76, 3) and picture.dtype == np.uint8
    assert semantic.std() > 1


class CountImages(HookBase):
    """What users write hooks for: something of their own, in the log."""

    def __init__(self):
        self.images = 0

    def after_step(self):
        self.images += 2
        self.trainer.storage.put_scalar("images", self.images, smoothing_hint=False)

    def after_train(self):
        assert self.trainer.iter == 3


def test_a_script_of_hooks_around_a_simple_trainer(my_data):
    cfg = setup(command_line(my_data)).clone()
    model = build_model(cfg)
    assert isinstance(model, MaskFormer)
    optimizer = MyTrainer.build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler)
    loader = MyTrainer.build_train_loader(cfg)
    trainer = SimpleTrainer(model.train(), loader, optimizer)
    scores = {}

    def score():
        evaluator = MyTrainer.build_evaluator(cfg, "my_val")
        scores.update(inference_on_dataset(model, MyTrainer.build_test_loader(cfg, "my_val"), evaluator))
        print_csv_format(OrderedDict(copy.deepcopy(scores)))
        return scores

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(optimizer, scheduler),
            CountImages(),
            hooks.PeriodicCheckpointer(checkpointer, 2) if comm.is_main_process() else None,
            hooks.EvalHook(3, score),
            hooks.PeriodicWriter([CommonMetricPrinter(3), JSONWriter(cfg.OUTPUT_DIR + "/metrics.json")], period=1),
        ]
    )
    trainer.train(0, 3)
    lines = [json.loads(line) for line in Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()]
    assert [line["images"] for line in lines if "images" in line][-1] == 6
    assert "segm/AP" in lines[-1] or "segm" in scores
    assert checkpointer.has_checkpoint()


PUBLIC = [
    "add_maskformer2_config",
    "COCOInstanceNewBaselineDatasetMapper",
    "COCOPanopticNewBaselineDatasetMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "MaskFormer",
    "SemanticSegmentorWithTTA",
    "InstanceSegEvaluator",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_published_names_are_importable(name):
    import mask2former

    assert callable(getattr(mask2former, name)) and name in mask2former.__all__


def test_registered_names():
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

    from mask2former.modeling.transformer_decoder.build import TRANSFORMER_DECODER_REGISTRY

    heads = ["MaskFormerHead", "PerPixelBaselineHead", "PerPixelBaselinePlusHead"]
    pixel_decoders = ["BasePixelDecoder", "TransformerEncoderPixelDecoder", "MSDeformAttnPixelDecoder"]
    assert all(name in SEM_SEG_HEADS_REGISTRY for name in heads + pixel_decoders)
    assert "MaskFormer" in META_ARCH_REGISTRY and "D2SwinTransformer" in BACKBONE_REGISTRY
    decoders = ["StandardTransformerDecoder", "MultiScaleMaskedTransformerDecoder"]
    assert all(name in TRANSFORMER_DECODER_REGISTRY for name in decoders)
