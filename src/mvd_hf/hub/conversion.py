"""Official checkpoints (MVD, MAE, VideoMAE .pth files) to MVD models, completely or not at all."""

import argparse
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..model.configuration_mvd import MVDConfig
from ..model.modeling_mvd import (
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
    MVDPreTrainedModel,
)
from ..model.patches_mvd import position_table
from ..model.video_processing_mvd import MVDVideoProcessor
from .cards import CONVERSION_NAME, CardDetails, render_card, snippet_kind
from .run_record import CARD_NAME
from .snippets import Snippet, make_snippet

# the official student calls its two teachers "img" and "vid"
TEACHER_NAMES = {"img": "image", "vid": "video"}
# attention heads by width where the official programs leave no choice: encoder, decoder of each family
ENCODER_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {
    "distillation": {384: 6, 768: 12, 512: 8, 640: 8},
    "videomae": {192: 3, 384: 6, 512: 8, 640: 8},
    "mae": {512: 16},
}

LAYER_RULES = (
    (r"\.blocks\.(\d+)\.attn\.(q_bias|v_bias|k_bias)$", r".layers.\1.attention.qkv.\2"),
    (r"\.blocks\.(\d+)\.attn\.(qkv|proj)\.", r".layers.\1.attention.\2."),
    (r"\.blocks\.(\d+)\.(norm1|norm2|mlp\.fc1|mlp\.fc2)\.", r".layers.\1.\2."),
)
ENCODER_RULES = (
    (r"^patch_embed\.proj\.", "mvd.embeddings.projection."),
    (r"^cls_token$", "mvd.embeddings.class_token"),
    (r"^blocks\.", "mvd.blocks."),
    (r"^norm\.", "mvd.layernorm."),
)
FAMILY_RULES = {
    "distillation": tuple(
        rule
        for official, name in TEACHER_NAMES.items()
        for rule in (
            (rf"^down_{official}\.", f"decoders.{name}.embed."),
            (rf"^mask_token_{official}$", f"decoders.{name}.mask_token"),
            (rf"^decoder_{official}\.", f"decoders.{name}."),
        )
    ),
    "videomae": (
        (r"^mask_token$", "decoder.mask_token"),
        (r"^encoder_to_decoder\.", "decoder.embed."),
        (r"^decoder\.", "decoder."),
    ),
    "mae": (
        (r"^mask_token$", "decoder.mask_token"),
        (r"^decoder_embed\.", "decoder.embed."),
        (r"^decoder_blocks\.", "decoder.blocks."),
        (r"^decoder_norm\.", "decoder.norm."),
        (r"^decoder_pred\.", "decoder.head."),
    ),
    "classification": ((r"^fc_norm\.", "fc_norm."), (r"^head\.", "classifier.")),
}
# fixed tables, recomputed here: official key -> decoder they belong to (None: the encoder)
POSITION_TABLES = {
    "pos_embed": None,
    "decoder_pos_embed": "decoder",
    "pos_embed_img": "decoders.image",
    "pos_embed_vid": "decoders.video",
}


# file in which DeepSpeed keeps the weights, and the one that names the newest folder
DEEPSPEED_WEIGHTS, DEEPSPEED_LATEST = "mp_rank_00_model_states.pt", "latest"

# what a card says of where the weights come from: title, arXiv number, license of the authors' weights
ORIGINS = {
    "distillation": ("Masked Video Distillation", "2212.04500", "cc-by-nc-4.0"),
    "classification": ("Masked Video Distillation", "2212.04500", "cc-by-nc-4.0"),
    "videomae": ("VideoMAE", "2203.12602", "cc-by-nc-4.0"),
    "mae": ("Masked Autoencoders Are Scalable Vision Learners", "2111.06377", "cc-by-nc-4.0"),
}


