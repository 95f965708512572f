"""The list of the videos that a fine-tuning kept for validation, from which a later test reads them again."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets

from ..data.arguments import DataArguments, FinetuningClipArguments
from ..data.sources import load_rows, media_column, media_name

HELD_OUT_NAME = "held_out.json"


@dataclass
class HeldOut:
    """Held-out videos: their source and their names in it.

    Args:
        dataset, dataset_config, split, root, video_column, class_level, frame_folder_fps: as in
            `mvd_hf.data.arguments.DataArguments`.
        label_column, label_names: as in `mvd_hf.data.arguments.FinetuningClipArguments`.
        videos: names of the videos, see `mvd_hf.data.sources.media_name`.
    """

    dataset: str
    dataset_config: str | None
    split: str
    root: str | None
    video_column: str | None
    class_level: str | None
    label_column: str | list[str]
    label_names: list[str] | str | dict[str, list[str] | str] | None
    videos: list[str]
    frame_folder_fps: float | None = None

    @classmethod
    def of(cls, validation: datasets.Dataset, data: DataArguments, keys: FinetuningClipArguments) -> "HeldOut":
        """The held-out videos of a run, whose `data` name the split they are from."""
        source = data.eval_dataset or data.dataset
        return cls(
            dataset=os.path.abspath(source) if os.path.exists(source) else source,
            dataset_config=data.dataset_config,
            split=data.eval_split or data.split,
            root=None if data.root is None or "://" in data.root else os.path.abspath(data.root),
            video_column=data.video_column,
            class_level=data.class_level,
            label_column=keys.label_column,
            label_names=keys.label_names,
            videos=[media_name(item) for item in validation[media_column(validation)]],
            frame_folder_fps=data.frame_folder_fps,
        )

    def save(self, folder: Path):
        """Write the list into the folder of the model."""
        (folder / HELD_OUT_NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, model: str | Path) -> "HeldOut | None":
        """The list in the folder of a model, or, for its `best` or `ema`, in that of the run; `None` without one."""
        folders = [Path(model)] + ([Path(model).parent] if Path(model).name in ("best", "ema") else [])
        path = next((folder / HELD_OUT_NAME for folder in folders if (folder / HELD_OUT_NAME).is_file()), None)
        return None if path is None else cls(**json.loads(path.read_text(encoding="utf-8")))

    def rows(self, allow_local_urls: bool = False) -> datasets.Dataset:
        """The held-out rows of the source; raises ValueError if they are not all there."""
        rows = load_rows(
            self.dataset,
            self.split,
            self.root,
            self.dataset_config,
            video_column=self.video_column,
            class_level=self.class_level,
            allow_local_urls=allow_local_urls,
            frame_folder_fps=self.frame_folder_fps,
        )
        wanted = set(self.videos)
        found = [i for i, item in enumerate(rows[media_column(rows)]) if media_name(item) in wanted]
        if len(found) != len(self.videos):
            raise ValueError(
                f"{self.dataset!r} has {len(found)} of the {len(self.videos)} held-out videos, as it has changed: "
                "give --dataset."
            )
        return rows.select(found)
