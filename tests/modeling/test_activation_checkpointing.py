"""Computing activations again changes nothing: losses, gradients and running statistics, to the bit."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import tiny_config

KEY = "MODEL.MASK_FORMER.ACTIVATION_CHECKPOINTING"
SWIN = [
    "MODEL.BACKBONE.NAME", "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM", "8",
    "MODEL.SWIN.DEPTHS", "[1, 2, 1, 1]",
    "MODEL.SWIN.NUM_HEADS", "[1, 2, 2, 2]",
]  # fmt: skip
FPN = [
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "TransformerEncoderPixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "StandardTransformerDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "transformer_encoder",
]  # fmt: skip
DROPOUT = ["MODEL.MASK_FORMER.DROPOUT", "0.5"]


def _batch():
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 8:30, 8:30] = masks[1, 40:, 20:] = True
    return [
        {
            "image": torch.randint(256, (3, 64, 64), generator=generator, dtype=torch.uint8),
            "instances": Instances((64, 64), gt_classes=torch.tensor([0, 2]), gt_masks=masks),
        }
        for _ in range(2)
    ]


def _train_step(model, half=False):
    """Losses, gradients and buffers after one step."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        losses = model(_batch())
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": losses, "gradients": gradients, "buffers": dict(model.named_buffers())}


def _model(tmp_path, *options):
    torch.manual_seed(0)
    return build_model(tiny_config(tmp_path, *options)).train()


def _count_runs(model):
    runs = []
    inside = model.sem_seg_head.pixel_decoder.transformer.encoder.layers[0].norm1
    inside.register_forward_hook(lambda *args: runs.append(1))
    return runs


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("options", [[], DROPOUT, SWIN, FPN + DROPOUT], ids=["resnet", "dropout", "swin", "fpn"])
def test_losses_gradients_and_statistics_are_the_same_bits(tmp_path, options, half):
    plain = _train_step(_model(tmp_path, *options), half)
    again = _train_step(_model(tmp_path, *options, KEY, "True"), half)
    for part, values in plain.items():
        assert values.keys() == again[part].keys()
        different = [name for name in values if not torch.equal(values[name], again[part][name])]
        assert not different, (part, different)


def test_activations_are_computed_twice_in_training_and_once_in_evaluation(tmp_path):
    model = _model(tmp_path, KEY, "True")
    runs = _count_runs(model)
    _train_step(model)
    assert len(runs) == 2
    with torch.no_grad():
        model.eval()(_batch())
    assert len(runs) == 3


def test_blocks_keep_their_inputs_alone(tmp_path):
    def kept(model):
        """Bytes kept for the backward pass outside of checkpointed blocks."""
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = model.backbone(torch.rand(1, 3, 64, 64))
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        assert features
        return sum(size for pointer, size in storages.items() if pointer not in parameters)

    assert kept(_model(tmp_path, KEY, "True")) < 0.5 * kept(_model(tmp_path))


def test_a_copy_computes_with_its_own_weights(tmp_path):
    model = _model(tmp_path, KEY, "True")
    twin = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    before = _train_step(_model(tmp_path))["losses"]
    assert all(torch.equal(loss, before[name]) for name, loss in _train_step(twin)["losses"].items())