def find_weights(path: str | Path) -> Path:
    """The file with the weights: the path itself, or that in a DeepSpeed folder.

    Raises:
        ValueError: if a folder holds none, or the weights of several model-parallel processes.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / DEEPSPEED_LATEST).is_file():
        name = (path / DEEPSPEED_LATEST).read_bytes().decode("utf-8", "replace").strip()
        if not re.fullmatch(r"[\w.-]{0,200}\w", name):
            raise ValueError(f"{DEEPSPEED_LATEST!r} in {str(path)!r} does not name one of its folders: {name!r}.")
        path = path / name
    parts = sorted(path.glob("mp_rank_*_model_states.pt"))
    if [part.name for part in parts] != [DEEPSPEED_WEIGHTS]:
        found = ", ".join(part.name for part in parts) or "none"
        raise ValueError(
            f"The folder {str(path)!r} is not a DeepSpeed checkpoint of one model-parallel process: it needs "
            f"{DEEPSPEED_WEIGHTS} alone, found {found}."
        )
    return parts[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, torch.Tensor], argparse.Namespace]:
    """State dict and command-line arguments (empty if the file has none) of an official checkpoint file.

    The pickle may hold tensors, plain containers, NumPy numbers and an `argparse.Namespace`, nothing that executes.

    Raises:
        ValueError: if the file cannot be read that way, or holds no state dict.
    """
    path = find_weights(path)
    numpy_scalars = [np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.int64))]
    old_scalar = (np._core.multiarray.scalar, "numpy.core.multiarray.scalar")
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *numpy_scalars, old_scalar]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"There is no checkpoint file {str(path)!r}.") from None
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} is not a checkpoint that can be read safely (truncated, not a PyTorch file, or holding "
            f"objects other than tensors and numbers): {error}"
        ) from error
    arguments = content.get("args") if isinstance(content, Mapping) else None
    for wrapper in ("model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(
            f"{str(path)!r} holds no state dict: expected tensors by name, bare or under 'model' or 'module'."
        )
    return dict(content), arguments if isinstance(arguments, argparse.Namespace) else argparse.Namespace()


def strip_prefixes(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Family of an official state dict and its tensors with the encoder at the top level.

    Families: `distillation` (MVD student), `videomae`, `mae`, `classification` (fine-tuned MVD).

    Raises:
        ValueError: if the names belong to none of them.
    """
    state_dict = {key.removeprefix("backbone."): value for key, value in state_dict.items()}
    if any(key.startswith("encoder.blocks.") for key in state_dict):
        return "videomae", {key.removeprefix("encoder."): value for key, value in state_dict.items()}
    if "blocks.0.attn.qkv.weight" not in state_dict or "patch_embed.proj.weight" not in state_dict:
        sample = ", ".join(sorted(state_dict)[:4])
        raise ValueError(
            f"This is no MVD, MAE or VideoMAE state dict (it begins with {sample}): it has no "
            "'patch_embed.proj.weight' or no 'blocks.0.attn.qkv.weight'."
        )
    if any(key.startswith(("decoder_img.", "decoder_vid.")) for key in state_dict):
        return "distillation", state_dict
    if "blocks.0.attn.qkv.bias" in state_dict:
        return "mae", state_dict
    return "classification", state_dict


