"""Names of weights in Hugging Face's Mask2Former and MaskFormer, and in detectron2's: one table, read both ways.

The names are those in the files of `save_pretrained`; some versions of transformers use others in memory.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]

_HEAD, _PREDICTOR = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
_LEVELS, _ENCODER = "model.pixel_level_module.decoder", "model.pixel_level_module.encoder"
_QUERIES = "model.transformer_module"
# No feature passes through it; transformers warns where it is missing.
_UNUSED = r"model\.pixel_level_module\.encoder\.(swin\.|model\.)?layernorm\.(weight|bias)"
QKV = ("q_proj", "k_proj", "v_proj")


def _regex(name: str) -> str:
    statistics = "weight|bias|running_mean|running_var|num_batches_tracked"
    return re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", f"({statistics})")


@dataclass(frozen=True)
class Rule:
    """One name here, one or several there; `#` is a number, `*` weight, bias or a statistic.

    Several names there are the parts of one tensor here, stacked along the first axis.
    """

    ours: str
    theirs: tuple[str, ...]
    patterns: tuple[re.Pattern, ...] = field(init=False)

    def __post_init__(self) -> None:
        compiled = tuple(re.compile(_regex(name)) for name in (self.ours, *self.theirs))
        object.__setattr__(self, "patterns", compiled)


def rules(weights: Weights) -> list[Rule]:
    """The table for these weights, in either naming.

    Raises:
        ValueError: they are not of a Mask2Former or MaskFormer.
    """
    names = set(weights)
    table = [*_CLASSES]
    if {f"{_PREDICTOR}.query_feat.weight", f"{_QUERIES}.queries_features.weight"} & names:
        table += _mask2former()
    elif {f"{_PREDICTOR}.query_embed.weight", f"{_QUERIES}.queries_embedder.weight"} & names:
        table += _maskformer()
    else:
        raise ValueError("These are not weights of a Mask2Former or MaskFormer: there are no queries among them.")
    if any("patch_embed" in name for name in names):
        # MaskFormer has its own Swin over there, with other prefixes.
        own = f"{_QUERIES}.queries_features.weight" not in names and f"{_PREDICTOR}.query_feat.weight" not in names
        return table + _swin(f"{_ENCODER}.model", "#" if own else "stage#", own)
    return table + _resnet()


def to_detectron2(weights: Weights) -> Weights:
    """Hugging Face's names to detectron2's; a name that is not in the table stays.

    Raises:
        ValueError: a part of a tensor is missing.
    """
    weights = {_name_in_files(name): value for name, value in weights.items()}
    weights = {name: value for name, value in weights.items() if not re.fullmatch(_UNUSED, name)}
    table = rules(weights)
    found: Weights = OrderedDict()
    parts: dict[str, list[Tensor | None]] = {}
    for name, value in weights.items():
        for rule in table:
            part = next((i for i, pattern in enumerate(rule.patterns[1:]) if pattern.fullmatch(name)), None)
            if part is not None:
                ours = _fill(rule.ours, rule.patterns[1 + part].fullmatch(name))
                parts.setdefault(ours, [None] * len(rule.theirs))[part] = value
                break
        else:
            found[name] = value
    for name, tensors in parts.items():
        present = [tensor for tensor in tensors if tensor is not None]
        if len(present) < len(tensors):
            raise ValueError(f"The file has only {len(present)} of the {len(tensors)} parts of {name}: it is damaged.")
        found[name] = present[0] if len(present) == 1 else torch.cat(present)
    _add_position_indices(found)
    return found


def to_huggingface(weights: Weights) -> Weights:
    """detectron2's names to Hugging Face's.

    Raises:
        ValueError: a weight has no place there.
    """
    table = rules(weights)
    renamed: Weights = {}
    for name, value in weights.items():
        match, rule = next(((m, r) for r in table if (m := r.patterns[0].fullmatch(name))), (None, None))
        if match is None and name.endswith(".relative_position_index"):
            continue
        if match is None or rule is None:
            raise ValueError(
                f"{name} has no place in Hugging Face's model: it has only GroupNorm in the pixel decoder, a Swin or "
                "plain ResNet backbone with all four stages, and the standard decoders."
            )
        # Their own memory each: the format stores no views.
        pieces = [value] if len(rule.theirs) == 1 else value.chunk(len(rule.theirs))
        for theirs, piece in zip(rule.theirs, pieces, strict=True):
            renamed[_fill(theirs, match)] = piece.contiguous().clone()
    last = renamed.get(f"{_ENCODER}.hidden_states_norms.stage4.weight")
    if last is not None:
        renamed[f"{_ENCODER}.swin.layernorm.weight"] = torch.ones_like(last)
        renamed[f"{_ENCODER}.swin.layernorm.bias"] = torch.zeros_like(last)
    for name in [name for name in renamed if name.endswith("normalization.running_var")]:
        # Counted there, not by a frozen normalisation here.
        renamed.setdefault(name.replace("running_var", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    return renamed


def position_index(window: int) -> Tensor:
    """Row of the position-bias table for each pair of pixels of a window; (w*w, w*w) int64."""
    at = torch.arange(window)
    y, x = at.repeat_interleave(window), at.repeat(window)
    return (y[:, None] - y + window - 1) * (2 * window - 1) + x[:, None] - x + window - 1


def _add_position_indices(weights: Weights) -> None:
    for name in [name for name in weights if name.endswith(".relative_position_bias_table")]:
        side = round(weights[name].shape[0] ** 0.5)  # 2 w - 1
        weights[name.replace("bias_table", "index")] = position_index((side + 1) // 2)


def _rule(ours: str, *theirs: str) -> Rule:
    return Rule(ours, theirs)


_CLASSES = [
    _rule("criterion.empty_weight", "criterion.empty_weight"),
    _rule(f"{_PREDICTOR}.class_embed.*", "class_predictor.*"),
    _rule(f"{_HEAD}.mask_features.*", f"{_LEVELS}.mask_projection.*"),
    _rule(f"{_PREDICTOR}.query_embed.weight", f"{_QUERIES}.queries_embedder.weight"),
]


def _mask2former() -> list[Rule]:
    encoder, their_encoder = f"{_HEAD}.transformer.encoder.layers.#", f"{_LEVELS}.encoder.layers.#"
    decoder, theirs = _PREDICTOR, f"{_QUERIES}.decoder.layers.#"
    own, cross = f"{decoder}.transformer_self_attention_layers.#", f"{decoder}.transformer_cross_attention_layers.#"
    forward = f"{decoder}.transformer_ffn_layers.#"
    return [
        _rule(f"{_HEAD}.input_proj.#.#.*", f"{_LEVELS}.input_projections.#.#.*"),
        _rule(f"{_HEAD}.transformer.level_embed", f"{_LEVELS}.level_embed"),
        *(
            _rule(f"{encoder}.self_attn.{name}.*", f"{their_encoder}.self_attn.{name}.*")
            for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
        ),
        _rule(f"{encoder}.norm1.*", f"{their_encoder}.self_attn_layer_norm.*"),
        _rule(f"{encoder}.norm2.*", f"{their_encoder}.final_layer_norm.*"),
        _rule(f"{encoder}.linear1.*", f"{their_encoder}.fc1.*"),
        _rule(f"{encoder}.linear2.*", f"{their_encoder}.fc2.*"),
        *(
            rule
            for name in ("adapter_1", "layer_1")
            for rule in (
                _rule(f"{_HEAD}.{name}.weight", f"{_LEVELS}.{name}.0.weight"),
                _rule(f"{_HEAD}.{name}.norm.*", f"{_LEVELS}.{name}.1.*"),
            )
        ),
        _rule(f"{decoder}.query_feat.weight", f"{_QUERIES}.queries_features.weight"),
        _rule(f"{decoder}.level_embed.weight", f"{_QUERIES}.level_embed.weight"),
        _rule(f"{decoder}.input_proj.#.*", f"{_QUERIES}.input_projections.#.*"),
        _rule(f"{decoder}.decoder_norm.*", f"{_QUERIES}.decoder.layernorm.*"),
        _rule(f"{decoder}.mask_embed.layers.#.*", f"{_QUERIES}.decoder.mask_predictor.mask_embedder.#.0.*"),
        _rule(f"{own}.self_attn.in_proj_*", *(f"{theirs}.self_attn.{part}.*" for part in QKV)),
        _rule(f"{own}.self_attn.out_proj.*", f"{theirs}.self_attn.out_proj.*"),
        _rule(f"{own}.norm.*", f"{theirs}.self_attn_layer_norm.*"),
        _rule(f"{cross}.multihead_attn.in_proj_*", f"{theirs}.cross_attn.in_proj_*"),
        _rule(f"{cross}.multihead_attn.out_proj.*", f"{theirs}.cross_attn.out_proj.*"),
        _rule(f"{cross}.norm.*", f"{theirs}.cross_attn_layer_norm.*"),
        _rule(f"{forward}.linear1.*", f"{theirs}.fc1.*"),
        _rule(f"{forward}.linear2.*", f"{theirs}.fc2.*"),
        _rule(f"{forward}.norm.*", f"{theirs}.final_layer_norm.*"),
    ]


def _maskformer() -> list[Rule]:
    ours, theirs = f"{_PREDICTOR}.transformer.decoder.layers.#", f"{_QUERIES}.decoder.layers.#"
    pyramid = [(f"{_HEAD}.layer_4", f"{_LEVELS}.fpn.stem")]
    for number in (1, 2, 3):  # counted from the finest here, from the coarsest there
        pyramid += [(f"{_HEAD}.adapter_{number}", f"{_LEVELS}.fpn.layers.{3 - number}.proj")]
        pyramid += [(f"{_HEAD}.layer_{number}", f"{_LEVELS}.fpn.layers.{3 - number}.block")]
    table = [
        _rule(f"{_PREDICTOR}.input_proj.*", f"{_QUERIES}.input_projection.*"),
        _rule(f"{_PREDICTOR}.mask_embed.layers.#.*", "mask_embedder.#.0.*"),
        _rule(f"{_PREDICTOR}.transformer.decoder.norm.*", f"{_QUERIES}.decoder.layernorm.*"),
        _rule(f"{ours}.linear1.*", f"{theirs}.fc1.*"),
        _rule(f"{ours}.linear2.*", f"{theirs}.fc2.*"),
    ]
    for conv, their_conv in pyramid:
        table += [_rule(f"{conv}.weight", f"{their_conv}.0.weight"), _rule(f"{conv}.norm.*", f"{their_conv}.1.*")]
    for name, their_name in (("self_attn", "self_attn"), ("multihead_attn", "encoder_attn")):
        table += [_rule(f"{ours}.{name}.in_proj_*", *(f"{theirs}.{their_name}.{part}.*" for part in QKV))]
        table += [_rule(f"{ours}.{name}.out_proj.*", f"{theirs}.{their_name}.out_proj.*")]
    norms = ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm")
    return table + [_rule(f"{ours}.norm{i}.*", f"{theirs}.{name}.*") for i, name in enumerate(norms, start=1)]


def _swin(prefix: str, stage: str, own: bool) -> list[Rule]:
    root = prefix if own else prefix.removesuffix(".model")
    ours, theirs = "backbone.layers.#.blocks.#", f"{root}.encoder.layers.#.blocks.#"
    number = lambda i: stage.replace("#", str(i if own else i + 1))
    index = _rule(f"{ours}.attn.relative_position_index", f"{theirs}.attention.self.relative_position_index")
    return [
        *([index] if own else []),  # the other one computes it
        _rule("backbone.patch_embed.proj.*", f"{root}.embeddings.patch_embeddings.projection.*"),
        _rule("backbone.patch_embed.norm.*", f"{root}.embeddings.norm.*"),
        *(_rule(f"backbone.norm{i}.*", f"{_ENCODER}.hidden_states_norms.{number(i)}.*") for i in range(4)),
        _rule("backbone.layers.#.downsample.norm.*", f"{root}.encoder.layers.#.downsample.norm.*"),
        _rule("backbone.layers.#.downsample.reduction.*", f"{root}.encoder.layers.#.downsample.reduction.*"),
        _rule(f"{ours}.norm1.*", f"{theirs}.layernorm_before.*"),
        _rule(f"{ours}.norm2.*", f"{theirs}.layernorm_after.*"),
        _rule(f"{ours}.attn.relative_position_bias_table", f"{theirs}.attention.self.relative_position_bias_table"),
        _rule(f"{ours}.attn.qkv.*", *(f"{theirs}.attention.self.{part}.*" for part in ("query", "key", "value"))),
        _rule(f"{ours}.attn.proj.*", f"{theirs}.attention.output.dense.*"),
        _rule(f"{ours}.mlp.fc1.*", f"{theirs}.intermediate.dense.*"),
        _rule(f"{ours}.mlp.fc2.*", f"{theirs}.output.dense.*"),
    ]


def _resnet() -> list[Rule]:
    convs = [("backbone.stem.conv1", f"{_ENCODER}.embedder.embedder")]
    for stage in range(4):
        ours, theirs = f"backbone.res{stage + 2}.#", f"{_ENCODER}.encoder.stages.{stage}.layers.#"
        convs += [(f"{ours}.conv{i + 1}", f"{theirs}.layer.{i}") for i in range(3)]
        convs += [(f"{ours}.shortcut", f"{theirs}.shortcut")]
    return [
        rule
        for ours, theirs in convs
        for rule in (
            _rule(f"{ours}.weight", f"{theirs}.convolution.weight"),
            _rule(f"{ours}.norm.*", f"{theirs}.normalization.*"),
        )
    ]


# In memory, transformers 5 has other names than in its files.
_IN_MEMORY = [
    (r"(pixel_level_module\.encoder\.)swin\.", r"\1"),
    (r"(blocks\.\d+\.attention\.)q_proj\.", r"\1self.query."),
    (r"(blocks\.\d+\.attention\.)k_proj\.", r"\1self.key."),
    (r"(blocks\.\d+\.attention\.)v_proj\.", r"\1self.value."),
    (r"(blocks\.\d+\.attention\.)o_proj\.", r"\1output.dense."),
    (r"(blocks\.\d+\.attention\.)relative_position_bias\.", r"\1self."),
    (r"(blocks\.\d+\.)mlp\.fc1\.", r"\1intermediate.dense."),
    (r"(blocks\.\d+\.)mlp\.fc2\.", r"\1output.dense."),
    (r"(transformer_module\.decoder\.layers\.\d+\.\w+\.)o_proj\.", r"\1out_proj."),
    (r"(transformer_module\.decoder\.layers\.\d+\.)mlp\.(fc\d)\.", r"\1\2."),
]


def _name_in_files(name: str) -> str:
    for pattern, replacement in _IN_MEMORY:
        name = re.sub(pattern, replacement, name)
    return name


def _fill(name: str, match: re.Match | None) -> str:
    assert match is not None
    for group in match.groups():
        name = re.sub(r"[#*]", group, name, count=1)
    return name
