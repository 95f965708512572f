"""DetectionTrainer: trains an action detector and scores it with AVA's mean average precision."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate.utils import broadcast_object_list, gather_object

from ..data.clips import BAD_VIDEOS, IS_BLANK, SampleDataset
from ..data.hashing import hash_of_weights
from ..hub.loading import has_class_names
from ..model.configuration_mvd import MVDConfig
from ..model.detection_mvd import MVDForActionDetection
from ..training.arguments import MVDTrainingArguments
from ..training.run import leave
from ..training.samplers import EvaluationSampler
from ..training.trainer import MVDTrainer
from .augmentation import DetectionTestAugmentation, DetectionTrainingAugmentation
from .ava import AVA_ACTIONS, BOX, COLUMNS, KEY, ava_map, named_actions, read_boxes, scored_actions, write_boxes
from .key_frames import KeyFrameReader, KeyFrames, annotated_people, collate_key_frames, detected_people
from .video_folders import VideoFolders

logger = logging.getLogger(__name__)


@dataclass
class DetectionArguments:
    """Videos, annotations and boxes of an action detection data set, see recipes/ava/README.md.

    Args:
        annotations: CSV file of the training set in AVA's format, or several.
        videos: folder of its videos, or several; see `mvd_hf.detection.video_folders.VideoFolders`.
        eval_annotations: CSV file to evaluate on.
        eval_videos: folder of its videos, by default `videos`.
        boxes: CSV or pickle file of the people that a detector found in the key frames of the evaluation; without
            it, the annotated boxes are used.
        min_score: least score of those people.
        excluded, eval_excluded: CSV files of key frames to leave out.
        label_map: the actions (.pbtxt); AVA's 80 by default.
        scored_label_map: the scored actions; by default those of `label_map`, or AVA's 60.
        top_k: number of boxes with an action per key frame that count, by score; 0 for all.
        video_start: second at which the files of whole videos begin.
        stride: every `stride`-th frame is in a clip.
        short_side: pixels to which frames are resized before the crop, and in evaluation.
        box_jitter, color_jitter: factors of the published amounts, 0 for none.
        flip: probability of a horizontal flip.
        min_visible: people with less than this fraction of their box in a training crop are left out.
        max_people: largest number of people in a training clip.
        max_samples: number of key frames to train on, the first ones; all by default.
        on_bad_video: what to do about unreadable training videos: `raise`, `skip` or `substitute`. Evaluation skips
            them; their people count as not found.
    """

    annotations: str | list[str] = ""
    videos: str | list[str] = ""
    eval_annotations: str | None = None
    eval_videos: str | list[str] | None = None
    boxes: str | None = None
    min_score: float = 0.8
    excluded: str | None = None
    eval_excluded: str | None = None
    label_map: str | None = None
    scored_label_map: str | None = None
    top_k: int = 50
    video_start: float = 0.0
    stride: int = 4
    short_side: int = 256
    box_jitter: float = 1.0
    color_jitter: float = 1.0
    flip: float = 0.5
    min_visible: float = 0.0
    max_people: int = 100
    max_samples: int | None = None
    on_bad_video: str = "raise"

    def __post_init__(self):
        for name in ("annotations", "videos"):
            if not getattr(self, name):
                raise ValueError(f"No data: give --{name}, see recipes/ava/README.md.")

    @property
    def actions(self) -> dict[int, str]:
        """Class ids, from 1, and names of the actions to learn."""
        return named_actions(self.label_map, AVA_ACTIONS)

    @property
    def scored(self) -> dict[int, str]:
        """Class ids and names of the scored actions."""
        return scored_actions(self.scored_label_map, self.label_map)

    def training_set(self, config: MVDConfig, seed: int = 0) -> SampleDataset:
        """Key frames with annotated people, jittered and cropped."""
        height, width = config.frame_size
        if height != width:
            raise ValueError(f"Training crops are square, the model wants {height}x{width} pixels.")
        files = [self.annotations] if isinstance(self.annotations, str) else self.annotations
        people = KeyFrames.joined([annotated_people(file, config.num_labels, self.excluded) for file in files])
        videos = VideoFolders(self.videos, self.video_start)
        if self.on_bad_video == "raise":  # now, and not in the middle of an epoch
            videos.check(people.videos)
        augmentation = DetectionTrainingAugmentation(
            height, self.short_side, self.box_jitter, self.color_jitter, self.flip, self.min_visible
        )
        reader = KeyFrameReader(
            videos, augmentation, config.num_frames, self.stride, config.frame_size, config.num_labels, self.max_people
        )
        return SampleDataset(people.first(self.max_samples), reader, seed, self.on_bad_video)

    def evaluation_set(self, config: MVDConfig) -> SampleDataset | None:
        """Whole key frames with annotated or detected people; `None` without `eval_annotations`."""
        if self.eval_annotations is None:
            return None
        if self.boxes is None:
            people = annotated_people(self.eval_annotations, config.num_labels, self.eval_excluded)
        else:
            people = detected_people(self.boxes, self.eval_annotations, self.min_score, self.eval_excluded)
        reader = KeyFrameReader(
            VideoFolders(self.eval_videos or self.videos, self.video_start),
            DetectionTestAugmentation(self.short_side, config.patch_size, mean_grey(config)),
            config.num_frames,
            self.stride,
            config.frame_size,
            None if people.labels is None else config.num_labels,
        )
        return SampleDataset(people, reader, on_bad_video="skip")


def mean_grey(config: MVDConfig) -> tuple[int, ...]:
    """The color, in gray levels, that the model's normalization makes zero."""
    mean = np.broadcast_to(config.image_mean, config.num_channels)
    return tuple(int(level) for level in np.rint(255 * mean))