def infer_config(
    family: str, state_dict: Mapping[str, torch.Tensor], arguments: argparse.Namespace, overrides: dict
) -> MVDConfig:
    """Configuration from the shapes of a state dict; `overrides`, then `arguments`, give what shapes do not."""

    def depth(prefix: str) -> int:
        return len({key[len(prefix) :].split(".")[0] for key in state_dict if key.startswith(prefix)})

    def heads(width: int, known: dict[int, int], name: str) -> int:
        if name in overrides:
            return overrides[name]
        if width not in known:
            raise ValueError(f"The number of attention heads of a model of width {width} is not known: give {name}.")
        return known[width]

    def shape(key: str, *dimensions: int) -> tuple[int, ...]:
        if key not in state_dict:
            raise ValueError(f"The {family} checkpoint is incomplete: {key!r} is missing.")
        if state_dict[key].dim() not in dimensions:
            raise ValueError(f"{key!r} has the shape {tuple(state_dict[key].shape)}, which no {family} model has.")
        return tuple(state_dict[key].shape)

    patch = shape("patch_embed.proj.weight", 4, 5)
    tubelet_size, patch_size = (patch[2] if len(patch) == 5 else 1), patch[-1]
    width = patch[0]
    num_frames = 1 if family == "mae" else overrides.get("num_frames", getattr(arguments, "num_frames", 16))
    if num_frames % tubelet_size:
        raise ValueError(f"num_frames={num_frames} must be divisible by the checkpoint's tubelets of {tubelet_size}.")
    fields = {
        "num_channels": patch[1],
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "hidden_size": width,
        "num_hidden_layers": depth("blocks."),
        "intermediate_size": shape("blocks.0.mlp.fc1.weight", 2)[0],
        "num_attention_heads": heads(width, ENCODER_HEADS, "num_attention_heads"),
        "use_class_token": "cls_token" in state_dict,
        "key_bias": family == "mae",
        "position_embedding_type": {"videomae": "flat", "mae": "space"}.get(family, "spacetime"),
        "num_frames": num_frames,
        "image_size": getattr(arguments, "input_size", 224),
    }
    if "pos_embed" in state_dict:
        per_time = (shape("pos_embed", 3)[1] - (family == "mae")) // (num_frames // tubelet_size)
        fields["image_size"] = math.isqrt(per_time) * patch_size
    decoder = {
        "distillation": ("decoder_img.blocks.", "mask_token_img"),
        "videomae": ("decoder.blocks.", "mask_token"),
        "mae": ("decoder_blocks.", "mask_token"),
    }.get(family)
    if decoder is not None and decoder[1] in state_dict:
        decoder_width = shape(decoder[1], 3)[-1]
        fields |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": depth(decoder[0]),
            "decoder_intermediate_size": shape(f"{decoder[0]}0.mlp.fc1.weight", 2)[0],
            "decoder_num_attention_heads": heads(decoder_width, DECODER_HEADS[family], "decoder_num_attention_heads"),
            "decoder_embed_bias": family != "videomae",
        }
    if family == "distillation":
        fields["teacher_dims"] = {
            name: shape(f"decoder_{official}.head.weight", 2)[0] for official, name in TEACHER_NAMES.items()
        }
    elif family == "mae":
        fields |= {"pixel_target": "mae", "mask_ratio": 0.75, "mask_type": "random"}
    elif family == "classification":
        fields["use_mean_pooling"] = "fc_norm.weight" in state_dict
        if "head.weight" in state_dict:
            fields["num_labels"] = shape("head.weight", 2)[0]
    return MVDConfig(**(fields | overrides))


