"""Every configuration key that Mask2Former adds to detectron2's, with its default and what it does."""

from typing import Any

from detectron2.config import CfgNode

# Dotted key, default, meaning. The defaults are the published ones; the configs in `configs/` set the paper's values.
_PUBLISHED: list[tuple[str, Any]] = [
    # How training samples are made: mask_former_{semantic,instance,panoptic} or coco_{instance,panoptic}_lsj.
    ("INPUT.DATASET_MAPPER_NAME", "mask_former_semantic"),
    # Colour augmentation of the SSD paper in the mask_former_* mappers.
    ("INPUT.COLOR_AUG_SSD", False),
    # A random crop is redrawn while one class fills more than this share of it (1.0: never).
    ("INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", 1.0),
    # The mask_former_* mappers pad (or cut) each sample to exactly this size in pixels; -1 leaves it.
    ("INPUT.SIZE_DIVISIBILITY", -1),
    # Large-scale jitter: crop size in pixels, and the range of the random scale relative to it.
    ("INPUT.IMAGE_SIZE", 1024),
    ("INPUT.MIN_SCALE", 0.1),
    ("INPUT.MAX_SCALE", 2.0),
    # "ADAMW" or "SGD".
    ("SOLVER.OPTIMIZER", "ADAMW"),
    # Learning rate of the backbone, relative to the rest.
    ("SOLVER.BACKBONE_MULTIPLIER", 0.1),
    # Weight decay of embeddings (queries, levels).
    ("SOLVER.WEIGHT_DECAY_EMBED", 0.0),
    # A loss after every decoder layer and before the first, not only after the last.
    ("MODEL.MASK_FORMER.DEEP_SUPERVISION", True),
    # Weight of the class "no object" in the class loss.
    ("MODEL.MASK_FORMER.NO_OBJECT_WEIGHT", 0.1),
    # Weights of the three losses, and of the three matching costs.
    ("MODEL.MASK_FORMER.CLASS_WEIGHT", 1.0),
    ("MODEL.MASK_FORMER.DICE_WEIGHT", 1.0),
    ("MODEL.MASK_FORMER.MASK_WEIGHT", 20.0),
    # Attention heads, here and in the pixel decoder's encoder.
    ("MODEL.MASK_FORMER.NHEADS", 8),
    # Dropout of StandardTransformerDecoder and TransformerEncoderPixelDecoder; the multi-scale decoder has none.
    ("MODEL.MASK_FORMER.DROPOUT", 0.1),
    # Width of the feed-forward blocks of the decoder.
    ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 2048),
    # Encoder layers inside StandardTransformerDecoder.
    ("MODEL.MASK_FORMER.ENC_LAYERS", 0),
    # Predictions of the multi-scale decoder: its layers plus one before the first. Layers of the standard one.
    ("MODEL.MASK_FORMER.DEC_LAYERS", 6),
    # Normalise before each block, not after it.
    ("MODEL.MASK_FORMER.PRE_NORM", False),
    # Width of the queries.
    ("MODEL.MASK_FORMER.HIDDEN_DIM", 256),
    # Queries: the most segments an image can have.
    ("MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 100),
    # What the decoder attends to: "multi_scale_pixel_decoder", "transformer_encoder", "pixel_embedding", or a
    # feature of the backbone.
    ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5"),
    # Project the decoder's input even where the widths agree.
    ("MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ", False),
    # Images are padded to a multiple of this; below 0, of what the backbone asks for.
    ("MODEL.MASK_FORMER.SIZE_DIVISIBILITY", 32),
    # "MultiScaleMaskedTransformerDecoder" (Mask2Former) or "StandardTransformerDecoder" (MaskFormer).
    ("MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"),
    # Points at which masks are compared, in matching and in the losses.
    ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 12544),
    # For the losses: candidates drawn per point, and the share of points taken as the most uncertain of them.
    ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 3.0),
    ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 0.75),
    # Which results inference returns.
    ("MODEL.MASK_FORMER.TEST.SEMANTIC_ON", True),
    ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", False),
    ("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", False),
    # Panoptic: a query below this score is dropped.
    ("MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", 0.0),
    # Panoptic: a segment that keeps less than this share of its mask is dropped.
    ("MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD", 0.0),
    # Semantic: resize masks to the output size before classes are combined, not after. Always so when instance or
    # panoptic results are on.
    ("MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE", False),
    # Width of the mask features and mask embeddings.
    ("MODEL.SEM_SEG_HEAD.MASK_DIM", 256),
    # Encoder layers of the pixel decoder.
    ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 0),
    # "MSDeformAttnPixelDecoder", "BasePixelDecoder" or "TransformerEncoderPixelDecoder".
    ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder"),
    # Features that go through the deformable-attention encoder.
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES", ["res3", "res4", "res5"]),
    # Part of every published config, but without effect there and here: 4 points, MASK_FORMER.NHEADS heads.
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS", 4),
    ("MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS", 8),
    # Swin: side of the images it was pretrained on (for absolute positions), patch side, width of the first stage.
    ("MODEL.SWIN.PRETRAIN_IMG_SIZE", 224),
    ("MODEL.SWIN.PATCH_SIZE", 4),
    ("MODEL.SWIN.EMBED_DIM", 96),
    # Swin, per stage: blocks and heads; then the window's side.
    ("MODEL.SWIN.DEPTHS", [2, 2, 6, 2]),
    ("MODEL.SWIN.NUM_HEADS", [3, 6, 12, 24]),
    ("MODEL.SWIN.WINDOW_SIZE", 7),
    # Swin: feed-forward width relative to the block's, bias of the projections, scale of queries (None: 1/sqrt(d)).
    ("MODEL.SWIN.MLP_RATIO", 4.0),
    ("MODEL.SWIN.QKV_BIAS", True),
    ("MODEL.SWIN.QK_SCALE", None),
    # Swin: dropout of features, of attention, and of whole residual branches (rising with depth to this value).
    ("MODEL.SWIN.DROP_RATE", 0.0),
    ("MODEL.SWIN.ATTN_DROP_RATE", 0.0),
    ("MODEL.SWIN.DROP_PATH_RATE", 0.3),
    # Swin: absolute positions, a norm after the patch embedding.
    ("MODEL.SWIN.APE", False),
    ("MODEL.SWIN.PATCH_NORM", True),
    # Swin: which stages are returned; activation checkpoints (less memory, more time).
    ("MODEL.SWIN.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
    ("MODEL.SWIN.USE_CHECKPOINT", False),
]