class DetectionTrainer(MVDTrainer):
    """Trains an `MVDForActionDetection`; evaluation gives `mAP` and the average precision of each action.

    The loss is that of the model divided by the number of clips, so that it does not depend on how a batch is split
    over processes and accumulation steps. Each key frame is evaluated once on any number of processes, in batches of
    equal sizes. On the main process, `evaluation` holds the last `metrics`, `AP` and the table `detections`.

    Args:
        model, args, kwargs: as in [`MVDTrainer`]; the data sets are those of [`DetectionArguments`].
        data: names the annotations of the evaluation and the scored actions.
    """

    # AVA has many key frames, and the scores of an untrained head are meaningless
    evaluates_first = False

    def __init__(self, model: MVDForActionDetection, args: MVDTrainingArguments, data: DetectionArguments, **kwargs):
        kwargs.setdefault("data_collator", collate_key_frames)
        for key in ("clips_per_video", "masks_per_clip"):
            if getattr(args, key) != 1:
                raise ValueError(
                    f"{key}={getattr(args, key)} is for pre-training: detection takes a clip per key frame."
                )
        sets = kwargs.get("eval_dataset")
        if isinstance(sets, dict):
            raise ValueError(
                f"The evaluation sets {', '.join(sets)} cannot be scored together, as eval_annotations are those of "
                "one: evaluate them one by one."
            )
        for number, name in data.actions.items() if has_class_names(model.config) else ():
            known = model.config.id2label.get(number - 1)
            if known != name:
                raise ValueError(
                    f"The class id {number} is {name!r} in the data and {known!r} in the model: load the model with "
                    "mvd_hf.hub.load_detector, which matches classes by name."
                )
        super().__init__(model, args, **kwargs)
        self.data = data
        self.found: list[tuple[np.ndarray, ...]] = []
        self.evaluation: dict = {}

    def _get_eval_sampler(self, eval_dataset):
        return EvaluationSampler(len(eval_dataset), self.args.eval_batch_size * self.args.world_size)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seen = self.model_inputs(inputs)
        del seen["key_frame"]
        outputs = model(**seen)
        loss = self.record({"loss": outputs.loss / len(seen["boxes"])}, inputs)
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Store the probabilities of a batch's people, and record the loss where there are labels."""
        self.bad_videos.add("evaluation", inputs.pop(BAD_VIDEOS, []))
        inputs = self._prepare_inputs(inputs)
        blank = {IS_BLANK: True} if inputs.pop(IS_BLANK, False) else {}
        groups = inputs.get("groups", [inputs])
        if len(groups) > 1 and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "A batch has frames of several sizes, but processes that share a model need equal batches: set "
                "per_device_eval_batch_size=1."
            )
        for group in groups:
            group = dict(group)
            numbers = group.pop("key_frame")
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = model(**group)
            if outputs.loss is not None:
                self.record({"loss": outputs.loss / len(numbers)}, group | blank)
            if not blank:
                is_person = outputs.box_mask.bool()
                kept = numbers[:, None].expand_as(is_person)[is_person], outputs.logits[is_person].float().sigmoid()
                self.found.append(tuple(part.cpu().numpy() for part in kept))
        return None, None, None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ):
        """Evaluate as [`MVDTrainer`] does, with `<prefix>_mAP` over the key frames of all processes."""
        self.found = []
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        found = gather_object(self.found)
        weights = self.accelerator.get_state_dict(self.model)  # on all processes, which may hold parts of it
        scores = [None]
        if self.is_world_process_zero():
            scores = [self.score(found, dataloader.dataset.rows, hash_of_weights(weights))]
        (score,) = broadcast_object_list(scores)
        output.metrics[f"{metric_key_prefix}_mAP"] = score["mAP"]
        if self.is_world_process_zero():
            names = {name: f"{metric_key_prefix}_{name}" for name in ("mAP", "loss", "missing")}
            metrics = {name: output.metrics[key] for name, key in names.items() if key in output.metrics}
            self.evaluation |= {"AP": score["AP"], "metrics": {"missing": 0, **metrics}}
        self.found = []
        return output

    def score(self, found: Sequence[tuple[np.ndarray, ...]], key_frames: KeyFrames, weights: str) -> dict:
        """The metric of all predictions.

        Args:
            found: (indices of key frames (P,), probabilities (P, K)) of every batch of every process.
            key_frames: the people that were evaluated.
            weights: hash of the model's weights.

        Raises:
            RuntimeError: if a key frame was evaluated twice.
        """
        numbers = np.concatenate([part[0] for part in found]) if found else np.zeros(0, dtype=np.int64)
        order = np.argsort(numbers, kind="stable")
        ends = key_frames.ends
        starts = np.concatenate([[0], ends[:-1]])
        counts = np.bincount(numbers, minlength=len(ends))
        if (counts > ends - starts).any():
            raise RuntimeError(f"Key frame {int(counts.argmax())} was evaluated more than once.")
        table = pd.DataFrame(columns=COLUMNS)
        if len(numbers):
            probabilities = np.concatenate([part[1] for part in found])[order]
            rows = np.concatenate([np.arange(starts[n], ends[n]) for n in np.flatnonzero(counts)])
            table = detection_table(key_frames, rows, probabilities, self.data.scored, self.data.top_k)
        self.evaluation = {"detections": table, "num_key_frames": len(key_frames), "weights": weights}
        truth = read_boxes(self.data.eval_annotations)
        return ava_map(truth, table, self.data.top_k, excluded=self.data.eval_excluded, label_map=self.data.scored)

    def run_evaluation(self):
        """Evaluate the model without training and write the results, as the last step of a recipe; see [`run`]."""
        if self.eval_dataset is None:
            raise ValueError("There is nothing to evaluate on: give eval_annotations.")
        self.evaluate()
        self.report_bad_videos()
        self.save_evaluation()
        leave(self)

    def save_evaluation(self) -> dict:
        """Write the last evaluation into `<output_dir>/evaluation/` from the main process, and return its metrics.

        `metrics.json` has the metrics, `average_precision.csv` those of each action, and `detections.csv` the boxes in
        AVA's format, for the official evaluation and [`ava_map`].
        """
        if not self.is_world_process_zero():
            return {}
        folder = Path(self.args.output_dir) / "evaluation"
        folder.mkdir(parents=True, exist_ok=True)
        metrics = {
            "protocol": f"{self.model.config.num_frames}x{self.data.stride}",
            "num_key_frames": self.evaluation["num_key_frames"],
            **self.evaluation["metrics"],
            "weights": self.evaluation["weights"],
        }
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
        names = self.data.scored
        rows = [(number, names[number], value) for number, value in self.evaluation["AP"].items()]
        table = pd.DataFrame(rows, columns=["action", "name", "average_precision"])
        table.to_csv(folder / "average_precision.csv", index=False)
        write_boxes(folder / "detections.csv", self.evaluation["detections"])
        logger.info("mAP %.2f %%; written to %s.", 100 * metrics["mAP"], folder)
        return metrics


