"""The demo page: predictions over time, the mask game, and the similarity of features between frames.

Letters in shapes: T frames, C channels, H x W pixels; W windows of a video.
"""

import functools
import importlib.util
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import PreTrainedModel
from transformers.video_utils import VideoMetadata

from ..arguments import check_path
from ..data.folders import VIDEO_SUFFIXES
from ..data.masking import tube_mask
from ..hub.loading import load_processor, load_trained_classifier
from ..hub.snippets import EXAMPLE_NAME, write_example
from ..model.configuration_mvd import compact_size, size_text
from ..model.frame_sampling import dense_test_frames, frames_by_seconds
from ..model.labels_mvd import MULTI_LABEL, REGRESSION
from ..model.video_processing_mvd import MVDVideoProcessor
from ..model.video_reading import VideoReader
from .features import clip_indices, crop_frames, load_feature_extractor
from .reconstruction import MASK_BRIGHTNESS, masked_pixels
from .similarity import FeatureSimilarity, draw_similarity, slot_similarity
from .strips import draw_strips, figure_pixels, shown_columns

# number of classes that are shown, and of frames in a row: as many as a phone's width shows
NUM_SHOWN, FRAMES_IN_ROW = 5, 4


def window_starts(total_frames: int, length: int, max_windows: int) -> np.ndarray:
    """First frames (W,) of windows from the start to the end of a video; neighbours overlap by half or more.

    Args:
        total_frames: frames of the video.
        length: frames of a window.
        max_windows: maximum of W; if it is reached, windows overlap less.
    """
    room = max(total_frames - length, 0)
    count = min(max_windows, -(-room // max(length // 2, 1)) + 1)
    return np.linspace(0, room, count).round().astype(int)


@dataclass
class WindowPredictions:
    """Predictions of a classifier for each window of a video.

    Args:
        probabilities: (W, classes).
        seconds: middle of each window, (W,).
        names: names of the classes.
        frames: the middle frame of each window, (W, H, W, 3) uint8.
    """

    probabilities: np.ndarray
    seconds: np.ndarray
    names: Sequence[str]
    frames: np.ndarray

    def top_classes(self) -> list[int]:
        """The classes with the highest mean probability."""
        return np.argsort(-self.probabilities.mean(axis=0), kind="stable")[:NUM_SHOWN].tolist()

    def overall(self) -> dict[str, float]:
        """Mean probabilities of the top classes, by name."""
        mean = self.probabilities.mean(axis=0)
        return {self.names[i]: float(mean[i]) for i in self.top_classes()}

    def drawn_classes(self) -> list[int]:
        """The classes to draw: first those that lead in a window, then the top classes."""
        leaders = self.probabilities.argmax(axis=1)
        counts = np.bincount(leaders, minlength=self.probabilities.shape[1])
        leading = [i for i in np.argsort(-counts, kind="stable").tolist() if counts[i]]
        return list(dict.fromkeys([*leading, *self.top_classes()]))[:NUM_SHOWN]

    def draw(self) -> Figure:
        """Frames of some windows, and below them the probabilities over time; legible on the width of a phone."""
        shown = shown_columns(len(self.seconds), FRAMES_IN_ROW)
        figure = Figure((4.2, 5.0), layout="constrained")
        panels = figure.subplot_mosaic([[f"frame {i}" for i in shown], ["course"] * len(shown)], height_ratios=(1, 3))
        for i in shown:
            panels[f"frame {i}"].imshow(self.frames[i])
            panels[f"frame {i}"].set_title(f"{self.seconds[i]:.1f} s", fontsize=9)
            panels[f"frame {i}"].set_axis_off()
        axes = panels["course"]
        for i in self.drawn_classes():
            label = textwrap.shorten(self.names[i], 40, placeholder=" ...")
            axes.plot(self.seconds, self.probabilities[:, i], marker="o", markersize=4, label=label)
        axes.set(xlabel="seconds (middle of a window)", ylabel="probability", ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", fontsize=9, frameon=False)
        return figure


def frames_within(times: np.ndarray, seconds: float) -> int:
    """Number of the first frames of a video that are shown within so many seconds, at least 1."""
    return max(int(np.searchsorted(times, seconds)), 1)


@torch.no_grad()
def classify_windows(
    model: PreTrainedModel, processor: MVDVideoProcessor, video: str, max_windows: int = 16, seconds: float = 4.0
) -> WindowPredictions:
    """Classify evenly spread windows of a video, each sampled like a clip in training.

    Args:
        model: a video classifier.
        processor: its processor, for one clip and one crop.
        video: a video file.
        max_windows: maximum number of windows.
        seconds: length of a window with uniform sampling; with dense sampling it is the length of the model's clips.

    Raises:
        VideoReadError: (a ValueError) if the video cannot be read.
    """
    with VideoReader(video) as reader:
        times = reader.times()
        if processor.sampling == "dense":
            stride, fps = processor.frame_sampling_rate, processor.fps
            length = processor.num_frames * stride if fps is None else frames_within(times, processor.num_frames / fps)
        else:
            length = frames_within(times, seconds)
        length = min(length, len(reader))
        starts = window_starts(len(reader), length, max_windows)
        window = VideoMetadata(total_num_frames=length)
        windows = [start + processor.sample_frames(window, times=times[start : start + length]) for start in starts]
        numbers = np.stack(windows)
        frames = reader.read(numbers.ravel())
    rows = []
    for window in frames.reshape(*numbers.shape, *frames.shape[1:]):
        clip = processor(window, do_sample_frames=False, return_tensors="pt")["pixel_values"]
        logits = model(pixel_values=clip.to(model.device)).logits[0].float()
        rows.append(logits.sigmoid() if model.config.problem_type == MULTI_LABEL else logits.softmax(-1))
    names = [model.config.id2label[i] for i in range(len(rows[0]))]
    middle = frames.reshape(*numbers.shape, *frames.shape[1:])[:, numbers.shape[1] // 2]
    return WindowPredictions(torch.stack(rows).cpu().numpy(), times[numbers].mean(axis=1), names, middle)


@dataclass
class DemoArguments:
    """The models and example clips of the page, as a recipe's keys.

    Args:
        model: folder or Hub id of a classifier, ours or a VideoMAE of transformers.
        models: models whose features are compared, as for `recipes/visualize.py similarity`; by default only the
            classifier.
        norm: features `pre` or `post` the final norm; a classifier has no final norm.
        examples: video files, or folders of them, offered on the page.
        sampling: `dense` or `uniform`, if no processor says how frames were sampled in training.
        window: seconds of a window with uniform sampling; dense windows have the length of the model's clips.
        max_windows: maximum number of windows of a video; in longer videos they overlap less.
        device: where the models compute.
        title: title of the page.
        port: port of the page; by default the first free one from 7860 on.
        open_to_all: whether other machines of the network can reach the page.
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
            raise ValueError("There is no classifier: give --model.")
        if self.max_windows < 1 or self.window <= 0:
            raise ValueError(f"max_windows={self.max_windows} and window={self.window} must be above 0.")

    def example_files(self) -> list[str]:
        """The example videos; raises ValueError if one of them does not exist."""
        files: list[Path] = []
        for example in map(Path, self.examples):
            if not example.exists():
                raise ValueError(f"The example {str(example)!r} does not exist.")
            inside = sorted(path for path in example.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
            files += inside if example.is_dir() else [example]
        return [str(file) for file in files]


class Demo:
    """The models of the page, and the figures it shows of a video.

    Args:
        arguments: models and examples of the page.

    Raises:
        ValueError: if a model cannot be loaded.
    """

    def __init__(self, arguments: DemoArguments):
        self.arguments = arguments
        models = arguments.models or [arguments.model]
        for source in (arguments.model, *(models.values() if isinstance(models, dict) else models)):
            check_path(source, "model")
        arguments.example_files()  # the error comes before the models are loaded
        self.model = load_trained_classifier(arguments.model).to(arguments.device).eval()
        if self.model.config.problem_type == REGRESSION:
            raise ValueError(f"{arguments.model!r} has no classes to show (problem_type={REGRESSION}).")
        self.processor = load_processor(arguments.model, self.model.config, arguments.sampling)
        self.processor.num_clips = self.processor.num_crops = 1
        self.extractor = load_feature_extractor(models, arguments.device, norm=arguments.norm)

    def describe_model(self) -> str:
        """Which model answers, as Markdown."""
        config, source = self.model.config, self.arguments.model
        pixels = size_text(compact_size(config.image_size))
        return (
            f"Model: `{source}`, {type(self.model).__name__}, {self.model.num_parameters() / 1e6:.1f} M parameters, "
            f"{config.num_labels} classes, clips of {config.num_frames} frames of {pixels} pixels."
        )

    def examples(self) -> list[str]:
        """The example videos; a synthetic one where none are given."""
        files = self.arguments.example_files()
        if not files:
            files = [str(Path(tempfile.mkdtemp()) / EXAMPLE_NAME)]
            write_example(files[0])
        return files

    def predict(self, video: str) -> WindowPredictions:
        """Classify the windows of a video; errors as in `classify_windows`."""
        return classify_windows(self.model, self.processor, video, self.arguments.max_windows, self.arguments.window)

    def read_clip(self, video: str) -> np.ndarray:
        """The middle clip (T, H, W, C) of a video, with the frames of the feature extractor."""
        with VideoReader(video) as reader:
            stride, fps, num_frames = self.processor.frame_sampling_rate, self.processor.fps, self.extractor.num_frames
            if fps is None:
                return reader.read(clip_indices(reader, num_frames, stride))
            sampler = partial(dense_test_frames, num_frames=num_frames, num_clips=1)
            return reader.read(frames_by_seconds(sampler, reader.times(), fps)[0])

    def mask_game(self, video: str, ratio: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (H, W, 3) of the patches of a video's middle clip that a student sees, and of the whole clip.

        Args:
            video: a video file.
            ratio: part of the patches that is masked, the same patches in each frame.
            seed: seed of the mask.
        """
        grid = self.extractor.grid
        mask = tube_mask(grid, ratio, torch.Generator().manual_seed(seed))
        clip = crop_frames(self.read_clip(video), self.extractor.image_size)
        is_masked = masked_pixels(mask[None], grid, len(clip) // grid[0], clip.shape[-2] // grid[1])[0][:, None]
        shown = shown_columns(len(clip), FRAMES_IN_ROW)
        visible, truth = (
            figure_pixels(draw_strips({"": frames[shown].permute(0, 2, 3, 1).numpy()}, [""] * len(shown)))
            for frames in (clip.masked_fill(is_masked, MASK_BRIGHTNESS), clip)
        )
        return visible, truth

    def compare(self, video: str) -> np.ndarray:
        """An image (H, W, 3) of the similarity of features between frames of the middle clip, for each model."""
        clips = self.extractor.clips(self.read_clip(video))
        matrices = {
            name: slot_similarity(features, self.extractor.grid).cpu().numpy()
            for name, features in self.extractor.features(clips)
        }
        return figure_pixels(draw_similarity(FeatureSimilarity(matrices)))


def check_gradio():
    """Raise ImportError, naming the remedy, if gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise ImportError('The demo page needs gradio: pip install "mvd_hf[demo]".')


def build_page(demo: Demo):
    """The page as `gradio.Blocks`; raises ImportError without gradio."""
    check_gradio()
    import gradio

    def show_errors(function: Callable) -> Callable:
        """The function with errors that the page shows to the visitor."""

        @functools.wraps(function)
        def answer(video: str | None, *values):
            if video is None:
                raise gradio.Error("Upload a video or choose one first.")
            try:
                return function(video, *values)
            except ValueError as error:
                raise gradio.Error(str(error)) from error

        return answer

    @show_errors
    def predict(video: str):
        predictions = demo.predict(video)
        return predictions.overall(), figure_pixels(predictions.draw())

    @show_errors
    def mask(video: str, percent: float, seed: float):
        visible, _ = demo.mask_game(video, percent / 100, int(seed))
        return visible, None

    @show_errors
    def reveal(video: str, percent: float, seed: float):
        return demo.mask_game(video, percent / 100, int(seed))[1]

    compare = show_errors(demo.compare)
    image = {"show_label": False, "buttons": ["fullscreen"]}  # a label would cover its corner
    with gradio.Blocks(title=demo.arguments.title) as page:
        gradio.Markdown(f"# {demo.arguments.title}\n\n{demo.describe_model()}\n\nUpload a clip or choose an example.")
        with gradio.Row():
            with gradio.Column(scale=1):
                video = gradio.Video(label="Clip", sources=["upload"], height=240)
                examples = gradio.Column()
            with gradio.Column(scale=2):
                with gradio.Tab("Predictions"):
                    run = gradio.Button("Classify", variant="primary")
                    label = gradio.Label(label="Mean over the video", num_top_classes=NUM_SHOWN)
                    gradio.Markdown("Probabilities over time")
                    course = gradio.Image(height=440, **image)
                    run.click(predict, video, [label, course], api_name="predict")
                    video.upload(predict, video, [label, course], api_visibility="private")
                    with examples:
                        gradio.Examples(
                            [[file] for file in demo.examples()],
                            video,
                            [label, course],
                            predict,
                            run_on_click=True,
                            cache_examples=False,
                            api_visibility="private",
                            label="Examples",
                        )
                with gradio.Tab("Mask game"):
                    gradio.Markdown(
                        "A student sees only these patches of a clip, and learns to predict the masked ones."
                    )
                    with gradio.Row():
                        percent = gradio.Slider(50, 95, value=90, step=5, label="Masked patches, per cent")
                        seed = gradio.Number(value=0, precision=0, label="Seed of the mask")
                    with gradio.Row():
                        play = gradio.Button("Mask", variant="primary")
                        show = gradio.Button("Show the clip")
                    gradio.Markdown("What happens here?")
                    seen = gradio.Image(**image)
                    gradio.Markdown("The clip")
                    truth = gradio.Image(**image)
                    play.click(mask, [video, percent, seed], [seen, truth], api_name="mask")
                    show.click(reveal, [video, percent, seed], truth, api_name="reveal")
                with gradio.Tab("Similarity"):
                    gradio.Markdown("Cosine similarity of the features at one place in the frames of two time slots.")
                    look = gradio.Button("Compare", variant="primary")
                    matrices = gradio.Image(**image)
                    look.click(compare, video, matrices, api_name="compare")
    return page


def launch(arguments: DemoArguments, **options):
    """Load the models and serve the page; returns when it is closed, or at once with `prevent_thread_lock=True`.

    Args:
        arguments: models and examples of the page.
        options: arguments of `gradio.Blocks.launch`.

    Returns:
        The page, with its address in `local_url` and a method `close()`.
    """
    check_gradio()
    page = build_page(Demo(arguments))
    server_name = "0.0.0.0" if arguments.open_to_all else "127.0.0.1"
    defaults = {"server_name": server_name, "server_port": arguments.port, "share": False}
    page.launch(**(defaults | options))
    return page
