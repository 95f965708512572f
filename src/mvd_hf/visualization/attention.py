"""The attention of one patch to all patches of a clip, over space and time.

Letters in shapes: T frames, C channels, H x W pixels; t x h x w the grid of patches; N tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps

from ..model.configuration_mvd import MVDConfig
from ..model.modeling_mvd import MVDAttention, MVDModel
from ..model.patches_mvd import patch_grid
from .features import ClipFigureArguments, crop_frames
from .strips import draw_strips, film_frames

# opacity of the attention over a frame, and the color of the query's frame
OPACITY, QUERY_COLOR = 0.6, (255, 255, 255)


@torch.no_grad()
def query_attention(model: MVDModel, clip: torch.Tensor, query: tuple[int, int, int], layer: int = -1) -> torch.Tensor:
    """Attention of one patch to all patches, for each head of a layer: (heads, t, h, w).

    The sum over the patches is 1 for each head, or less if there is a class token, which takes the rest.

    Args:
        model: the encoder, with `attn_implementation="eager"`: others do not return attention weights.
        clip: (1, T, C, H, W) uint8 pixels or normalized floats.
        query: slot, row and column of the patch.
        layer: index of the layer; -1 is the last.

    Raises:
        ValueError: if there is no such patch or layer, or the attention has another implementation.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError(
            f"attn_implementation={model.config._attn_implementation!r} gives no attention weights: load the model "
            "with 'eager'."
        )
    grid, depth = patch_grid(clip, model.config), len(model.layers)
    if not -depth <= layer < depth:
        raise ValueError(f"layer={layer} does not exist: choose from {-depth} to {depth - 1}.")
    if not all(0 <= index < size for index, size in zip(query, grid, strict=True)):
        raise ValueError(f"The patch {tuple(query)} is not in the grid {grid} of slots, rows and columns.")
    extra = int(model.config.use_class_token)
    token = extra + (query[0] * grid[1] + query[1]) * grid[2] + query[2]
    rows: list[torch.Tensor] = []

    def keep_row(module: MVDAttention, inputs: tuple, outputs: tuple[torch.Tensor, torch.Tensor]):
        rows.append(outputs[1][0, :, token, extra:])

    # a hook keeps one row of one layer; `output_attentions` would keep (N, N) of all heads and layers
    handle = model.layers[layer].attention.register_forward_hook(keep_row)
    try:
        model(clip)
    finally:
        handle.remove()
    return rows[0].float().unflatten(1, grid)


def overlay_attention(frames: np.ndarray, attention: np.ndarray, query: tuple[int, int, int]) -> np.ndarray:
    """Frames (T, H, W, 3) under attention (t, h, w) as colors, brightest at the largest attention of the clip.

    The query's patch is framed in the frames of its slot. Frames are enlarged if patches have few pixels.
    """
    tubelet, side = len(frames) // len(attention), frames.shape[1] // attention.shape[1]
    factor = max(1, round(24 / side))
    frames = frames.repeat(factor, 1).repeat(factor, 2)
    side *= factor
    heat = colormaps["inferno"](attention / max(attention.max(), 1e-12))[..., :3]
    heat = heat.repeat(tubelet, 0).repeat(side, 1).repeat(side, 2)
    grey = frames.mean(axis=-1, keepdims=True) / 255  # the frames lose their colors, so that color is attention
    frames = (255 * ((1 - OPACITY) * grey + OPACITY * heat)).round().astype(np.uint8)
    slot, row, column = query
    border, width = frames[slot * tubelet : (slot + 1) * tubelet], max(2, side // 8)
    block = border[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    for edge in (block[:, :width], block[:, -width:], block[:, :, :width], block[:, :, -width:]):
        edge[...] = QUERY_COLOR
    return frames


@dataclass
class AttentionArguments(ClipFigureArguments):
    """The model and the patch whose attention is drawn, as a recipe's keys.

    Args:
        model: folder or Hub id of an MVD model of any stage, except for an image teacher.
        query: slot, row and column of the patch; by default the middle of the clip.
        layer: index of the layer; -1 is the last.
        heads: indices of heads, each drawn in a row; by default only the mean of all heads.
    """

    model: str = ""
    query: list[int] | None = None
    layer: int = -1
    heads: list[int] | None = None
    output: str = "outputs/figures/attention.png"


def load_encoder(source: str, device: str = "cpu") -> MVDModel:
    """The encoder of an MVD checkpoint of any stage, with eager attention and without the final norm."""
    if not source:
        raise ValueError("Nothing to draw: give --model.")
    options = {"add_final_norm": False, "attn_implementation": "eager", "dtype": torch.float32}
    return MVDModel.from_pretrained(source, **options).to(device)


def choose_query(query: Sequence[int] | None, config: MVDConfig) -> tuple[int, int, int]:
    """Slot, row and column of a patch, by default the middle of the clip."""
    if query is None:
        time, rows, columns = config.grid
        return time // 2, rows // 2, columns // 2
    if len(query) != 3:
        raise ValueError(f"query={list(query)} must be three numbers: slot, row and column of a patch.")
    return query[0], query[1], query[2]


def choose_heads(attention: np.ndarray, heads: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Attention (t, h, w) by name: of some heads of (heads, t, h, w), or the mean of all."""
    if heads is None:
        return {f"mean of {len(attention)} heads": attention.mean(axis=0)}
    for head in heads:
        if not 0 <= head < len(attention):
            raise ValueError(f"head={head} does not exist: choose from 0 to {len(attention) - 1}.")
    return {f"head {head}": attention[head] for head in heads}


def write_attention(arguments: AttentionArguments) -> list[Path]:
    """Draw the attention of a patch as a figure, arrays and a film; returns the paths.

    Raises:
        ValueError: if there is no such model, patch, layer or head, or the clip cannot be read.
    """
    if arguments.model:
        arguments.check_paths([arguments.model])
    model = load_encoder(arguments.model, arguments.device)
    config = model.config
    query = choose_query(arguments.query, config)
    frames, seconds = arguments.read_clip(config.num_frames)
    clip = crop_frames(frames, config.frame_size)
    attention = query_attention(model, clip[None].to(arguments.device), query, arguments.layer).cpu().numpy()
    maps = choose_heads(attention, arguments.heads)
    cropped = clip.permute(0, 2, 3, 1).numpy()
    overlaid = {name: overlay_attention(cropped, values, query) for name, values in maps.items()}
    factor = next(iter(overlaid.values())).shape[1] // cropped.shape[1]
    strips = {"clip": cropped.repeat(factor, 1).repeat(factor, 2), **overlaid}
    first = range(0, config.num_frames, config.tubelet_size)
    share = attention.mean(axis=0).sum(axis=(1, 2))
    titles = [f"{seconds[i]:.2f} s\n{100 * share[i // config.tubelet_size]:.0f} %" for i in range(config.num_frames)]
    layer = arguments.layer % config.num_hidden_layers
    heading = (
        f"Attention of the patch at slot {query[0]}, row {query[1]}, column {query[2]}, in layer {layer}\n"
        "per cent: its part in each slot, mean of all heads"
    )
    columns = {name: strip[list(first)] for name, strip in strips.items()}
    film = film_frames(strips, [title.replace("\n", ", ") for title in titles])
    figure = draw_strips(columns, [titles[i] for i in first], heading)
    return arguments.write(figure, film, attention=attention, query=query, layer=layer)
