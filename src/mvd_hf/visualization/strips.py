"""Strips of frames side by side: as a figure, and as a film in which they play together.

Letters in shapes: n frames of a strip, H x W pixels. Frames are uint8.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from ..data.toy import write_video

# columns of a figure: longer strips show evenly spread frames
MAX_COLUMNS = 8
# inches of a frame in a figure, pixels of an inch, pixels of a frame's height in a film
INCHES, RESOLUTION, PANEL_SIDE = 1.5, 130, 240


def check_strips(strips: Mapping[str, np.ndarray]) -> int:
    """The number of frames n of all strips (n, H, W, 3); raises ValueError if lengths differ or are 0."""
    counts = {name: len(strip) for name, strip in strips.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"Strips need the same number of frames, at least one, but have {counts}.")
    return next(iter(counts.values()))


def shown_columns(count: int, limit: int = MAX_COLUMNS) -> list[int]:
    """The frames that a figure shows of `count`: all, or `limit` of them from the first to the last."""
    return list(range(count)) if count <= limit else np.linspace(0, count - 1, limit).round().astype(int).tolist()


def draw_strips(strips: Mapping[str, np.ndarray], titles: Sequence[str], heading: str = "") -> Figure:
    """A figure with a row for each strip and a column for each frame.

    Args:
        strips: per name frames (n, H, W, 3), or (n, H, W) with a value in [0, 1] for each pixel.
        titles: above each of the n columns.
        heading: above all of them.
    """
    columns = shown_columns(check_strips(strips))
    label_width = 0.1 * max(max(len(line) for line in name.split("\n")) for name in strips)
    lines = heading.count("\n") + 1 if heading else 0
    size = (max(INCHES * len(columns) + label_width, 6.5), INCHES * len(strips) + 0.3 + 0.25 * lines)
    figure = Figure(size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    grid = figure.subplots(len(strips), len(columns), squeeze=False)
    for row, (name, strip) in zip(grid, strips.items(), strict=True):
        for axes, column in zip(row, columns, strict=True):
            axes.imshow(strip[column], vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    for axes, column in zip(grid[0], columns, strict=True):
        axes.set_title(titles[column], fontsize=9)
    if heading:
        figure.suptitle(heading, fontsize=11)
    return figure


def film_frames(
    strips: Mapping[str, np.ndarray], titles: Sequence[str] | None = None, side: int = PANEL_SIDE
) -> Iterator[np.ndarray]:
    """The frames of a film: at each time, the frames of all strips side by side under their names.

    Args:
        strips: per name frames (n, H, W, 3), of one length and shape.
        titles: written into each of the n frames of the film, lower left.
        side: height in pixels of a strip's frame.
    """
    count = check_strips(strips)
    height, width = next(iter(strips.values())).shape[1:3]
    panel = round(side * width / height), side
    font = ImageFont.load_default(15)
    names = {name: name.split("\n") for name in strips}
    bar = 20 * max(len(lines) for lines in names.values()) + 8
    size = [2 * round(pixels / 2) for pixels in (len(strips) * (panel[0] + 4), side + bar + 28 * (titles is not None))]
    for i in range(count):
        frame = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(frame)
        for number, (name, strip) in enumerate(strips.items()):
            left = number * (panel[0] + 4)
            draw.multiline_text((left + 4, 4), "\n".join(names[name]), font=font, fill="black")
            frame.paste(Image.fromarray(strip[i]).resize(panel, Image.Resampling.NEAREST), (left, bar))
        if titles is not None:
            draw.text((4, side + bar + 4), titles[i], font=font, fill="black")
        yield np.asarray(frame)


def write_film(path: str | Path, frames: Iterable[np.ndarray], hold: float = 1.0, fps: int = 4):
    """Write frames of one size as an mp4 file that shows each for `hold` seconds."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    times = max(1, round(hold * fps))
    write_video(path, (frame for frame in frames for _ in range(times)), fps=fps)


def write_figure(path: str | Path, figure: Figure) -> Path:
    """Write a figure as a PNG file, make its folder if needed, and return the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=RESOLUTION)
    return path


def figure_pixels(figure: Figure) -> np.ndarray:
    """The pixels (H, W, 3) of a figure."""
    figure.set_dpi(RESOLUTION)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
