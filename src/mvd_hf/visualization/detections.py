"""People and their actions in the key frames of a video, drawn from the output of an action detector.

Frames are (H, W, 3) uint8. Boxes are x1, y1, x2, y2 in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont

from ..arguments import check_path
from ..detection.ava import BOX, KEY, read_boxes, read_person_boxes
from ..model.detection_mvd import MVDForActionDetection
from ..model.frame_sampling import key_frame_clip, key_frame_clip_by_seconds
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReader
from .strips import write_film

# colors that are distinguishable with a red-green color vision deficiency (Okabe and Ito)
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# short side of a drawn frame; smaller frames are enlarged so that text fits
MIN_SIDE = 480

Box = Sequence[float]


@dataclass
class DetectionFigureArguments:
    """The detector, the video and the boxes to draw, as a recipe's keys.

    Args:
        model: folder or Hub id of an action detector with its processor.
        video: a video file.
        boxes: CSV file of a person detector.
        annotations: CSV file in AVA's format, whose boxes are used instead.
        video_id: the video's name in these files; by default the file's name without its suffix.
        video_start: second at which the file begins.
        min_score: minimum score of a detected person.
        threshold: minimum probability of an action that is written.
        top_k: maximum number of actions per person.
        output: mp4 file to write.
        hold: seconds of the film per key frame.
    """

    model: str = ""
    video: str = ""
    boxes: str | None = None
    annotations: str | None = None
    video_id: str | None = None
    video_start: float = 0.0
    min_score: float = 0.8
    threshold: float = 0.2
    top_k: int = 4
    output: str = "outputs/figures/detections.mp4"
    hold: float = 1.0

    def __post_init__(self):
        for name in ("model", "video"):
            if not getattr(self, name):
                raise ValueError(f"Nothing to draw: give --{name}.")
        if self.boxes is not None and self.annotations is not None:
            raise ValueError("Give boxes or annotations, not both.")

    def people(self, num_seconds: int) -> dict[float, np.ndarray]:
        """Relative boxes (P, 4) by the time of their key frame; without a file the whole frame, every second."""
        source = self.annotations or self.boxes
        if source is None:
            whole = np.array([[0.0, 0.0, 1.0, 1.0]])
            return {self.video_start + second: whole for second in range(num_seconds)}
        if self.annotations is not None:
            table = read_boxes(source).dropna(subset=BOX).drop_duplicates([*KEY, *BOX])
        else:
            table = read_person_boxes(source)
            table = table[table["score"] >= self.min_score]
        name = self.video_id or Path(self.video).stem
        mine = table[table["video"] == name]
        if mine.empty:
            known = ", ".join(table["video"].unique()[:3]) or "none"
            raise ValueError(
                f"{source!r} has no people in the video {name!r} (it has {known}): give video_id, or lower min_score."
            )
        return {float(time): people[BOX].to_numpy() for time, people in mine.groupby("timestamp")}


def detection_frames(
    model: MVDForActionDetection, processor: MVDVideoProcessor, arguments: DetectionFigureArguments
) -> Iterator[np.ndarray]:
    """Yield each key frame with the boxes of its people and the names and probabilities of their actions."""
    with VideoReader(arguments.video) as reader:
        for timestamp, boxes in arguments.people(int(reader.times()[-1]) + 1).items():
            key_frame = reader.frame_at(timestamp - arguments.video_start)
            if processor.fps is None:
                clip = key_frame_clip(key_frame, len(reader), processor.num_frames, processor.frame_sampling_rate)
            else:
                clip = key_frame_clip_by_seconds(key_frame, reader.times(), processor.num_frames, processor.fps)
            frames = reader.read(clip[0])
            inputs = processor(frames, boxes=boxes, return_tensors="pt").to(model.device)
            with torch.no_grad():
                outputs = model(**inputs)
            (people,) = processor.post_process_action_detection(
                outputs, arguments.threshold, arguments.top_k, target_sizes=[frames.shape[1:3]]
            )
            names = model.config.id2label
            texts = []
            for person in people:
                actions = zip(person["labels"].tolist(), person["scores"].tolist(), strict=True)
                texts.append([f"{names[label]} {score:.2f}" for label, score in actions])
            corners = [person["box"].tolist() for person in people]
            yield draw_people(reader.read([key_frame])[0], corners, texts, f"{timestamp:g} s")


def draw_people(
    frame: np.ndarray, boxes: Sequence[Box], texts: Sequence[Sequence[str]], title: str = ""
) -> np.ndarray:
    """A frame with boxes and lines of text beside them; small frames are enlarged, and sides are made even.

    Args:
        frame: (H, W, 3) uint8.
        boxes: of each person, in pixels of the frame.
        texts: lines of each person.
        title: text in the upper left corner.
    """
    height, width = frame.shape[:2]
    scale = max(1.0, MIN_SIDE / min(height, width))
    size = tuple(2 * round(side * scale / 2) for side in (width, height))
    image = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC).convert("RGBA")
    layer = Image.new("RGBA", size)
    draw = ImageDraw.Draw(layer)
    font = ImageFont.load_default(max(13, round(min(size) / 32)))
    line = max(2, round(min(size) / 160))
    corners = [[edge * scale for edge in box] for box in boxes]
    for number, box in enumerate(corners):
        draw.rectangle(box, outline=COLORS[number % len(COLORS)], width=line)
    panels: list[Box] = []
    for number, (box, lines) in enumerate(zip(corners, texts, strict=True)):
        if lines:
            others = [*panels * 4, *(other for other in corners if other is not box)]  # text over text counts most
            panels.append(draw_text(draw, font, "\n".join(lines), box, COLORS[number % len(COLORS)], others))
    if title:
        draw_text(draw, font, title, (0, 0, 0, 0), "#000000", [])
    return np.asarray(Image.alpha_composite(image, layer).convert("RGB"))


def draw_text(
    draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, text: str, box: Box, color: str, others: Sequence[Box]
) -> Box:
    """Draw text on a panel near a box, where it covers the least of other boxes and panels; returns the panel."""
    margin, full = 3, draw.im.size
    left, top, right, bottom = draw.multiline_textbbox((0, 0), text, font=font)
    size = right - left + 2 * margin, bottom - top + 2 * margin
    x1, y1, x2, y2 = box
    places = [(x1, y1 - size[1]), (x1, y2), (x1, y1), (x2, y1), (x1 - size[0], y1), (x1, y2 - size[1])]
    panels = []
    for place in places:
        x, y = (min(max(start, 0), max(end - side, 0)) for start, side, end in zip(place, size, full, strict=True))
        panels.append((x, y, x + size[0], y + size[1]))
    panel = min(panels, key=lambda panel: sum(shared_area(panel, other) for other in others))
    draw.rectangle(panel, fill=color + "D8")
    red, green, blue = ImageColor.getrgb(color)
    is_bright = 0.3 * red + 0.59 * green + 0.11 * blue > 150
    corner = panel[0] + margin - left, panel[1] + margin - top
    draw.multiline_text(corner, text, font=font, fill="#000000" if is_bright else "#FFFFFF")
    return panel


def shared_area(panel: Box, other: Box) -> float:
    """Area of the intersection of two boxes."""
    width = min(panel[2], other[2]) - max(panel[0], other[0])
    height = min(panel[3], other[3]) - max(panel[1], other[1])
    return max(width, 0) * max(height, 0)


def write_detections(arguments: DetectionFigureArguments) -> list[Path]:
    """Draw the key frames of a video as an mp4 file; returns its path."""
    check_path(arguments.model, "model")
    for path in (arguments.video, arguments.boxes, arguments.annotations):
        if path is not None and not Path(path).is_file():
            raise ValueError(f"There is no file {path!r}.")
    model = MVDForActionDetection.from_pretrained(arguments.model)
    processor = MVDVideoProcessor.from_pretrained(arguments.model)
    write_film(arguments.output, detection_frames(model, processor, arguments), arguments.hold)
    return [Path(arguments.output)]