def detection_table(
    key_frames: KeyFrames, people: np.ndarray, probabilities: np.ndarray, actions: Mapping[int, str], top_k: int
) -> pd.DataFrame:
    """Detections as a table: the `top_k` boxes with an action of highest score in each key frame, all for 0.

    Args:
        key_frames: the people.
        people: (P,) indices of people among those of all key frames, ascending.
        probabilities: (P, K); a score is the probability of the action times the score of the person.
        actions: class ids to list, with their names.
    """
    numbers = np.array([number for number in actions if number <= probabilities.shape[1]])
    scores = probabilities[:, numbers - 1].astype(np.float64) * key_frames.scores[people][:, None]
    frames = np.repeat(np.searchsorted(key_frames.ends, people, side="right"), len(numbers))
    order = np.lexsort((-scores.ravel(), frames))
    if top_k:
        _, firsts, counts = np.unique(frames[order], return_index=True, return_counts=True)
        order = order[np.arange(len(order)) - np.repeat(firsts, counts) < top_k]
    frames, person = frames[order], people[order // len(numbers)]
    table = pd.DataFrame(key_frames.boxes[person], columns=BOX)
    where = {"video": np.array(key_frames.videos)[frames], "timestamp": key_frames.timestamps[frames]}
    table = table.assign(**where, action=numbers[order % len(numbers)], score=scores.ravel()[order])
    return table[[*KEY, *BOX, "action", "score"]]
