"""A page to try a classifier on: what happens when, what a masked student must guess, how alike frames are to models.

Letters in shapes: T frames, C channels, H x W pixels.
"""

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForVideoClassification

from ..data.masking import tube_mask
from ..hub.loading import load_processor
from ..model.video_reading import VideoReader
from .features import crop_frames, frame_numbers, load_viewers
from .reconstruction import MASK_BRIGHTNESS, masked_pixels
from .similarity import FeatureSimilarity, draw_similarity, slot_similarity
from .strips import draw_strips, figure_pixels
from .window_predictions import NUM_TOLD, WindowPredictions, classify_windows

# files of an example folder that are videos
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


@dataclass
class DemoArguments:
    """Models and clips of a page, as a recipe's keys.

    Args:
        model: folder or Hub id of a classifier, ours or a VideoMAE of transformers.
        models: those whose features are compared, as for `recipes/visualize.py similarity`; by default the classifier
            alone.
        norm: features `pre` or `post` the final norm, which a classifier has not.
        examples: video files, or folders of them, to pick from.
        sampling: `dense` or `uniform`, where no processor says how frames were sampled in training.
        window: seconds of a window where frames are sampled uniformly; dense windows are as long as the model's clips.
        max_windows: windows of a video at most; those of a longer one lie farther apart.
        device: where the models compute.
        title: of the page.
        port: of the page; by default the first that is free from 7860 on.
        open_to_all: whether other machines of the network can reach it.
    """

    model: str = ""
    models: list[str] | dict = field(default_factory=list)
    norm: str = "pre"
    examples: list[str] = field(default_factory=list)
    sampling: str | None = None
    window: float = 4.0
    max_windows: int = 16
    device: str = "cpu"
    title: str = "Masked Video Distillation"
    port: int | None = None
    open_to_all: bool = False

    def __post_init__(self):
        if not self.model:
            raise ValueError("No classifier to show: give --model.")
        if self.max_windows < 1 or self.window <= 0:
            raise ValueError(f"max_windows={self.max_windows} and window={self.window} must be above 0.")

    def example_files(self) -> list[str]:
        """The videos to pick from.

        Raises:
            ValueError: if one of them does not exist.
        """
        files: list[Path] = []
        for example in map(Path, self.examples):
            if not example.exists():
                raise ValueError(f"The example {str(example)!r} does not exist.")
            inside = sorted(path for path in example.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
            files += inside if example.is_dir() else [example]
        return [str(file) for file in files]


class Demo:
    """The models of a page, and what it shows of a video.

    Args:
        arguments: the page.

    Raises:
        ValueError: if a model cannot be loaded.
    """

    def __init__(self, arguments: DemoArguments):
        self.arguments = arguments
        model = AutoModelForVideoClassification.from_pretrained(arguments.model, dtype=torch.float32)
        self.model = model.to(arguments.device).eval()
        self.processor = load_processor(arguments.model, self.model.config, arguments.sampling)
        self.processor.num_clips = self.processor.num_crops = 1
        self.viewers = load_viewers(arguments.models or [arguments.model], arguments.device, norm=arguments.norm)

    def predict(self, video: str) -> WindowPredictions:
        """Classify the windows of a video; errors as in `classify_windows`."""
        return classify_windows(self.model, self.processor, video, self.arguments.max_windows, self.arguments.window)

    def read_clip(self, video: str) -> np.ndarray:
        """The middle clip (T, H, W, C) of a video, of as many frames as the viewers see."""
        with VideoReader(video) as reader:
            return reader.read(frame_numbers(reader, self.viewers.num_frames, self.processor.frame_sampling_rate))

    def mask_game(self, video: str, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures (H, W, 3) of what a student sees of a video's middle clip, and of the truth.

        Args:
            video: a video file.
            ratio: part of the patches that is masked, in each frame the same.
            seed: of the mask.

        Raises:
            ValueError: if the ratio masks all or nothing, or the video cannot be read.
        """
        viewers = self.viewers
        mask = tube_mask(viewers.grid, ratio, torch.Generator().manual_seed(seed))
        clip = crop_frames(self.read_clip(video), viewers.image_size)
        tubelet, patch = viewers.num_frames // viewers.grid[0], viewers.image_size // viewers.grid[1]
        is_masked = masked_pixels(mask[None], viewers.grid, tubelet, patch)[0][:, None]
        pictures = clip.masked_fill(is_masked, MASK_BRIGHTNESS), clip
        titles = [""] * len(clip)
        visible, truth = (
            figure_pixels(draw_strips({"": picture.permute(0, 2, 3, 1).numpy()}, titles)) for picture in pictures
        )
        return visible, truth

    def compare(self, video: str) -> np.ndarray:
        """A picture (H, W, 3) of how alike the features of the middle clip's frames are to each model.

        Raises:
            VideoReadError: (a ValueError) if the video cannot be read.
        """
        frames = self.read_clip(video)
        clips = {size: crop_frames(frames, size)[None] for size in self.viewers.sizes}
        matrices = {
            name: slot_similarity(features, self.viewers.grid).cpu().numpy()
            for name, features in self.viewers.features(clips)
        }
        return figure_pixels(draw_similarity(FeatureSimilarity(matrices)))


def check_gradio():
    """Raise ImportError, naming the remedy, if gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The demo page needs gradio: pip install "mvd_hf[demo]".')


def build_page(demo: Demo):
    """The page as `gradio.Blocks`.

    Raises:
        ImportError: if gradio is missing.
    """
    check_gradio()
    import gradio

    def tell(function: Callable) -> Callable:
        """The function for the page, which says what was wrong with the visitor's input."""

        @functools.wraps(function)
        def answer(video: str | None, *values):
            if video is None:
                raise gradio.Error("Upload a video or pick one first.")
            try:
                return function(video, *values)
            except ValueError as error:
                raise gradio.Error(str(error)) from error

        return answer

    @tell
    def predict(video: str):
        predictions = demo.predict(video)
        return predictions.overall(), figure_pixels(predictions.draw())

    @tell
    def hide(video: str, percent: float, seed: float):
        visible, _ = demo.mask_game(video, percent / 100, int(seed))
        return visible, None

    @tell
    def reveal(video: str, percent: float, seed: float):
        return demo.mask_game(video, percent / 100, int(seed))[1]

    compare = tell(demo.compare)
    picture = {"show_label": False, "buttons": ["fullscreen"]}  # a label would cover its corner
    with gradio.Blocks(title=demo.arguments.title) as page:
        gradio.Markdown(f"# {demo.arguments.title}\n\nUpload a clip or pick one, and choose what to look at.")
        with gradio.Row():
            with gradio.Column(scale=1):
                video = gradio.Video(label="Clip", sources=["upload"])
                examples = demo.arguments.example_files()
                if examples:
                    gradio.Examples([[file] for file in examples], video, label="Clips to pick")
            with gradio.Column(scale=2):
                with gradio.Tab("What happens"):
                    run = gradio.Button("Classify", variant="primary")
                    label = gradio.Label(label="Mean over the video", num_top_classes=NUM_TOLD)
                    gradio.Markdown("Over time, window by window")
                    course = gradio.Image(**picture)
                    run.click(predict, video, [label, course], api_name="predict")
                with gradio.Tab("Mask game"):
                    gradio.Markdown("A student sees only this much of a clip, and learns to predict what is masked.")
                    with gradio.Row():
                        percent = gradio.Slider(50, 95, value=90, step=5, label="Masked, per cent")
                        seed = gradio.Number(value=0, precision=0, label="Mask number")
                    with gradio.Row():
                        play = gradio.Button("Hide", variant="primary")
                        show = gradio.Button("Show the truth")
                    gradio.Markdown("What happens here?")
                    seen = gradio.Image(**picture)
                    gradio.Markdown("The truth")
                    truth = gradio.Image(**picture)
                    play.click(hide, [video, percent, seed], [seen, truth], api_name="hide")
                    show.click(reveal, [video, percent, seed], truth, api_name="reveal")
                with gradio.Tab("Similarity of frames"):
                    gradio.Markdown("Cosine similarity of the features at the same place at two times.")
                    look = gradio.Button("Compare", variant="primary")
                    matrices = gradio.Image(**picture)
                    look.click(compare, video, matrices, api_name="compare")
    return page


def launch(arguments: DemoArguments, **options):
    """Load the models and open the page; returns at its end, or at once with `prevent_thread_lock=True`.

    Args:
        arguments: the page.
        options: of `gradio.Blocks.launch`.

    Returns:
        The page, whose `local_url` says where it is and whose `close()` ends it.
    """
    check_gradio()
    page = build_page(Demo(arguments))
    server_name = "0.0.0.0" if arguments.open_to_all else "127.0.0.1"
    defaults = {"server_name": server_name, "server_port": arguments.port, "share": False}
    page.launch(**(defaults | options))
    return page
