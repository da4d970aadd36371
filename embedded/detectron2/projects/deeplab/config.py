"""The config keys of DeepLab. Mask2Former's published configs set some of them, so they have to exist."""

from detectron2.config import CfgNode


def add_deeplab_config(cfg: CfgNode) -> None:
    """Add DeepLab's keys with their defaults; to be called before `add_maskformer2_config`."""
    # A crop is drawn again while one class fills more than this part of it; 1.0 accepts every crop.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    cfg.SOLVER.POLY_LR_POWER = 0.9
    cfg.SOLVER.POLY_LR_CONSTANT_ENDING = 0.0  # part of the base rate below which the schedule does not fall

    resnet = cfg.MODEL.RESNETS
    resnet.STEM_TYPE = "deeplab"  # or "basic"
    resnet.RES4_DILATION = 1
    resnet.RES5_MULTI_GRID = [1, 2, 4]  # factor on RES5_DILATION, block by block

    head = cfg.MODEL.SEM_SEG_HEAD
    head.ASPP_CHANNELS = 256
    head.ASPP_DILATIONS = [6, 12, 18]
    head.ASPP_DROPOUT = 0.1
    head.LOSS_TYPE = "hard_pixel_mining"
    head.PROJECT_CHANNELS = [48]
    head.PROJECT_FEATURES = ["res2"]
    head.USE_DEPTHWISE_SEPARABLE_CONV = False
