"""What a classifier says of a video as it goes on: windows over its length, and their probabilities as a picture.

Letters in shapes: W windows, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel
from transformers.video_utils import VideoMetadata

from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReader

# classes that are told
NUM_TOLD = 5


def window_starts(total_frames: int, length: int, max_windows: int) -> np.ndarray:
    """First frames (W,) of windows from the beginning of a video to its end, each half over the next if there is room.

    Args:
        total_frames: of the video.
        length: frames that a window spans.
        max_windows: W at most.
    """
    room = max(total_frames - length, 0)
    count = min(max_windows, -(-room // max(length // 2, 1)) + 1)
    return np.linspace(0, room, count).round().astype(int)


@dataclass
class WindowPredictions:
    """What a classifier says of a video, window by window.

    Args:
        probabilities: (W, classes).
        seconds: middle of each window, (W,).
        names: of the classes.
    """

    probabilities: np.ndarray
    seconds: np.ndarray
    names: Sequence[str]

    def likeliest(self, number: int = NUM_TOLD) -> list[int]:
        """The classes that are likeliest in the mean of the windows."""
        return np.argsort(-self.probabilities.mean(axis=0), kind="stable")[:number].tolist()

    def overall(self) -> dict[str, float]:
        """The likeliest classes of the whole video, by name."""
        mean = self.probabilities.mean(axis=0)
        return {self.names[i]: float(mean[i]) for i in self.likeliest()}

    def told(self) -> list[int]:
        """The classes that are drawn: the likeliest of all, after those that are likeliest in any window."""
        leaders = self.probabilities.argmax(axis=1)
        counts = np.bincount(leaders, minlength=self.probabilities.shape[1])
        leading = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i]]
        return list(dict.fromkeys([*leading, *self.likeliest()]))[:NUM_TOLD]

    def draw(self) -> Figure:
        """Probabilities over time."""
        figure = Figure((8.5, 3.6), layout="constrained")
        axes = figure.subplots()
        for i in self.told():
            axes.plot(self.seconds, self.probabilities[:, i], marker="o", markersize=4, label=self.names[i])
        axes.set(xlabel="seconds (middle of a window)", ylabel="probability", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9, frameon=False)
        return figure


@torch.no_grad()
def classify_windows(
    model: PreTrainedModel, processor: MVDVideoProcessor, video: str, max_windows: int = 16, seconds: float = 4.0
) -> WindowPredictions:
    """Classify windows of a video, each sampled as one clip of training.

    Args:
        model: a classifier of videos.
        processor: its processor, for one clip and one crop.
        video: a video file.
        max_windows: at most so many, evenly spread over the video.
        seconds: length of a window where frames are sampled uniformly; a dense one is as long as the model's clips.

    Raises:
        VideoReadError: (a ValueError) if the video cannot be read.
    """
    with VideoReader(video) as reader:
        times = reader.times()
        if processor.sampling == "dense":
            length = processor.num_frames * processor.frame_sampling_rate
        else:
            length = max(int(np.searchsorted(times, seconds)), 1)
        length = min(length, len(reader))
        starts = window_starts(len(reader), length, max_windows)
        numbers = starts[:, None] + processor.sample_frames(VideoMetadata(total_num_frames=length))
        frames = reader.read(numbers.ravel())
    rows = []
    for window in frames.reshape(*numbers.shape, *frames.shape[1:]):
        clip = processor(window, do_sample_frames=False, return_tensors="pt")["pixel_values"]
        rows.append(model(pixel_values=clip.to(model.device)).logits[0].float().softmax(-1))
    names = [model.config.id2label[i] for i in range(len(rows[0]))]
    return WindowPredictions(torch.stack(rows).cpu().numpy(), times[numbers].mean(axis=1), names)