def rename_weights(family: str, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official tensors under our names, as float32; position tables are left out (see `check_position_tables`).

    Raises:
        ValueError: if a name is not known.
    """
    renamed, unknown = {}, []
    for key, value in state_dict.items():
        if key in POSITION_TABLES:
            continue
        name = key
        for pattern, replacement in (*FAMILY_RULES[family], *ENCODER_RULES):
            name, hits = re.subn(pattern, replacement, name)
            if hits:
                break
        else:
            unknown.append(key)
            continue
        if name.endswith(".attn.qkv.bias"):
            for bias, part in zip(("q_bias", "k_bias", "v_bias"), value.chunk(3), strict=True):
                block = (
                    name.removesuffix(".qkv.bias").replace(".blocks.", ".layers.").replace(".attn", ".attention.qkv")
                )
                renamed[f"{block}.{bias}"] = part.float().contiguous()
            continue
        for pattern, replacement in LAYER_RULES:
            name = re.sub(pattern, replacement, name)
        if name == "mvd.embeddings.projection.weight" and value.dim() == 4:
            value = value.unsqueeze(2)
        renamed[name] = value.float().contiguous()
    if unknown:
        raise ValueError(f"Unknown weights in a {family} checkpoint: {', '.join(unknown)}. Nothing was converted.")
    return renamed


def check_position_tables(state_dict: Mapping[str, torch.Tensor], config: MVDConfig):
    """Raise ValueError if a stored position table is not the fixed one that our models recompute."""
    for key, decoder in POSITION_TABLES.items():
        if key not in state_dict:
            continue
        width = config.hidden_size if decoder is None else config.decoder_hidden_size
        expected = position_table(config.position_embedding_type, config.grid, width)
        stored = state_dict[key].float().flatten(0, 1) if state_dict[key].dim() == 3 else state_dict[key]
        if config.position_embedding_type == "space" and stored.shape[0] == expected.shape[0] + 1:
            stored = stored[1:]
        if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-4):
            raise ValueError(
                f"{key} {tuple(stored.shape)} is not the fixed {config.position_embedding_type!r} table "
                f"{tuple(expected.shape)} of a {config.grid} grid: a learned table, or another geometry."
            )


def convert_checkpoint(source: str | Path | Mapping[str, torch.Tensor], **overrides) -> MVDPreTrainedModel:
    """The MVD model that an official checkpoint holds, in float32 and evaluation mode.

    Args:
        source: a .pth file, a DeepSpeed folder, or a state dict with the official names: an MVD student (gives
            `MVDForFeatureDistillation`, its teachers named `image` and `video`), a fine-tuned MVD classifier
            (`MVDForVideoClassification`), MAE or VideoMAE (`MVDForPixelReconstruction`, or `MVDModel` where the file
            has the encoder only).
        overrides: `MVDConfig` fields that shapes do not tell (`num_attention_heads` of an unusual width,
            `image_size`, `num_frames`) or that shall differ. A fine-tuned VideoMAE classifier has the names of a
            fine-tuned MVD: say `position_embedding_type="flat"`.

    Raises:
        ValueError: if the source is not such a checkpoint, or if any weight is left over or missing; it says which.
    """
    MVDConfig.check_fields(overrides)
    if isinstance(source, Mapping):
        state_dict, arguments = dict(source), argparse.Namespace()
    else:
        state_dict, arguments = read_checkpoint(source)
    family, state_dict = strip_prefixes(state_dict)
    config = infer_config(family, state_dict, arguments, overrides)
    check_position_tables(state_dict, config)
    weights = rename_weights(family, state_dict)
    has_head = any(not key.startswith("mvd.") for key in weights)
    if not has_head:
        model = MVDModel(config, add_final_norm="mvd.layernorm.weight" in weights)
        weights = {key.removeprefix("mvd."): value for key, value in weights.items()}
    elif family == "distillation":
        model = MVDForFeatureDistillation(config)
    elif family == "classification":
        model = MVDForVideoClassification(config)
    else:
        model = MVDForPixelReconstruction(config)
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys())
    misshapen = [
        f"{key} {tuple(weights[key].shape)} for {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key].shape
    ]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"The checkpoint is not a complete {type(model).__name__}: missing {missing or 'nothing'}, left over "
            f"{unexpected or 'nothing'}, of another shape {misshapen or 'nothing'}."
        )
    model.load_state_dict(weights)
    return model.eval()


# transformers' VideoMAE names to ours, after the attention's three products are joined
VIDEOMAE_RULES = (
    (r"^videomae\.embeddings\.patch_embeddings\.projection\.", "mvd.embeddings.projection."),
    (r"^videomae\.encoder\.layer\.", "mvd.layers."),
    (r"^videomae\.layernorm\.", "mvd.layernorm."),
    (r"^encoder_to_decoder\.", "decoder.embed."),
    (r"^mask_token$", "decoder.mask_token"),
    (r"^decoder\.decoder_layers\.", "decoder.layers."),
    (r"\.attention\.output\.dense\.", ".attention.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
)


def videomae_config(config: PreTrainedConfig, mean: float | tuple, std: float | tuple) -> MVDConfig:
    """The configuration of one of transformers' VideoMAE models as ours; the pixels' mean and std are its processor's.

    Layer norms get VideoMAE's epsilon of 1e-6, whatever the configuration has by default.
    """
    same = (
        "image_size patch_size num_channels num_frames tubelet_size hidden_size num_hidden_layers num_attention_heads "
        "intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob initializer_range id2label "
        "label2id decoder_hidden_size decoder_num_hidden_layers decoder_num_attention_heads decoder_intermediate_size"
    )
    fields = {name: getattr(config, name) for name in same.split()}
    return MVDConfig(
        **fields,
        position_embedding_type="flat",
        decoder_embed_bias=False,
        norm_pix_loss=config.norm_pix_loss,
        use_mean_pooling=config.use_mean_pooling,
        image_mean=mean if isinstance(mean, float) else list(mean),
        image_std=std if isinstance(std, float) else list(std),
    )


def videomae_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights of one of transformers' VideoMAE models under our names.

    The keys' biases that old versions of transformers have are left out: they change no softmax.
    """
    state, weights = model.state_dict(), {}
    for name, value in state.items():
        layer, attention, part = name.partition(".attention.attention.")
        if part == "query.weight":
            products = [state[f"{layer}{attention}{product}.weight"] for product in ("query", "key", "value")]
            weights[f"{layer}.attention.qkv.weight"] = torch.cat(products)
        elif part in ("query.bias", "value.bias"):
            weights[f"{layer}.attention.qkv.{part[0]}_bias"] = value
        elif not part:
            weights[name] = value
    for pattern, replacement in VIDEOMAE_RULES:
        weights = {re.sub(pattern, replacement, name): value for name, value in weights.items()}
    return weights


def family_of(model: MVDPreTrainedModel) -> str:
    """The official program that a converted model comes from, a key of `ORIGINS`."""
    if isinstance(model, MVDForVideoClassification):
        return "classification"
    if isinstance(model, MVDForFeatureDistillation):
        return "distillation"
    return {"space": "mae", "flat": "videomae"}.get(model.config.position_embedding_type, "distillation")


def describe_conversion(model: MVDPreTrainedModel, source: str | Path) -> dict[str, str]:
    """Where converted weights come from, for their card: the paper, the authors' file and its digest."""
    title, arxiv, _ = ORIGINS[family_of(model)]
    source = find_weights(source)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return {"title": title, "arxiv": arxiv, "file": source.name, "sha256": digest}


@torch.no_grad()
def save_converted(
    model: MVDPreTrainedModel, source: str | Path, output: str | Path, license_name: str | None = None
) -> None:
    """Write a converted model to a folder: safetensors, configuration, video processor and card; then check it.

    The folder is loaded again: it must hold the same weights, bit by bit, and give the same outputs for a random clip.

    Args:
        model: from [`convert_checkpoint`].
        source: the file it was converted from.
        output: the folder.
        license_name: of the weights, as the Hub writes it; by default that of the authors' released weights.

    Raises:
        ValueError: if what was written does not give what was converted.
    """
    output = Path(output)
    model.save_pretrained(output)
    MVDVideoProcessor.for_model(model.config).save_pretrained(output)
    text = json.dumps(describe_conversion(model, source), indent=2) + "\n"
    (output / CONVERSION_NAME).write_text(text, encoding="utf-8")
    details = CardDetails(license=ORIGINS[family_of(model)][2] if license_name is None else license_name)
    snippet = make_snippet(str(output), snippet_kind(output), with_code=False)
    render_card(output, output.name, details, Snippet(snippet)).save(output / CARD_NAME)
    options = {"add_final_norm": model.layernorm is not None} if isinstance(model, MVDModel) else {}
    loaded = type(model).from_pretrained(output, **options)
    config = model.config
    generator = torch.Generator().manual_seed(0)
    shape = (1, config.num_frames, config.num_channels, *config.frame_size)
    inputs = {"pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)}
    if isinstance(model, MVDForFeatureDistillation | MVDForPixelReconstruction):
        order = torch.rand(config.num_patches, generator=generator).argsort()
        inputs["bool_masked_pos"] = (order < config.num_masked_patches)[None]
    weights = loaded.state_dict()
    wrong = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    outputs = loaded(**inputs)
    for name, value in model(**inputs).items():
        parts = value if isinstance(value, Mapping) else {name: value}
        others = outputs[name] if isinstance(value, Mapping) else {name: outputs[name]}
        # memory is aligned otherwise, which moves the last bits
        wrong += [part for part in parts if not torch.allclose(parts[part], others[part], rtol=1e-4, atol=1e-5)]
    if wrong:
        raise ValueError(f"The folder {str(output)!r} does not give what was converted: {', '.join(wrong)}.")
