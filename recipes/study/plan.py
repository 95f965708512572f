"""The plan of the study: its arms, the keys of its recipe, and the stages of each seed.

The study compares arms: ways to obtain an encoder. Stages of one seed depend on each other; seeds are independent.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from mvd_hf.arguments import merge, read_yaml
from mvd_hf.model.configuration_mvd import MVDConfig
from mvd_hf.teachers import TeacherConfig
from mvd_hf.training.costs import (
    encoder_flops,
    reconstruction_flops,
    student_parts,
    teacher_flops,
    teacher_model_config,
)

from .clips import VideoArguments, prepare_clips, with_share, write_list
from .stages import Stage

# folders of the videos, of the lists and of stored targets
VIDEOS, LISTS, TARGETS = "videos", "lists", "targets"
# keys of the student's training that VideoMAE shares, so that both take the same number of updates
SCHEDULE = (
    *("num_train_epochs", "warmup_epochs", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "schedule_epochs", "masks_per_clip"),
)


@dataclass(frozen=True)
class Arm:
    """One way to obtain an encoder.

    Args:
        title: name in the report.
        teachers: teachers that the student is distilled from.
        pixels: whether the encoder reconstructs pixels instead (VideoMAE).
        equal: whether VideoMAE takes as many `updates` as the students, or as much `compute` as the student of all
            teachers, their forward passes included.
    """

    title: str
    teachers: tuple[str, ...] = ()
    pixels: bool = False
    equal: str = "updates"


ARMS = {
    "scratch": Arm("from scratch"),
    "videomae": Arm("VideoMAE, equal updates", pixels=True),
    "videomae_compute": Arm("VideoMAE, equal compute", pixels=True, equal="compute"),
    "image": Arm("student of the image teacher", ("image",)),
    "video": Arm("student of the video teacher", ("video",)),
    "both": Arm("student of both", ("image", "video")),
}


@dataclass
class StudyArguments:
    """The keys of a study's recipe.

    Args:
        dataset: labelled videos: a folder of class folders, a list file or a data set of the Hub.
        output: folder of the study.
        evaluate_on: `validation` (a part of the training videos) to choose settings, or `test`, which is read once.
        seeds: each repeats all training, the video teacher included, with another choice of labelled videos.
        shares: parts of the training labels to fine-tune and probe with.
        processes: stages that run at the same time.
        arms: names from `ARMS`.
        videos: fields of [`recipes.study.clips.VideoArguments`].
        encoder: `MVDConfig` fields of the encoder, the same in every arm.
        clips: data keys of every stage: `stride`, `sampling`, ...
        training: keys of every training run.
        image_teacher: entry of `teachers` in `recipes/distill.py`.
        video_teacher: keys of `recipes/pretrain.py`.
        teacher_loss: training goes on, with twice the epochs each time and at most three times, until the video
            teacher's loss is below this; 1 is that of an untrained one.
        student: keys of `recipes/distill.py`.
        videomae: keys of `recipes/pretrain.py` for the arms without a teacher; they share the student's schedule.
        finetune: keys of `recipes/finetune.py`, laid over those of `recipes/own_videos/full.yaml`.
        scratch: keys of `recipes/finetune.py` that differ from scratch.
        probe: keys of `recipes/probe.py`.
    """

    dataset: str = ""
    output: str = "outputs/study"
    evaluate_on: str = "test"
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    shares: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    processes: int = 2
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    videos: Annotated[dict, VideoArguments] = field(default_factory=dict)
    encoder: dict = field(default_factory=dict)
    clips: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    image_teacher: dict = field(default_factory=dict)
    video_teacher: dict = field(default_factory=dict)
    teacher_loss: float = 0.8
    student: dict = field(default_factory=dict)
    videomae: dict = field(default_factory=dict)
    finetune: dict = field(default_factory=dict)
    scratch: dict = field(default_factory=dict)
    probe: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("There is no dataset: give --dataset with a folder of class folders.")
        if self.evaluate_on not in ("validation", "test"):
            raise ValueError(f"evaluate_on={self.evaluate_on!r} must be validation or test.")
        unknown = sorted(set(self.arms) - set(ARMS))
        if unknown or not self.arms:
            raise ValueError(f"arms={self.arms}: choose from {', '.join(ARMS)}.")
        for name in ("seeds", "shares"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must be different numbers.")
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares={self.shares} must be above 0 and at most 1.")
        if self.processes < 1:
            raise ValueError(f"processes={self.processes} must be at least 1.")
        missing = [key for key in SCHEDULE[:3] if key not in self.student]
        if missing:
            raise ValueError(f"student needs {missing[0]}, which VideoMAE shares.")


class Plan:
    """The stages of a study.

    Args:
        study: the keys of its recipe.
        recipes: folder of the recipe scripts.
    """

    def __init__(self, study: StudyArguments, recipes: str | Path):
        self.study, self.recipes = study, Path(recipes)
        self.folder = Path(study.output) / study.evaluate_on
        self.names: list[str] = []

    def prepare(self):
        """Copy the videos, and write the lists of each seed."""
        study = self.study
        table = prepare_clips(study.dataset, VideoArguments(**study.videos), Path(study.output) / VIDEOS)
        self.names = sorted(set(table["label"]) - {""})
        tests = study.evaluate_on == "test"
        train = table[table["part"] != "test"] if tests else table[table["part"] == "train"]
        labelled = train["label"] != ""
        is_tested = (table["part"] == study.evaluate_on) & (table["label"] != "")
        write_list(table[is_tested], self.names, self.folder / LISTS / "test.csv")
        for seed, share in itertools.product(study.seeds, study.shares):
            write_list(with_share(train[labelled], share, seed), self.names, self.list_of(seed, share))
        write_list(train if labelled.all() else train[~labelled], self.names, self.folder / LISTS / "all.csv")

    def list_of(self, seed: int, share: float) -> Path:
        """The list of the labelled training videos of a seed."""
        return self.folder / LISTS / f"seed{seed}_{100 * share:g}.csv"

    def stages(self) -> list[Stage]:
        """All stages, each after those it needs."""
        return [stage for seed in self.study.seeds for stage in self.of_seed(seed)]

    def of_seed(self, seed: int) -> Iterator[Stage]:
        """The stages of one seed: teacher, encoder of each arm, fine-tunings with each share of the labels, probes."""
        study = self.study
        if any("video" in ARMS[arm].teachers for arm in study.arms):
            yield self.video_teacher(seed)
        for arm in study.arms:
            if arm != "scratch":
                yield self.pixels(seed, arm) if ARMS[arm].pixels else self.student(seed, arm)
        for share, arm in itertools.product(study.shares, study.arms):
            yield self.finetuning(seed, arm, share)
        for share in study.shares:
            yield self.probe(seed, share)

    def stage(self, seed: int, name: str, script: str, keys: Mapping, needs: Sequence[str] = (), **options) -> Stage:
        """A stage of a seed, with the keys that all stages share."""
        name, kind = f"seed{seed}/{name}", name
        if script != "probe":
            keys = merge(self.study.training, keys)
        keys = merge(merge(self.study.clips, {"dataset": str(self.folder / LISTS / "all.csv")}), keys)
        keys |= {"output_dir": str(self.folder / name), "seed": seed}
        path = str(self.recipes / f"{script}.py")
        return Stage(name, kind, path, keys, tuple(f"seed{seed}/{n}" for n in needs), **options)

    def place(self, seed: int, name: str) -> str:
        """The folder of a stage."""
        return str(self.folder / f"seed{seed}" / name)

    def input_size(self) -> dict:
        """The fields of the encoder that a teacher shares."""
        names = ("image_size", "patch_size", "num_frames", "tubelet_size")
        return {name: self.study.encoder[name] for name in names if name in self.study.encoder}

    def video_teacher(self, seed: int) -> Stage:
        """The VideoMAE that teaches."""
        keys = merge({"model": "videomae-s", "config": self.input_size()}, self.study.video_teacher)
        return self.stage(seed, "video_teacher", "pretrain", keys, enough=self.study.teacher_loss)

    def schedule(self) -> dict:
        """The keys of the student's schedule, which VideoMAE shares."""
        return {key: self.study.student[key] for key in SCHEDULE if key in self.study.student}

    def student(self, seed: int, arm: str) -> Stage:
        """The student of an arm's teachers."""
        entries = {"image": self.study.image_teacher, "video": {"model": self.place(seed, "video_teacher")}}
        keys = {"student": "mvd-s", "config": self.study.encoder}
        keys |= {"teachers": {name: entries[name] for name in ARMS[arm].teachers}}
        if "target_cache" in self.study.student:
            keys["target_cache"] = {"folder": str(self.folder / TARGETS)}
        needs = ["video_teacher"] if "video" in ARMS[arm].teachers else []
        return self.stage(seed, f"{arm}/encoder", "distill", merge(keys, self.study.student), needs)

    def pixels(self, seed: int, arm: str) -> Stage:
        """A VideoMAE of the student's size."""
        keys = merge({"model": "videomae-s", "config": self.study.encoder}, self.study.videomae)
        keys = merge(keys, self.schedule())
        if ARMS[arm].equal == "compute":
            keys["num_train_epochs"] = round(keys["num_train_epochs"] * self.compute_ratio(), 2)
        return self.stage(seed, f"{arm}/encoder", "pretrain", keys)

    def compute_ratio(self) -> float:
        """FLOPs per clip of the student of both teachers, over those of VideoMAE of its size.

        The teachers' forward passes count for every clip, also where their targets are stored.
        """
        study = self.study
        masks = study.student.get("masks_per_clip", 1)
        image = TeacherConfig.from_entry("image", study.image_teacher)
        video = MVDConfig.from_name("videomae-s", **merge(self.input_size(), study.video_teacher.get("config", {})))
        config = merge(study.encoder, study.student.get("config", {}))
        widths = {"image": teacher_model_config(image.model).hidden_size, "video": video.hidden_size}
        student = MVDConfig.from_name("mvd-s", **config, teacher_dims=widths)
        own = sum(part.training for part in student_parts(student, masks))
        taught = own + teacher_flops(image, student) + encoder_flops(video)
        pixels = MVDConfig.from_name("videomae-s", **merge(study.encoder, study.videomae.get("config", {})))
        return taught / (masks * reconstruction_flops(pixels))

    def encoder_of(self, seed: int, arm: str) -> str:
        """The model that an arm is fine-tuned from."""
        return "mvd-s" if arm == "scratch" else self.place(seed, f"{arm}/encoder")

    def finetuning(self, seed: int, arm: str, share: float) -> Stage:
        """Fine-tuning with a share of the labels, and its test."""
        lists = {
            "dataset": str(self.list_of(seed, share)),
            "eval_dataset": str(self.folder / LISTS / "test.csv"),
            "label_names": self.names,
        }
        keys = read_yaml(self.recipes / "own_videos" / "full.yaml") | {"compare_content": False}
        keys = merge(merge(keys, self.study.finetune), lists)
        keys = merge(keys, {"model": self.encoder_of(seed, arm), "config": self.study.encoder})
        if arm == "scratch":
            keys = merge(keys, self.study.scratch)
        needs = [] if arm == "scratch" else [f"{arm}/encoder"]
        return self.stage(seed, f"{arm}/finetune_{100 * share:g}", "finetune", keys, needs)

    def probe(self, seed: int, share: float) -> Stage:
        """Probes of all frozen encoders and teachers with a share of the labels, beside the baselines."""
        arms = [arm for arm in self.study.arms if arm != "scratch"]
        taught = {name for arm in arms for name in ARMS[arm].teachers}
        models = {f"student_{arm}": {"model": self.place(seed, f"{arm}/encoder")} for arm in arms}
        needs = [f"{arm}/encoder" for arm in arms]
        before = self.study.shares.index(share) - 1
        if before >= 0:  # one after the other, as they share the features
            needs.append(f"probe_{100 * self.study.shares[before]:g}")
        if "image" in taught:
            models["image_teacher"] = {"model": self.study.image_teacher["model"]}
        if "video" in taught:
            models["video_teacher"] = {"model": self.place(seed, "video_teacher")}
        for arm in arms[:1]:
            models["random"] = models[f"student_{arm}"] | {"random_weights": True}
        keys = {
            "models": models,
            "baselines": ["majority", "pixels"],
            "features_dir": self.place(seed, "features"),
            "dataset": str(self.list_of(seed, share)),
            "eval_dataset": str(self.folder / LISTS / "test.csv"),
            "label_names": self.names,
            "compare_content": False,
        }
        keys = merge(keys, self.study.probe)
        # the recipe may say how to read a teacher that these arms do without
        keys["models"] = {name: entry for name, entry in keys["models"].items() if "model" in entry}
        return self.stage(seed, f"probe_{100 * share:g}", "probe", keys, needs)
