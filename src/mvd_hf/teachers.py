"""Frozen teachers: models that turn a clip into one feature per patch of the student's grid."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import AutoModel

Grid = tuple[int, int, int]


@dataclass
class TeacherConfig:
    """One teacher, as a YAML entry names it.

    Args:
        model: Hub id or local folder.
        frames: what the teacher sees: `first_of_tubelet` (the first frame of each of the student's tubelets, as
            images: MVD's image teacher) or `clip` (all frames). By default images for a teacher of one frame.
        image_size: pixels of its square input; by default its patch size times the student's rows (196 for patch 14).
        norm: features `pre` (MVD) or `post` the final layer norm.
        target_norm: `none` (MVD), or `layernorm`: standardise every feature vector (no affine parameters, eps 1e-6).
        loss: `smooth_l1` (MVD, beta 1), `l1` or `l2`.
        weight: factor of its loss in the sum.

    Raises:
        ValueError: if a choice is none of those.
    """

    model: str
    frames: str | None = None
    image_size: int | None = None
    norm: str = "pre"
    target_norm: str = "none"
    loss: str = "smooth_l1"
    weight: float = 1.0

    def __post_init__(self):
        for field, choices in {
            "frames": (None, "first_of_tubelet", "clip"),
            "norm": ("pre", "post"),
            "target_norm": ("none", "layernorm"),
            "loss": ("smooth_l1", "l1", "l2"),
        }.items():
            if getattr(self, field) not in choices:
                known = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"{field}={getattr(self, field)!r} of a teacher must be one of {known}.")


class Teacher:
    """A frozen model and how to look through it: `teacher(clips)` gives targets (B, L, D).

    Args:
        config: what to do with the model.
        model: the frozen network.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.

    Raises:
        ValueError: if no input makes the teacher's patches match the student's.
    """

    def __init__(self, config: TeacherConfig, model: nn.Module, student_grid: Grid, num_frames: int):
        self.config, self.model, self.student_grid = config, model.eval().requires_grad_(False), student_grid
        self.stride = num_frames // student_grid[0]
        sees_images = model.config.num_frames == 1 if config.frames is None else config.frames == "first_of_tubelet"
        self.frames = "first_of_tubelet" if sees_images else "clip"
        self.feature_dim = model.config.hidden_size
        patch_size, tubelet_size = model.config.patch_size, model.config.tubelet_size
        time, rows, columns = student_grid
        self.image_size = patch_size * rows if config.image_size is None else config.image_size
        seen = 1 if sees_images else num_frames
        grid = (
            time if sees_images and tubelet_size == 1 else seen // tubelet_size,
            *[self.image_size // patch_size] * 2,
        )
        if grid != student_grid or self.image_size % patch_size or seen % tubelet_size:
            raise ValueError(
                f"The teacher {config.model!r} gives {grid[0]}x{grid[1]}x{grid[2]} patches (image_size="
                f"{self.image_size}, patch {patch_size}, {seen} frames, tubelet {tubelet_size}) for the student's "
                f"{time}x{rows}x{columns}. Its patches match with image_size={patch_size * rows} for a square student "
                f"and, on clips, {time * tubelet_size} frames."
            )

    def to(self, *args, **kwargs) -> "Teacher":
        """Move or cast the model."""
        self.model.to(*args, **kwargs)
        return self

    def __call__(self, clips: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Targets (B, L, D) for clips (B, T, C, S, S) by their size S: uint8, or already normalised floats."""
        if self.image_size not in clips:
            raise ValueError(
                f"The teacher {self.config.model!r} sees {self.image_size}x{self.image_size} pixels, the batch has "
                f"{sorted(clips)}: let the data set make clips of that size too (`sizes` of its augmentation)."
            )
        clip = clips[self.image_size]
        batch = clip.shape[0]
        if self.frames == "first_of_tubelet":
            clip = clip[:, :: self.stride].flatten(0, 1)[:, None]
        features = self.model(pixel_values=clip).last_hidden_state
        tokens = self.student_grid[0] * self.student_grid[1] * self.student_grid[2]
        per_input = tokens * batch // clip.shape[0]
        features = features[:, features.shape[1] - per_input :].reshape(batch, tokens, self.feature_dim)
        if self.config.target_norm == "layernorm":
            features = nn.functional.layer_norm(features, (self.feature_dim,), eps=1e-6)
        return features


def load_teachers(
    teachers: Mapping[str, TeacherConfig | Mapping | str], student_grid: Grid, num_frames: int
) -> dict[str, Teacher]:
    """Frozen teachers by name, on the CPU in float32.

    Args:
        teachers: per name a [`TeacherConfig`], its fields, or just the model's id or folder.
        student_grid: patches of the student's clip, (time, rows, columns).
        num_frames: frames of the student's clip.

    Raises:
        ValueError: if an entry has an unknown field, or a model cannot teach that grid.
    """
    loaded = {}
    for name, entry in teachers.items():
        if isinstance(entry, Mapping):
            known = [field.name for field in fields(TeacherConfig)]
            unknown = sorted(entry.keys() - set(known))
            if unknown or "model" not in entry:
                problem = f"unknown keys {', '.join(unknown)}" if unknown else "no key 'model'"
                raise ValueError(f"The teacher {name!r} has {problem}; the keys are {', '.join(known)}.")
            entry = TeacherConfig(**entry)
        elif isinstance(entry, str):
            entry = TeacherConfig(model=entry)
        model = AutoModel.from_pretrained(entry.model, dtype=torch.float32, add_final_norm=entry.norm == "post")
        loaded[name] = Teacher(entry, model, student_grid, num_frames)
    return loaded
