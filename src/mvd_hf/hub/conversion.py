"""Conversion of official MVD, MAE and VideoMAE checkpoints (.pth files): of all weights, or of none."""

import argparse
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path, PosixPath, PureWindowsPath

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from ..model.configuration_mvd import MVDConfig
from ..model.loading_mvd import listed
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
# attention heads by width in the official code: of the encoder, and of the decoder of each family
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
# fixed tables, which our models compute: official key -> module (None: the encoder)
POSITION_TABLES = {
    "pos_embed": None,
    "decoder_pos_embed": "decoder",
    "pos_embed_img": "decoders.image",
    "pos_embed_vid": "decoders.video",
}

# keys of a file that hold the state dict, in order of preference
STATE_DICT_KEYS = ("model", "module", "state_dict")
# modules that torch.compile, DDP, FSDP and activation checkpointing put around others
WRAPPERS = re.compile(r"\b(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
PATCHES = "patch_embed.proj.weight"

# classes that the arguments in a file may have, with the names under which some versions store them
NUMPY_CLASSES = (
    *(np._core.multiarray.scalar, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.int64))),
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
)
PATH_CLASSES = tuple(
    (kind, f"{module}.{name}")
    for kind, name in ((PosixPath, "PosixPath"), (PureWindowsPath, "WindowsPath"))
    for module in ("pathlib", "pathlib._local")
)

# DeepSpeed's file of weights, and the file that names the newest folder
DEEPSPEED_WEIGHTS, DEEPSPEED_LATEST = "mp_rank_00_model_states.pt", "latest"

# for cards, by family: title and arXiv number of the paper, license of the authors' weights
ORIGINS = {
    "distillation": ("Masked Video Distillation", "2212.04500", "cc-by-nc-4.0"),
    "classification": ("Masked Video Distillation", "2212.04500", "cc-by-nc-4.0"),
    "videomae": ("VideoMAE", "2203.12602", "cc-by-nc-4.0"),
    "mae": ("Masked Autoencoders Are Scalable Vision Learners", "2111.06377", "cc-by-nc-4.0"),
}


def find_weights(path: str | Path) -> Path:
    """The file of weights: the path, or the only one in a DeepSpeed folder; raises ValueError if there is not one."""
    path = Path(path)
    if not path.is_dir():
        return path
    if (path / DEEPSPEED_LATEST).is_file():
        name = (path / DEEPSPEED_LATEST).read_bytes().decode("utf-8", "replace").strip()
        if not re.fullmatch(r"[\w.-]{0,200}\w", name):
            raise ValueError(f"{DEEPSPEED_LATEST!r} in {str(path)!r} must name a folder beside it, not {name!r}.")
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
    """State dict and command-line arguments (empty if there are none) of an official checkpoint file.

    The file may hold tensors, plain containers, NumPy numbers, paths and an `argparse.Namespace`; no code of it runs.
    It may also be a safetensors file.

    Raises:
        ValueError: if the file holds anything else or no state dict, or cannot be read.
    """
    path = find_weights(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path), argparse.Namespace()
        with torch.serialization.safe_globals([argparse.Namespace, *NUMPY_CLASSES, *PATH_CLASSES]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"There is no checkpoint file {str(path)!r}.") from None
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be read safely: it is truncated, not a PyTorch file, or holds objects other than "
            f"tensors and numbers ({error}). If you trust it, load it with weights_only=False and pass its state dict."
        ) from error
    arguments = content.get("args") if isinstance(content, Mapping) else None
    for wrapper in STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise ValueError(
            f"{str(path)!r} holds no state dict: it needs tensors by name, bare or in {', '.join(STATE_DICT_KEYS)}."
        )
    return dict(content), arguments if isinstance(arguments, argparse.Namespace) else argparse.Namespace()


