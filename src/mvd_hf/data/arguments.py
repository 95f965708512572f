"""Makes training clips from the data keys of a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..model.configuration_mvd import MVDConfig
from ..model.frame_sampling import (
    check_fps,
    dense_frames,
    dense_test_frames,
    pretraining_frames,
    uniform_frames,
    uniform_test_frames,
)
from .augmentation import MULTI_SCALE, FinetuningAugmentation, PretrainingAugmentation, ValidationAugmentation
from .clips import ClipDataset, ClipSampler
from .labels import LabelNames, check_problem_type
from .masking import mask_sampler, part_to_decode
from .mixtures import MixtureDataset, entry_names
from .mixup import Mixup
from .sources import (
    FILE_BUILDERS,
    LIST_FILE_SUFFIXES,
    Rows,
    cache_stream,
    evaluation_split,
    first_rows,
    keep_listed,
    load_rows,
    media_column,
    num_videos,
    read_manifest,
    source_choices,
)
from .streaming import StreamingClips


def evaluation_rows(
    source: str,
    split: str | None = None,
    root: str | None = None,
    name: str | None = None,
    streaming: bool = False,
    max_samples: int | None = None,
    **choices,
) -> datasets.Dataset:
    """Rows to evaluate on. A stream is read once and kept in the cache of `datasets`.

    Args:
        source, root, name, streaming, choices: as in `mvd_hf.data.sources.load_rows`.
        split: by default that with a usual name, such as `validation`, or the only one.
        max_samples: only the first so many.
    """
    split = evaluation_split(source, name, choices.get("frame_folder_fps")) if split is None else split
    rows = load_rows(source, split, root, name, streaming, **choices)
    if isinstance(rows, datasets.IterableDataset):
        rows = cache_stream(source, split, name, max_samples, **choices)
    return rows if max_samples is None else first_rows(rows, max_samples)


# distance of the frames of a clip in the paper
STRIDE = 4
# keys of an entry of `datasets`, beside its weight
ENTRY_KEYS = (
    "dataset",
    "dataset_config",
    "split",
    "root",
    "video_column",
    "class_level",
    "allow_local_urls",
    "frame_folder_fps",
    "max_samples",
    "manifest",
    "stride",
    "fps",
)


@dataclass
class DataArguments:
    """The videos of a recipe, and the frames and crops of its clips.

    Args:
        dataset: list file, folder, parquet or WebDataset files, or Hub data set id; see `load_rows`.
        datasets: several of them for pre-training, each with `dataset`, `weight` (its share of an epoch in any unit,
            1 by default) and, where it differs, `fps` or `stride`, `root`, `split` and the other keys of its source.
            Images become still clips.
        epoch_videos: videos of an epoch of several data sets; by default as many as all of them have.
        dataset_config: configuration of a Hub data set.
        split, eval_split: splits to train and to evaluate on. Without `eval_split` there is no evaluation.
        eval_dataset: another data set to evaluate on.
        root: folder of the videos of a list file.
        video_column: the column of the videos, if there are several.
        class_level: which sub-folders name the classes, if they are nested: the `first` or the `last`.
        allow_local_urls: whether rows of a data set of the Hub or at a URL may name files of this machine and
            addresses of its network.
        frame_folder_fps: frames per second of folders of frames (`img_00001.jpg`, ...), which are then the videos of
            a folder, or of a list file.
        max_samples: use only the first so many videos.
        manifest: train only on the files that this manifest of `recipes/audit.py` says to use.
        streaming: read the training split while training instead of downloading it first.
        stream_size: number of videos of a stream whose data set does not declare it.
        shuffle_buffer: number of videos of a stream, per worker, to draw the next video from.
        on_bad_video: what to do about training videos that cannot be read: `raise`, `skip` or `substitute`. An
            evaluation leaves them out and reports how many are missing.
        memory_gib: GiB of decoded frames of training videos that each process which reads them (a data worker, or
            the training process) keeps for later epochs. For many epochs of small videos; clips do not change.
        stride: distance of the frames of a clip, 4 by default.
        fps: frames per second of a clip, by the times of the frames, instead of a stride: the distance is 1/fps
            seconds in videos of any rate, also a changing one.
        crop: `multi_scale` (MVD, VideoMAE) or `random_resized` (MAE).
        crop_scales: sides (not areas) of multi-scale crops, as parts of the largest crop (of a square: of the short
            side); the default is the official programs'.
    """

    dataset: str = ""
    datasets: list[dict] | None = None
    epoch_videos: int | None = None
    dataset_config: str | None = None
    split: str = "train"
    eval_split: str | None = None
    eval_dataset: str | None = None
    root: str | None = None
    video_column: str | None = None
    class_level: str | None = None
    allow_local_urls: bool = False
    frame_folder_fps: float | None = None
    max_samples: int | None = None
    manifest: str | None = None
    streaming: bool = False
    stream_size: int | None = None
    shuffle_buffer: int = 256
    on_bad_video: str = "raise"
    memory_gib: float = 0.0
    stride: int | None = None
    fps: float | None = None
    crop: str = "multi_scale"
    crop_scales: list[float] = field(default_factory=lambda: list(MULTI_SCALE))

    def __post_init__(self):
        if self.datasets is not None:
            self._check_mixture()
        elif self.epoch_videos is not None:
            raise ValueError(f"epoch_videos={self.epoch_videos} is for several datasets.")
        elif not self.dataset:
            raise ValueError("No data: give --dataset with a list file, a folder of videos or a Hub data set id.")
        if self.frame_folder_fps is not None:
            check_fps(self.frame_folder_fps, "frame_folder_fps")
        if self.fps is not None:
            check_fps(self.fps)
            if self.stride is not None:
                raise ValueError(f"stride={self.stride} and fps={self.fps:g} exclude each other: leave one out.")
        elif self.stride is None:
            self.stride = STRIDE
        is_file = Path(self.dataset).suffix.lower() in (*LIST_FILE_SUFFIXES, *FILE_BUILDERS)
        if is_file and self.eval_dataset is None and self.eval_split not in (None, self.split):
            raise ValueError(
                f"The file {self.dataset!r} has no splits, eval_split={self.eval_split!r} would be the same videos: "
                "give eval_dataset."
            )

    def _check_mixture(self):
        """Raise ValueError if keys do not go with several data sets, or an entry has unknown keys or no source."""
        given = [key for key in ("dataset", "max_samples", "manifest", "streaming") if getattr(self, key)]
        if given:
            raise ValueError(f"{given[0]}={getattr(self, given[0])!r} does not go with datasets: put it in an entry.")
        if self.eval_split is not None and self.eval_dataset is None:
            raise ValueError(f"eval_split={self.eval_split!r} of several datasets needs eval_dataset.")
        if self.epoch_videos is not None and self.epoch_videos < 1:
            raise ValueError(f"epoch_videos={self.epoch_videos} must be at least 1.")
        if not self.datasets:
            raise ValueError("datasets=[] is empty: give entries such as {dataset: videos, weight: 1}.")
        for entry in self.datasets:
            unknown = sorted(entry.keys() - {"weight", *ENTRY_KEYS})
            if unknown or not entry.get("dataset"):
                wrong = f"has the unknown key {unknown[0]!r}" if unknown else "names no dataset"
                raise ValueError(f"The entry {entry} of datasets {wrong}; keys are weight, {', '.join(ENTRY_KEYS)}.")

    def entries(self) -> dict[str, "DataArguments"]:
        """The arguments of each data set of a mixture by name; raises ValueError if those of one are not valid."""
        found = {}
        for name, entry in zip(entry_names(self.datasets), self.datasets, strict=True):
            own = {key: value for key, value in entry.items() if key != "weight"}
            shared = dict.fromkeys(("datasets", "epoch_videos", "eval_split", "eval_dataset"))
            if {"fps", "stride"} & own.keys():
                shared |= {"fps": None, "stride": None}
            found[name] = replace(self, **(shared | own))
        return found

    @property
    def distance(self) -> dict[str, float]:
        """The distance of the frames of a clip, as an argument of `MVDVideoProcessor`."""
        return {"frame_sampling_rate": self.stride} if self.fps is None else {"fps": self.fps}

    def rows(self, evaluation: bool = False) -> Rows:
        """Rows of the evaluation split, or of the training split without files that the manifest leaves out."""
        choices = source_choices(self)
        if self.datasets is not None and not evaluation:
            raise ValueError(f"datasets={entry_names(self.datasets)} are for pre-training: give one dataset.")
        if evaluation:
            source, split = self.eval_dataset or self.dataset, self.eval_split or self.split
            options = self.root, self.dataset_config, self.streaming, self.max_samples
            return evaluation_rows(source, split, *options, **choices)
        rows = load_rows(self.dataset, self.split, self.root, self.dataset_config, self.streaming, **choices)
        if self.manifest is not None:
            rows = keep_listed(rows, media_column(rows), read_manifest(self.manifest))
        return rows if self.max_samples is None else first_rows(rows, self.max_samples)

    def clips(
        self,
        clip_sampler: ClipSampler,
        *,
        evaluation: bool = False,
        **options,
    ) -> ClipDataset | StreamingClips | None:
        """Clips of the training split, or of the evaluation split: `None` if there is none.

        Options are `label_column`, `label_names`, `problem_type` and `seed`, see [`ClipDataset`].
        """
        if evaluation and self.eval_split is None and self.eval_dataset is None:
            return None
        return self.clips_of(self.rows(evaluation), clip_sampler, evaluation=evaluation, **options)

    def clips_of(
        self, rows: Rows, clip_sampler: ClipSampler, *, evaluation: bool = False, **options
    ) -> ClipDataset | StreamingClips:
        """Clips of rows for training, or for evaluation: options as in [`clips`]."""
        if evaluation:
            return ClipDataset(rows, clip_sampler, **options, on_bad_video="skip")
        if isinstance(rows, datasets.Dataset):
            return ClipDataset(rows, clip_sampler, **options, on_bad_video=self.on_bad_video)
        # the declared size of a stream includes the files that the manifest leaves out
        size = self.stream_size or (None if self.manifest is not None else num_videos(rows, self.split))
        if self.max_samples is not None:
            size = self.max_samples if size is None else min(size, self.max_samples)
        if size is None:
            of_manifest = " of the manifest" if self.manifest is not None else ""
            raise ValueError(
                f"The stream {self.dataset!r} does not say how many videos{of_manifest} it has: give stream_size."
            )
        return StreamingClips(
            rows, clip_sampler, size, **options, on_bad_video=self.on_bad_video, shuffle_buffer=self.shuffle_buffer
        )


def load_clips(
    source: str,
    frames,
    augmentation,
    *,
    mask=None,
    repeats: int = 1,
    label_column: str | Sequence[str] | None = None,
    label_names: LabelNames | None = None,
    problem_type: str | None = None,
    seed: int = 0,
    **options,
) -> ClipDataset | StreamingClips:
    """Training clips of a list file, folder, parquet or WebDataset files, or Hub data set.

    Args:
        source: where the videos are, see `mvd_hf.data.sources.load_rows`.
        frames, augmentation, mask, repeats: as in `mvd_hf.data.clips.ClipSampler`.
        label_column, label_names, problem_type, seed: see [`ClipDataset`].
        options: further fields of `mvd_hf.data.arguments.DataArguments`: `split`, `root`, `max_samples`, `streaming`,
            `on_bad_video`, `fps`, ...

    Raises:
        ValueError: if there is no such source, split, label column or option, or no video.
    """
    try:
        data = DataArguments(dataset=source, **options)
    except TypeError as error:
        raise ValueError(f"load_clips cannot take these options: {error}.") from error
    clip_sampler = ClipSampler(frames, augmentation, mask, repeats, memory_gib=data.memory_gib, fps=data.fps)
    labels = {"label_column": label_column, "label_names": label_names, "problem_type": problem_type}
    return data.clips(clip_sampler, seed=seed, **labels)


@dataclass
class FinetuningClipArguments:
    """Frames, augmentation and mixup of fine-tuning; the defaults are those of the paper.

    Args:
        label_column: column of the labels; `[verb, noun]` for a head of the classifier per column.
        label_names: names of the classes, as a list or a file with a name per line, if the data set has indices only;
            for several columns a mapping of these.
        problem_type: `multi_label_classification` for labels that are lists of classes, `regression` for numbers; by
            default a video has one class (per column).
        sampling: frames of a clip: `dense`, 16 from a random span (Kinetics, UCF101, HMDB51), or `uniform`, one from
            each of 16 parts of the video (Something-Something). By default the lengths of the videos decide.
        repeats: number of clips of each video, with the same frames and different crops. Batch size and learning rate
            count videos.
        rand_augment: specification of RandAugment; `None` for none.
        crop_scale: smallest and largest area of the random crop, as parts of the frame.
        flip: probability of a horizontal flip; 0 if left and right matter. By default 0.5, or 0 if names of classes
            contain left or right.
        erasing: probability of random erasing.
        mixup_alpha, cutmix_alpha, mixup_prob, switch_prob, cutmix_axes: see `mvd_hf.data.mixup.Mixup`.
        label_smoothing: part of each label that is spread over all classes.
        class_weights: `balanced` weights the loss of each class so that rare ones count as much as frequent ones; by
            default every video counts the same. Mixed and smoothed labels are weighted class by class.
    """

    label_column: str | list[str] = "label"
    label_names: list[str] | str | dict[str, list[str] | str] | None = None
    problem_type: str | None = None
    sampling: str | None = None
    repeats: int = 2
    rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float | None = None
    erasing: float = 0.25
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    mixup_prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1
    cutmix_axes: str = "spatial"
    class_weights: str | None = None

    def __post_init__(self):
        if self.class_weights not in (None, "balanced"):
            raise ValueError(f"class_weights={self.class_weights!r} must be balanced, or left out.")
        if self.sampling not in (None, "dense", "uniform"):
            raise ValueError(f"There is no sampling={self.sampling!r}; choose dense or uniform.")
        check_problem_type(self.label_column, self.problem_type)

    def mixup(self, num_labels: int, heads: Mapping[str, int] | None = None) -> Mixup | None:
        """Mixup, CutMix and label smoothing of a batch; `None` if all are off."""
        if not (self.mixup_alpha or self.cutmix_alpha or self.label_smoothing):
            return None
        return Mixup(
            num_labels,
            self.mixup_alpha,
            self.cutmix_alpha,
            self.mixup_prob,
            self.switch_prob,
            self.label_smoothing,
            self.cutmix_axes,
            heads,
        )


def centre_frames(total_frames: int, num_frames: int, stride: int | None = None, generator=None) -> np.ndarray:
    """The single test clip (1, T) of a video: dense with a stride, else uniform. Nothing is random."""
    if stride is None:
        return uniform_test_frames(total_frames, num_frames, num_clips=1)
    return dense_test_frames(total_frames, num_frames, stride, num_clips=1)


def finetuning_clips(
    data: DataArguments,
    keys: FinetuningClipArguments,
    config: MVDConfig,
    rows: Rows | None = None,
    *,
    evaluation: bool = False,
    seed: int = 0,
) -> ClipDataset | StreamingClips | None:
    """Labelled clips for fine-tuning; the evaluation takes the centre clip and crop of each video.

    Args:
        data: the source.
        keys: frames and augmentation of clips.
        config: configuration of the model: frames, image size, normalisation.
        rows: the videos, if they are not loaded from the source.
        evaluation: the evaluation split (`None` if there is none) instead of the training split.
        seed: seed of all random choices.
    """
    if keys.sampling is None or (keys.flip is None and not evaluation):
        raise ValueError(f"sampling={keys.sampling} and flip={keys.flip} must be chosen: see recipes/own_videos.")
    if keys.sampling == "uniform" and data.fps is not None:
        raise ValueError(f"fps={data.fps:g} is for sampling=dense: uniform clips are spread over the whole video.")
    frames = {"num_frames": config.num_frames} | ({"stride": data.stride} if keys.sampling == "dense" else {})
    if evaluation:
        clip_sampler = ClipSampler(
            partial(centre_frames, **frames), ValidationAugmentation(config.frame_size), fps=data.fps
        )
    else:
        clip_sampler = ClipSampler(
            partial(dense_frames if keys.sampling == "dense" else uniform_frames, **frames),
            FinetuningAugmentation(
                config.frame_size,
                keys.rand_augment,
                tuple(keys.crop_scale),
                flip=keys.flip,
                erasing=keys.erasing,
                mean=config.image_mean,
                std=config.image_std,
            ),
            repeats=keys.repeats,
            memory_gib=data.memory_gib,
            fps=data.fps,
        )
    options = {name: getattr(keys, name) for name in ("label_column", "label_names", "problem_type")} | {"seed": seed}
    if rows is None:
        return data.clips(clip_sampler, evaluation=evaluation, **options)
    return data.clips_of(rows, clip_sampler, evaluation=evaluation, **options)


def pretraining_clips(
    data: DataArguments,
    config: MVDConfig,
    training,
    teachers: Mapping | None = None,
    *,
    label_column: str | None = None,
    evaluation: bool = False,
    views: int | None = None,
) -> ClipDataset | StreamingClips | MixtureDataset | None:
    """Clips and masks for stages 1 and 2. An evaluation has one mask per clip and decodes all masked patches.

    Args:
        data: the source.
        config: the model's configuration: frames, image size, mask.
        training: the `mvd_hf.MVDTrainingArguments`: clips of each training video (`clips_per_video`), which is decoded
            once, masks of each clip (`masks_per_clip`), and the `seed` of all random choices.
        teachers: from `mvd_hf.load_teachers`; each gets the same crop in its own size.
        label_column: column of the labels of an online probe.
        evaluation: the evaluation split (`None` if there is none) instead of the training split.
        views: number of fixed views of each training video, for a cache of targets; see [`ClipSampler`].

    Raises:
        ValueError: if keys do not match, or naming the data set of a mixture that cannot be used.
    """
    if data.datasets is not None and not evaluation:
        if label_column is not None:
            raise ValueError(f"label_column={label_column!r} of an online probe takes one dataset, not a mixture.")
        parts = {}
        for name, entry in data.entries().items():
            try:
                parts[name] = pretraining_clips(entry, config, training, teachers, views=views)
            except ValueError as error:
                raise ValueError(f"The entry {name!r} of datasets: {error}") from error
        weights = [entry.get("weight", 1.0) for entry in data.datasets]
        return MixtureDataset(parts, dict(zip(parts, weights, strict=True)), data.epoch_videos, training.seed)
    sizes = [teacher.image_size for teacher in (teachers or {}).values()]
    if config.mask_type == "attention":
        if not teachers:
            raise ValueError("mask_type=attention needs a teacher with guides_masks: choose another one for stage 1.")
        if config.decoder_keep < 1:
            raise ValueError(f"decoder_keep={config.decoder_keep} does not go with mask_type=attention.")
    num_clips = 1 if evaluation else training.clips_per_video
    masks_per_clip = 1 if evaluation else training.masks_per_clip
    mask = mask_sampler(config.mask_type, config.grid, config.mask_ratio, masks_per_clip)
    decoded = None
    if config.num_decoded_patches < config.num_masked_patches and not evaluation:
        decoded = partial(part_to_decode, count=config.num_decoded_patches)
    clip_sampler = ClipSampler(
        partial(pretraining_frames, num_frames=config.num_frames, stride=data.stride, num_clips=num_clips),
        PretrainingAugmentation([config.frame_size, *sizes], data.crop, data.crop_scales),
        mask,
        decoded=decoded,
        memory_gib=0.0 if evaluation else data.memory_gib,
        fps=data.fps,
        views=None if evaluation else views,
    )
    return data.clips(clip_sampler, evaluation=evaluation, label_column=label_column, seed=training.seed)