# Keys of this project alone; their defaults change no published number of a single image.
_OWN: list[tuple[str, Any]] = [
    # False: a batch is run in groups of images of one padded size, so an image scores the same alone and in any
    # batch. True: all are padded to the largest, as published.
    ("MODEL.MASK_FORMER.TEST.PAD_TO_LARGEST", False),
    # "sem_seg" is an (H, W) int64 map of the best class, not K score maps: a fraction of the memory.
    ("MODEL.MASK_FORMER.TEST.SEMANTIC_LABEL_MAP", False),
    # "float32", or matrix products and convolutions of inference in "bfloat16", about 1.5 times as fast where the
    # processor has such instructions, or in "float16", for GPUs.
    ("MODEL.MASK_FORMER.TEST.PRECISION", "float32"),
    # Training keeps the inputs of the backbone's blocks and the pixel decoder's encoder layers alone, and computes the
    # rest again in the backward pass: less memory, more time, the same numbers.
    ("MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING", False),
]


def add_maskformer2_config(cfg: CfgNode) -> None:
    """Add Mask2Former's keys and defaults to a detectron2 config, in place.

    `add_deeplab_config` may have run before or run later; the one key both add has the same default.
    """
    for name, default in _PUBLISHED + _OWN:
        *path, leaf = name.split(".")
        node = cfg
        for part in path:
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        node[leaf] = list(default) if isinstance(default, list) else default