def unwrap(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict without the names of wrappers (torch.compile, DDP, ...) and of a module that holds the network.

    Raises:
        ValueError: if this gives two tensors one name, or if there are several networks.
    """
    names = {key: WRAPPERS.sub("", key) for key in state_dict}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise ValueError(
            f"The state dict has {listed(twice)} with and without wrappers: pass the state dict of one network."
        )
    roots = {
        name.removesuffix(PATCHES).removesuffix("encoder.")
        for name in names.values()
        if f".{name}".endswith(f".{PATCHES}")
    }
    if len(roots) > 1:
        raise ValueError(
            f"The state dict has several networks, {listed(sorted(roots))}: pass the state dict of one of them."
        )
    root = roots.pop() if roots else ""
    return {name.removeprefix(root): state_dict[key] for key, name in names.items()}


def strip_prefixes(state_dict: Mapping[str, torch.Tensor]) -> tuple[str, dict[str, torch.Tensor]]:
    """Family (a key of `FAMILY_RULES`) and tensors of an official state dict, with the encoder at the top level."""
    state_dict = unwrap(state_dict)
    if any(key.startswith("encoder.blocks.") for key in state_dict):
        return "videomae", {key.removeprefix("encoder."): value for key, value in state_dict.items()}
    if "blocks.0.attn.qkv.weight" not in state_dict or PATCHES not in state_dict:
        sample = ", ".join(sorted(state_dict)[:4])
        raise ValueError(
            f"This is not a state dict of MVD, MAE or VideoMAE (its first names are {sample}): it lacks "
            f"{PATCHES!r} or 'blocks.0.attn.qkv.weight'."
        )
    if any(key.startswith(("decoder_img.", "decoder_vid.")) for key in state_dict):
        return "distillation", state_dict
    if "blocks.0.attn.qkv.bias" in state_dict:
        return "mae", state_dict
    return "classification", state_dict


class Geometry:
    """Sizes of a network, read from the shapes of its state dict; `overrides` are `MVDConfig` fields that it lacks."""

    def __init__(self, family: str, state_dict: Mapping[str, torch.Tensor], overrides: Mapping):
        self.family, self.state_dict, self.overrides = family, state_dict, overrides

    def depth(self, prefix: str) -> int:
        """Number of blocks whose names have a prefix."""
        return len({key[len(prefix) :].split(".")[0] for key in self.state_dict if key.startswith(prefix)})

    def heads(self, width: int, known: Mapping[int, int], name: str) -> int:
        """Attention heads of a given width; raises ValueError if the config field `name` is needed."""
        if name not in self.overrides and width not in known:
            raise ValueError(f"The number of attention heads of a model of width {width} is not known: give {name}.")
        return self.overrides[name] if name in self.overrides else known[width]

    def shape(self, key: str, *dimensions: int) -> tuple[int, ...]:
        """Shape of a tensor; raises ValueError if it is missing or has another number of dimensions."""
        if key not in self.state_dict:
            raise ValueError(f"The {self.family} checkpoint is incomplete: {key!r} is missing.")
        shape = tuple(self.state_dict[key].shape)
        if len(shape) not in dimensions:
            raise ValueError(f"{key!r} has the shape {shape}, which does not fit a {self.family} model.")
        return shape

    def decoder_fields(self) -> dict:
        """`MVDConfig` fields of the decoder, if there is one."""
        blocks, token = {
            "distillation": ("decoder_img.blocks.", "mask_token_img"),
            "videomae": ("decoder.blocks.", "mask_token"),
            "mae": ("decoder_blocks.", "mask_token"),
        }.get(self.family, ("", ""))
        if token not in self.state_dict:
            return {}
        width = self.shape(token, 3)[-1]
        return {
            "decoder_hidden_size": width,
            "decoder_num_hidden_layers": self.depth(blocks),
            "decoder_intermediate_size": self.shape(f"{blocks}0.mlp.fc1.weight", 2)[0],
            "decoder_num_attention_heads": self.heads(
                width, DECODER_HEADS[self.family], "decoder_num_attention_heads"
            ),
            "decoder_embed_bias": self.family != "videomae",
        }

    def head_fields(self) -> dict:
        """`MVDConfig` fields of the outputs of a family."""
        if self.family == "mae":
            return {"pixel_target": "mae", "mask_ratio": 0.75, "mask_type": "random"}
        if self.family == "distillation":
            sizes = {name: self.shape(f"decoder_{key}.head.weight", 2)[0] for key, name in TEACHER_NAMES.items()}
            return {"teacher_dims": sizes}
        if self.family == "classification":
            labels = {"num_labels": self.shape("head.weight", 2)[0]} if "head.weight" in self.state_dict else {}
            return {"use_mean_pooling": "fc_norm.weight" in self.state_dict} | labels
        return {}


def infer_config(
    family: str, state_dict: Mapping[str, torch.Tensor], arguments: argparse.Namespace, overrides: dict
) -> MVDConfig:
    """Configuration from the shapes of a state dict; `overrides`, then `arguments`, give the rest."""
    geometry, is_mae = Geometry(family, state_dict, overrides), family == "mae"
    width, channels, *patch = geometry.shape(PATCHES, 4, 5)
    tubelet_size, patch_size = (patch[0] if len(patch) == 3 else 1), patch[-1]
    num_frames = 1 if is_mae else overrides.get("num_frames", getattr(arguments, "num_frames", 16))
    if num_frames % tubelet_size:
        raise ValueError(f"num_frames={num_frames} must be divisible by the checkpoint's tubelets of {tubelet_size}.")
    image_size = getattr(arguments, "input_size", 224)
    if "pos_embed" in state_dict:
        per_time = (geometry.shape("pos_embed", 3)[1] - is_mae) // (num_frames // tubelet_size)
        image_size = math.isqrt(per_time) * patch_size
    fields = {
        "num_channels": channels,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "hidden_size": width,
        "num_hidden_layers": geometry.depth("blocks."),
        "intermediate_size": geometry.shape("blocks.0.mlp.fc1.weight", 2)[0],
        "num_attention_heads": geometry.heads(width, ENCODER_HEADS, "num_attention_heads"),
        "use_class_token": "cls_token" in state_dict,
        "key_bias": is_mae,
        "position_embedding_type": {"videomae": "flat", "mae": "space"}.get(family, "spacetime"),
        "num_frames": num_frames,
        "image_size": image_size,
    }
    return MVDConfig(**(fields | geometry.decoder_fields() | geometry.head_fields() | overrides))


def rename_weights(family: str, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Official tensors under our names, as float32, without position tables; raises ValueError for unknown names."""
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
        if name.endswith(".attn.qkv.bias"):  # MAE has one bias for queries, keys and values
            layer = name.removesuffix(".attn.qkv.bias").replace(".blocks.", ".layers.")
            for bias, part in zip(("q_bias", "k_bias", "v_bias"), value.chunk(3), strict=True):
                renamed[f"{layer}.attention.qkv.{bias}"] = part.float().contiguous()
            continue
        for pattern, replacement in LAYER_RULES:
            name = re.sub(pattern, replacement, name)
        if name == "mvd.embeddings.projection.weight" and value.dim() == 4:  # of images: add the axis of time
            value = value.unsqueeze(2)
        renamed[name] = value.float().contiguous()
    if unknown:
        raise ValueError(f"Unknown weights in a {family} checkpoint: {', '.join(unknown)}. Nothing was converted.")
    return renamed


def check_position_tables(state_dict: Mapping[str, torch.Tensor], config: MVDConfig):
    """Raise ValueError if a stored position table differs from the fixed one that our models compute."""
    for key, decoder in POSITION_TABLES.items():
        if key not in state_dict:
            continue
        width = config.hidden_size if decoder is None else config.decoder_hidden_size
        expected = position_table(config.position_embedding_type, config.grid, width)
        stored = state_dict[key].float().flatten(0, 1) if state_dict[key].dim() == 3 else state_dict[key]
        if config.position_embedding_type == "space" and stored.shape[0] == expected.shape[0] + 1:
            stored = stored[1:]  # without the class token
        if stored.shape != expected.shape or not torch.allclose(stored, expected, atol=1e-4):
            raise ValueError(
                f"{key} {tuple(stored.shape)} differs from the fixed {config.position_embedding_type!r} table "
                f"{tuple(expected.shape)} of a {config.grid} grid: it is learned, or num_frames or image_size differ."
            )


def convert_checkpoint(source: str | Path | Mapping[str, torch.Tensor], **overrides) -> MVDPreTrainedModel:
    """Convert an official checkpoint to an MVD model in float32 and evaluation mode.

    | checkpoint | model |
    |---|---|
    | MVD student | `MVDForFeatureDistillation` with the teachers `image` and `video` |
    | fine-tuned MVD | `MVDForVideoClassification` |
    | MAE or VideoMAE | `MVDForPixelReconstruction` |
    | encoder alone | `MVDModel` |

    Args:
        source: a .pth or .safetensors file, a DeepSpeed folder, or a state dict, with the official names; also as
            saved through torch.compile, DDP, FSDP or Lightning.
        overrides: `MVDConfig` fields that shapes cannot give (`num_attention_heads` of an unusual width, `image_size`,
            `num_frames`) or that you want to change. A fine-tuned VideoMAE has the names of a fine-tuned MVD: give
            `position_embedding_type="flat"`.

    Raises:
        ValueError: if the source is not such a checkpoint, or naming the weights that are left over or missing.
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
    if all(key.startswith("mvd.") for key in weights):
        model = MVDModel(config, add_final_norm="mvd.layernorm.weight" in weights)
        weights = {key.removeprefix("mvd."): value for key, value in weights.items()}
    else:
        classes = {"distillation": MVDForFeatureDistillation, "classification": MVDForVideoClassification}
        model = classes.get(family, MVDForPixelReconstruction)(config)
    load_completely(model, weights)
    return model.eval()


def load_completely(model: MVDPreTrainedModel, weights: Mapping[str, torch.Tensor]):
    """Load weights into a model; raises ValueError unless the names and shapes of both are the same."""
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


# names of VideoMAE in transformers to ours, for weights outside of query, key and value
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
    """The `MVDConfig` for a configuration of VideoMAE in transformers, with the mean and std of its processor."""
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


def videomae_weights(model: PreTrainedModel, left_out: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The weights of a VideoMAE model of transformers under our names, but for those `left_out`.

    Biases of the keys, which old versions of transformers have, are left out: they cancel in the softmax.
    """
    state, weights = {name: value for name, value in model.state_dict().items() if name not in left_out}, {}
    for name, value in state.items():
        layer, attention, part = name.partition(".attention.attention.")
        if part == "query.weight":
            products = [state.get(f"{layer}{attention}{product}.weight") for product in ("query", "key", "value")]
            if all(product is not None for product in products):
                weights[f"{layer}.attention.qkv.weight"] = torch.cat(products)
        elif part in ("query.bias", "value.bias"):
            weights[f"{layer}.attention.qkv.{part[0]}_bias"] = value
        elif not part:
            weights[name] = value
    for pattern, replacement in VIDEOMAE_RULES:
        weights = {re.sub(pattern, replacement, name): value for name, value in weights.items()}
    return weights


def origin_of(model: MVDPreTrainedModel) -> tuple[str, str, str]:
    """Title and arXiv number of the paper of a converted model, and the license of the authors' weights."""
    if isinstance(model, MVDForVideoClassification):
        return ORIGINS["classification"]
    families = {"space": "mae", "flat": "videomae"}
    return ORIGINS[families.get(model.config.position_embedding_type, "distillation")]


def save_converted(
    model: MVDPreTrainedModel, source: str | Path, output: str | Path, license: str | None = None
) -> None:
    """Write a converted model to a folder, with its video processor and card, and check that it loads.

    Args:
        model: from [`convert_checkpoint`].
        source: the file it was converted from.
        output: the folder.
        license: of the weights, by its name on the Hub; by default that of the authors' released weights.

    Raises:
        ValueError: if the folder does not give the weights and outputs of the model.
    """
    output, source = Path(output), find_weights(source)
    title, arxiv, authors_license = origin_of(model)
    model.save_pretrained(output)
    MVDVideoProcessor.for_model(model.config).save_pretrained(output)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    record = {"title": title, "arxiv": arxiv, "file": source.name, "sha256": sha256}
    (output / CONVERSION_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    details = CardDetails(license=authors_license if license is None else license)
    snippet = Snippet(make_snippet(str(output), snippet_kind(output), with_code=False))
    render_card(output, output.name, details, snippet).save(output / CARD_NAME)
    check_saved(model, output)


@torch.no_grad()
def check_saved(model: MVDPreTrainedModel, folder: Path):
    """Raise ValueError unless a folder gives the weights of a model, and its outputs for a random clip."""
    options = {"add_final_norm": model.layernorm is not None} if isinstance(model, MVDModel) else {}
    loaded = type(model).from_pretrained(folder, **options)
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
        # another alignment of the memory moves the last bits
        wrong += [part for part in parts if not torch.allclose(parts[part], others[part], rtol=1e-4, atol=1e-5)]
    if wrong:
        raise ValueError(f"The folder {str(folder)!r} does not give the converted model: {', '.join(wrong)} differ.")
