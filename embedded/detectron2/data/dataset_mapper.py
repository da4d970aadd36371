"""The default mapper: from a dataset dict to what a model takes."""

import copy
from typing import Any

import numpy as np
import torch

from detectron2._unsupported import refuse
from detectron2.config import CfgNode, configurable

from . import detection_utils as utils
from . import transforms as T


class DatasetMapper:
    """Reads an image with its annotations and semantic labels, augments them and makes tensors of them.

    Attributes of the same names as the arguments may be changed by subclasses.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list[T.Augmentation | T.Transform],
        image_format: str,
        use_instance_mask: bool = False,
        use_keypoint: bool = False,
        instance_mask_format: str = "polygon",
        keypoint_hflip_indices: np.ndarray | None = None,
        precomputed_proposal_topk: int | None = None,
        recompute_boxes: bool = False,
    ) -> None:
        """
        Args:
            is_train: whether annotations are used.
            augmentations: applied in this order.
            image_format: as `read_image` takes it.
            use_instance_mask: whether instances get masks.
            use_keypoint, keypoint_hflip_indices, precomputed_proposal_topk: of upstream detectron2, not supported.
            instance_mask_format: "polygon" or "bitmask".
            recompute_boxes: take boxes from the masks after augmentation: tighter than boxes that were cropped.

        Raises:
            ValueError: if boxes are to come from masks that are not used.
        """
        if use_keypoint:
            refuse("data.DatasetMapper(use_keypoint=True)")
        if precomputed_proposal_topk is not None:
            refuse("data.DatasetMapper(precomputed_proposal_topk=...)")
        if recompute_boxes and not use_instance_mask:
            raise ValueError("recompute_boxes takes boxes from masks: it needs use_instance_mask=True.")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_instance_mask = use_instance_mask
        self.use_keypoint = use_keypoint
        self.instance_mask_format = instance_mask_format
        self.keypoint_hflip_indices = keypoint_hflip_indices
        self.recompute_boxes = recompute_boxes

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        augmentations = utils.build_augmentation(cfg, is_train)
        crops = is_train and cfg.INPUT.CROP.ENABLED
        if crops:
            augmentations.insert(0, T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "use_keypoint": cfg.MODEL.KEYPOINT_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "recompute_boxes": crops and cfg.MODEL.MASK_ON,
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict, which stays as it is.

        Returns:
            A dict with `image` (C, H, W) uint8, `sem_seg` (H, W) int64 if there is a label file, in training
            `instances` if there are annotations, and what else the dataset dict holds.
        """
        dataset_dict = copy.deepcopy(dataset_dict)
        image = utils.read_image(dataset_dict["file_name"], format=self.image_format)
        utils.check_image_size(dataset_dict, image)
        sem_seg = None
        if "sem_seg_file_name" in dataset_dict:
            sem_seg = utils.read_label_map(dataset_dict.pop("sem_seg_file_name"))

        aug_input = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(aug_input)
        image = aug_input.image if aug_input.image.ndim == 3 else aug_input.image[..., None]
        # A flip leaves a view with negative strides, which torch does not take.
        dataset_dict["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype(np.int64))

        if not self.is_train:
            dataset_dict.pop("annotations", None)
        elif "annotations" in dataset_dict:
            self._transform_annotations(dataset_dict, transforms, image.shape[:2])
        return dataset_dict

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.TransformList, image_shape: tuple[int, int]
    ) -> None:
        """Replace "annotations" by "instances"; subclasses override this to use more of an annotation."""
        unused = ["keypoints"] if self.use_instance_mask else ["keypoints", "segmentation"]
        annotations = []
        for annotation in dataset_dict.pop("annotations"):
            if annotation.get("iscrowd", 0):
                continue
            used = {key: value for key, value in annotation.items() if key not in unused}
            annotations.append(utils.transform_instance_annotations(used, transforms, image_shape))

        instances = utils.annotations_to_instances(annotations, image_shape, self.instance_mask_format)
        if self.recompute_boxes and instances.has("gt_masks"):
            instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        dataset_dict["instances"] = utils.filter_empty_instances(instances)
