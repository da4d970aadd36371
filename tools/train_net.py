"""Train or score any Mask2Former config.

python tools/train_net.py --config-file configs/shapes/panoptic.yaml
python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS FILE
torchrun --nproc-per-node 2 tools/train_net.py --config-file CONFIG
"""

import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from mask2former.checkpoint import Mask2FormerCheckpointer
from mask2former.setup_config import read_config, runnable_here
from mask2former.trainer import Trainer
from mask2former.user_errors import told_in_one_message


def setup(args: Namespace) -> CfgNode:
    """The config of the command line, frozen; logging and random states are set up.

    Raises:
        ValueError: a missing config file, an OUTPUT_DIR that cannot be written to, processes that do not know of
            each other; what the config itself raises.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing: name a file in configs/, for example configs/shapes/panoptic.yaml.")
    if not Path(args.config_file).is_file():
        raise ValueError(f"There is no config file {args.config_file}: check --config-file.")
    cfg = read_config(args.config_file, args.opts or [])
    cfg.freeze()
    check_writable(cfg.OUTPUT_DIR)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if comm.get_world_size() == 1 < started:
        raise ValueError(
            f"torchrun started {started} processes, but this detectron2 does not join them: start the script with "
            f"--num-gpus {started} instead of torchrun."
        )
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mask2former")
    return runnable_here(cfg)


def check_writable(folder: str) -> None:
    """Make the folder and a file in it, now rather than after hours."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR {folder} cannot be written to ({error.strerror}): give another one, as in OUTPUT_DIR output/x."
        ) from error


def main(args: Namespace) -> dict | None:
    with told_in_one_message():
        return run(args)


def run(args: Namespace) -> dict | None:
    """Train, or score with --eval-only; returns the scores that were checked."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        Mask2FormerCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
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
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException:  # the process has said why
        sys.exit(1)
