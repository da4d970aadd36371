"""Train or score any Mask2Former config.

python tools/train_net.py --config-file configs/shapes/panoptic.yaml
python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS FILE
torchrun --nproc-per-node 2 tools/train_net.py --config-file CONFIG
"""

import sys
from argparse import Namespace

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mask2former import add_maskformer2_config
from mask2former.trainer import Trainer, runnable_here


def setup(args: Namespace) -> CfgNode:
    """The config of the command line, frozen; logging and random states are set up."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_maskformer2_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts or [])
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former")
    return runnable_here(cfg)


def main(args: Namespace) -> dict:
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    if not args.config_file:
        sys.exit(
            "--config-file is missing: name one of the files in configs/, for example configs/shapes/panoptic.yaml."
        )
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
