"""Where a patch looks: its attention to all patches of a clip, over space and time.

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
from .features import ClipPictureArguments, crop_frames
from .strips import draw_strips, film_of_strips, write_figure, write_pictures

# opacity of the attention over a frame, and the colour of the query's frame
OPACITY, QUERY_COLOR = 0.6, (255, 255, 255)


@torch.no_grad()
def query_attention(model: MVDModel, clip: torch.Tensor, query: tuple[int, int, int], layer: int = -1) -> torch.Tensor:
    """How much each head of a layer attends from one patch to all: (heads, t, h, w).

    The sum over a head's patches is 1, or, with a class token, what that leaves.

    Args:
        model: the encoder, with `attn_implementation="eager"`, which alone gives attention weights.
        clip: (1, T, C, H, W) uint8 pixels or normalised floats.
        query: slot, row and column of the patch that looks.
        layer: number of the layer from 0, or from -1, the last, backwards.

    Raises:
        ValueError: if there is no such patch or layer, or the attention is of another implementation.
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
    kept: list[torch.Tensor] = []

    def keep(module: MVDAttention, inputs: tuple, outputs: tuple[torch.Tensor, torch.Tensor]):
        kept.append(outputs[1][0, :, token, extra:])

    # a hook keeps one row of one layer, where `output_attentions` would keep (N, N) of all heads and layers
    handle = model.layers[layer].attention.register_forward_hook(keep)
    try:
        model(clip)
    finally:
        handle.remove()
    return kept[0].float().unflatten(1, grid)


def overlay_attention(frames: np.ndarray, attention: np.ndarray, query: tuple[int, int, int]) -> np.ndarray:
    """Frames (T, H, W, 3) with attention (t, h, w) as colours over them, brightest where it is greatest in the clip.

    The query is framed in the frames of its slot. Frames are enlarged where patches have few pixels.
    """
    tubelet, side = len(frames) // len(attention), frames.shape[1] // attention.shape[1]
    factor = max(1, round(24 / side))
    frames = frames.repeat(factor, 1).repeat(factor, 2)
    side *= factor
    heat = colormaps["inferno"](attention / max(attention.max(), 1e-12))[..., :3]
    heat = heat.repeat(tubelet, 0).repeat(side, 1).repeat(side, 2)
    grey = frames.mean(axis=-1, keepdims=True) / 255  # of the frames, so that colour is attention alone
    pictures = (255 * ((1 - OPACITY) * grey + OPACITY * heat)).round().astype(np.uint8)
    slot, row, column = query
    border, width = pictures[slot * tubelet : (slot + 1) * tubelet], max(2, side // 8)
    block = border[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
    for edge in (block[:, :width], block[:, -width:], block[:, :, :width], block[:, :, -width:]):
        edge[...] = QUERY_COLOR
    return pictures


@dataclass
class AttentionArguments(ClipPictureArguments):
    """A model, a clip, and the patch whose attention is drawn, as a recipe's keys.

    Args:
        model: folder or Hub id of an MVD model of any stage, an image teacher excepted.
        query: slot, row and column of the patch that looks; by default the middle of the clip.
        layer: number of the layer, or from -1, the last, backwards.
        heads: numbers of heads, each drawn in a row; by default their mean alone.
        device: where the model computes.
        output: PNG file; the mp4 file and the arrays (.npz) have the same name.
    """

    model: str = ""
    query: list[int] | None = None
    layer: int = -1
    heads: list[int] | None = None
    device: str = "cpu"
    output: str = "outputs/figures/attention.png"


def load_encoder(source: str, device: str = "cpu") -> MVDModel:
    """The encoder of an MVD checkpoint of any stage, with explicit attention; a final norm is left out.

    Raises:
        ValueError: if there is no such model.
    """
    if not source:
        raise ValueError("Nothing to draw: give --model.")
    options = {"add_final_norm": False, "attn_implementation": "eager", "dtype": torch.float32}
    return MVDModel.from_pretrained(source, **options).to(device)


def choose_query(query: Sequence[int] | None, config: MVDConfig) -> tuple[int, int, int]:
    """Slot, row and column of the patch that looks, by default the middle of the clip.

    Raises:
        ValueError: if they are not three.
    """
    if query is None:
        time, rows, columns = config.grid
        return time // 2, rows // 2, columns // 2
    if len(query) != 3:
        raise ValueError(f"query={list(query)} must be three numbers: slot, row and column of a patch.")
    return query[0], query[1], query[2]


def choose_heads(attention: np.ndarray, heads: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Attention (t, h, w) by name: of some heads of (heads, t, h, w), or their mean.

    Raises:
        ValueError: if there is no such head.
    """
    if heads is None:
        return {f"mean of {len(attention)} heads": attention.mean(axis=0)}
    for head in heads:
        if not 0 <= head < len(attention):
            raise ValueError(f"The head {head} does not exist: choose from 0 to {len(attention) - 1}.")
    return {f"head {head}": attention[head] for head in heads}


def write_attention(arguments: AttentionArguments) -> Path:
    """Draw the attention of a patch as a picture, a film and arrays; returns the picture's path.

    Raises:
        ValueError: if there is no such model, patch, layer or head, or the clip cannot be read.
    """
    model = load_encoder(arguments.model, arguments.device)
    config = model.config
    query = choose_query(arguments.query, config)
    frames, seconds = arguments.read_clip(config.num_frames)
    clip = crop_frames(frames, config.frame_size)
    attention = query_attention(model, clip[None].to(arguments.device), query, arguments.layer).cpu().numpy()
    maps = choose_heads(attention, arguments.heads)
    seen = clip.permute(0, 2, 3, 1).numpy()
    drawn = {name: overlay_attention(seen, values, query) for name, values in maps.items()}
    enlargement = next(iter(drawn.values())).shape[1] // seen.shape[1]
    strips = {"clip": seen.repeat(enlargement, 1).repeat(enlargement, 2), **drawn}
    first = range(0, config.num_frames, config.tubelet_size)
    share = attention.mean(axis=0).sum(axis=(1, 2))
    titles = [f"{seconds[i]:.2f} s\n{100 * share[i // config.tubelet_size]:.0f} %" for i in range(config.num_frames)]
    layer = arguments.layer % config.num_hidden_layers
    heading = (
        f"Attention of the patch at slot {query[0]}, row {query[1]}, column {query[2]}, in layer {layer}\n"
        "per cent: how much of it goes to a slot, mean of all heads"
    )
    columns = {name: strip[list(first)] for name, strip in strips.items()}
    path = write_figure(arguments.output, draw_strips(columns, [titles[i] for i in first], heading))
    np.savez_compressed(path.with_suffix(".npz"), attention=attention, query=query, layer=layer)
    if arguments.film:
        flat = [title.replace("\n", ", ") for title in titles]
        write_pictures(path.with_suffix(".mp4"), film_of_strips(strips, flat), 1 / arguments.fps, arguments.fps)
    return path
