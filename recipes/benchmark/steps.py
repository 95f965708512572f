"""Speed and phases of the distillation step on random clips, compared with a naive step."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from mvd_hf.arguments import Plain, keys_of, read_value
from mvd_hf.data.masking import NOISE, mask_sampler, part_to_decode
from mvd_hf.model.configuration_mvd import MVDConfig, Size, compact_size, height_and_width, size_text
from mvd_hf.model.modeling_mvd import MVDForFeatureDistillation, MVDModel
from mvd_hf.teachers.cache import CachedTeacher, CachingCollator, TargetCacheConfig, load_cached_teachers
from mvd_hf.teachers.targets import split_features
from mvd_hf.teachers.teacher import Teacher, TeacherConfig, load_teacher
from mvd_hf.training.arguments import MVDTrainingArguments
from mvd_hf.training.costs import distillation_parts, fit_to_teachers
from mvd_hf.training.distillation import DistillationTrainer

from .models import check_choices, check_counts, random_clips, random_masks
from .phases import PhaseClock, host_waits
from .reference import NaiveStep
from .reports import about
from .timing import DTYPES, Contender, Race, choose_device

STEP_TITLES = {"step": "Distillation step", "phases": "Phases of a step"}
REFERENCE = "naive reference"


@dataclass
class StepVariant:
    """Changes of a recipe's step; `None` keeps the recipe's value.

    Args:
        masks_per_clip, decoder_keep: see `mvd_hf.MVDTrainingArguments` and `mvd_hf.MVDConfig`.
        teacher_dtype: dtype of the weights of all teachers.
        compile_teachers: whether the teachers are compiled.
        compile: whether the student and the loss are compiled.
        attention: implementation of the student's attention.
        cached: whether targets are read from disk; they are found by the hash of the clips in every step.
    """

    masks_per_clip: int | None = None
    decoder_keep: float | None = None
    teacher_dtype: str | None = None
    compile_teachers: bool | None = None
    compile: bool = False
    attention: str | None = None
    cached: bool = False

    @classmethod
    def parse(cls, text: str) -> "StepVariant":
        """A variant from `key=value` words, such as `masks_per_clip=4 compile=true`.

        Raises:
            ValueError: for any other word and for unknown keys.
        """
        types, values = keys_of(cls), {}
        for word in text.split():
            key, _, value = word.partition("=")
            if key not in types or not value:
                raise ValueError(f"The variant {text!r} has {word!r}; write key=value with {', '.join(types)}.")
            values[key] = read_value(Plain(value), types[key], key)
        return cls(**values)


@dataclass
class StepBenchmarkArguments:
    """Keys of the benchmark of the step.

    Args:
        output: folder of the report.
        variants: steps to measure, as `key=value` words of a [`StepVariant`]; an empty string is the recipe's step.
        with_reference: whether to measure the naive step, too, and to compare the others with it.
        dtype: `float32`, or `bfloat16` or `float16` for autocast.
        batch_size: clips per step.
        device: `cuda` or `cpu`; by default `cuda` if available.
        rounds: measured steps of each variant.
        seed: seed of all random choices.
    """

    output: str = "outputs/benchmarks"
    variants: list[str] = field(default_factory=lambda: [""])
    with_reference: bool = True
    dtype: str = "float32"
    batch_size: int = 2
    device: str | None = None
    rounds: int = 5
    seed: int = 0

    def __post_init__(self):
        check_choices("dtype", [self.dtype], DTYPES)
        check_counts(batch_size=self.batch_size, rounds=self.rounds)
        for variant in self.variants:
            StepVariant.parse(variant)


@dataclass
class Distillation:
    """The student and teachers of a recipe, to build models from.

    Args:
        config: the student's configuration.
        teachers: by name, a model or the fields of a `mvd_hf.TeacherConfig`.
        masks_per_clip: masks per clip.
        is_cached: whether the targets are read from disk.
    """

    config: MVDConfig
    teachers: Mapping[str, Mapping | str]
    masks_per_clip: int = 1
    is_cached: bool = False

    @classmethod
    def from_recipe(cls, student: str, config: Mapping, teachers: Mapping, masks_per_clip: int) -> "Distillation":
        """The student by its name and the fields that differ, with a decoder for each teacher."""
        config = MVDConfig.from_name(student, **config)
        fit_to_teachers(config, teachers)
        return cls(config, teachers, masks_per_clip)

    def varied(self, variant: StepVariant) -> "Distillation":
        """The same with the changes of a variant."""
        config, teachers = copy.deepcopy(self.config), {}
        if variant.decoder_keep is not None:
            config.decoder_keep = variant.decoder_keep
        if config.mask_type == "attention" and config.decoder_keep < 1:
            raise ValueError(f"decoder_keep={config.decoder_keep} does not go with mask_type=attention.")
        if variant.attention is not None:
            config._attn_implementation = variant.attention
        for name, entry in self.teachers.items():
            changes = {"dtype": variant.teacher_dtype, "compile": variant.compile_teachers}
            entry = {"model": entry} if isinstance(entry, str) else dict(entry)
            teachers[name] = entry | {key: value for key, value in changes.items() if value is not None}
        return Distillation(config, teachers, variant.masks_per_clip or self.masks_per_clip, variant.cached)

    def load_teachers(self) -> dict[str, Teacher]:
        """The teachers; a missing folder with the name of a published size gives a teacher with random weights.

        Raises:
            ValueError: if a teacher cannot be loaded and its name is no published size.
        """
        loaded = {}
        for name, entry in self.teachers.items():
            keys = TeacherConfig.from_entry(name, entry)
            model = Path(keys.model)
            try:
                config = None if model.exists() else MVDConfig.from_name(model.name)
            except ValueError:
                config = None
            if config is None:
                loaded[name] = load_teacher(keys, self.config.grid, self.config.num_frames)
            else:
                encoder = MVDModel(config, add_final_norm=False).to(DTYPES[keys.dtype])
                loaded[name] = Teacher(keys, encoder, self.config.grid, self.config.num_frames)
        return loaded

    def load_cached_teachers(self, folder: Path) -> dict[str, CachedTeacher]:
        """The teachers with targets in a folder, where those with random weights are saved first."""
        entries = {}
        for name, entry in self.teachers.items():
            keys = TeacherConfig.from_entry(name, entry)
            saved = folder / name
            if not Path(keys.model).exists() and not saved.exists():
                MVDModel(MVDConfig.from_name(Path(keys.model).name)).save_pretrained(saved)
            entries[name] = replace(keys, model=str(saved) if saved.exists() else keys.model)
        cache = TargetCacheConfig(str(folder / "targets"))
        return load_cached_teachers(entries, cache, self.config.grid, self.config.num_frames)

    @property
    def flops(self) -> int:
        """Model FLOPs of training on one clip."""
        parts = distillation_parts(self.config, self.teachers, self.masks_per_clip)
        return sum(part.training for part in parts if not (self.is_cached and part.kind == "teacher"))

    def batch(self, count: int, sizes: Sequence[Size], seed: int) -> dict[str, torch.Tensor]:
        """A random batch as from the collator: masks, and clips of the student's size and the teachers' `sizes`."""
        config, masks = self.config, self.masks_per_clip
        clips = random_clips(config, count, torch.device("cpu"), seed)
        batch = {"pixel_values": clips}
        for size in set(sizes) - {compact_size(config.image_size)}:
            generator = torch.Generator().manual_seed(seed)
            shape = (*clips.shape[:-2], *height_and_width(size))
            view = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            batch[f"pixel_values_{size_text(size)}"] = view
        if config.mask_type == "attention":
            draw = mask_sampler(config.mask_type, config.grid, config.mask_ratio, count * masks)
            key, drawn = NOISE, draw(generator=torch.Generator().manual_seed(seed)).view(count * masks, -1)
        else:
            key, drawn = "bool_masked_pos", random_masks(config, count * masks, torch.device("cpu"), seed)
        batch[key] = drawn.unflatten(0, (count, masks)) if masks > 1 else drawn
        if config.num_decoded_patches < config.num_masked_patches:
            generator = torch.Generator().manual_seed(seed)
            batch["bool_decoded_pos"] = part_to_decode(batch["bool_masked_pos"], config.num_decoded_patches, generator)
        return batch


def official_batch(batch: Mapping[str, torch.Tensor], config: MVDConfig) -> dict[str, torch.Tensor]:
    """A batch as the official data loader makes it: normalised float clips (B, C, T, H, W) and masks (B, L)."""
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (config.image_mean, config.image_std))
    views = [value for name, value in batch.items() if name.startswith("pixel_values")]
    student, teacher = (((view / 255 - mean) / std).transpose(1, 2).contiguous() for view in (views[0], views[-1]))
    return {"student": student, "teacher": teacher, "mask": batch["bool_masked_pos"]}


def pinned(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch in pinned memory, if the device is a GPU."""
    return {name: value.pin_memory() if device.type == "cuda" else value for name, value in batch.items()}


class TrainerStep:
    """Our training step: loss, backward pass and optimizer of the trainer, on the same batch in every call.

    Args:
        distillation: student and teachers.
        arguments: precision, batch and device.
        compiles: whether the student is compiled.
    """

    def __init__(self, distillation: Distillation, arguments: StepBenchmarkArguments, compiles: bool = False):
        device = choose_device(arguments.device)
        training = MVDTrainingArguments(
            output_dir=arguments.output,
            use_cpu=device.type == "cpu",
            bf16=arguments.dtype == "bfloat16",
            fp16=arguments.dtype == "float16",
            torch_compile=compiles,
            per_device_train_batch_size=arguments.batch_size,
            masks_per_clip=distillation.masks_per_clip,
        )
        torch.manual_seed(arguments.seed)
        student = MVDForFeatureDistillation(distillation.config)
        if distillation.is_cached:
            teachers = distillation.load_cached_teachers(Path(arguments.output) / "cached")
        else:
            teachers = distillation.load_teachers()
        self.trainer = DistillationTrainer(student, teachers, args=training)
        self.optimizer = self.trainer.create_optimizer()
        self.model, self.prepared_optimizer = self.trainer.accelerator.prepare(student, self.optimizer)
        self.model.train()
        sizes = [teacher.image_size for teacher in teachers.values()]
        self.batch = pinned(distillation.batch(arguments.batch_size, sizes, arguments.seed), device)
        self.look_up = CachingCollator(dict, self.trainer.cached) if distillation.is_cached else dict
        if self.trainer.norms:  # as before the first step of a run
            inputs = self.trainer._prepare_inputs(self.look_up(self.batch))
            parts = split_features(self.trainer.teacher_features(inputs), self.trainer.targets)
            for name, norm in self.trainer.norms.items():
                norm.update(parts[name], self.trainer.sum_tensor)
                norm.finish(name)
        self.clock: PhaseClock | None = None
        self.compiles = compiles

    def phase(self, name: str):
        """A phase of the clock, if it runs."""
        return nullcontext() if self.clock is None else self.clock.phase(name)

    def __call__(self):
        trainer, model = self.trainer, self.model
        if self.clock is not None and self.compiles:
            model = partial(self.watched_forward, model)
        with self.phase("target lookup"):
            batch = self.look_up(self.batch)
        with self.phase("host to device"):
            inputs = trainer._prepare_inputs(batch)
        with self.phase("loss and diagnostics"):
            loss = trainer.compute_loss(model, inputs)
        with self.phase("backward"):
            trainer.accelerator.backward(loss)
        with self.phase("optimizer"):
            trainer.accelerator.clip_grad_norm_(self.model.parameters(), float("inf"))  # the norm, as the trainer
            self.prepared_optimizer.step()
            self.model.zero_grad()

    def watched_forward(self, model: Callable, **inputs):
        """The compiled student, as one phase."""
        with self.phase("student"):
            return model(**inputs)

    def phases(self, rounds: int) -> dict[str, float]:
        """Mean milliseconds of each phase over `rounds` steps."""
        self.clock = PhaseClock(self.trainer.args.device)
        teachers = {} if self.trainer.cached else self.trainer.teachers
        watch(self.clock, teachers, None if self.compiles else self.trainer.model)
        for _ in range(rounds):
            self()
        self.clock.mark("end")
        total = self.clock.read()
        self.clock = None
        return {name: value / rounds for name, value in total.items()}


def watch(clock: PhaseClock, teachers: Mapping[str, Teacher], student: MVDForFeatureDistillation | None):
    """Make the teachers and the student's encoder and decoders phases; pass `None` for a compiled student."""
    for name, teacher in teachers.items():
        clock.watch(teacher, f"teacher {name}")
    if student is not None:
        clock.watch(student.mvd, "student encoder")
        for decoder in student.decoders.values():
            clock.watch(decoder, "decoders")


class ReferenceStep:
    """The naive step, on the same batch as ours in the format of the official data loader."""

    compiles = False

    def __init__(self, distillation: Distillation, arguments: StepBenchmarkArguments):
        device = choose_device(arguments.device)
        torch.manual_seed(arguments.seed)
        student = MVDForFeatureDistillation(distillation.config).to(device)
        teachers = distillation.load_teachers()
        for teacher in teachers.values():
            teacher.to(device)
        self.step = NaiveStep(student, teachers, precision=arguments.dtype)
        self.optimizer = self.step.optimizer
        sizes = [teacher.image_size for teacher in teachers.values()]
        batch = distillation.batch(arguments.batch_size, sizes, arguments.seed)
        self.batch = pinned(official_batch(batch, distillation.config), device)

    def __call__(self):
        self.step(self.batch)


def phase_rows(columns: Mapping, phases: Mapping[str, float]) -> list[dict]:
    """A row for each phase of a step: milliseconds and share."""
    total = sum(phases.values())
    return [{**columns, "phase": name, "ms": value, "share": value / total} for name, value in phases.items()]


def count_waits(step: TrainerStep | ReferenceStep, device: torch.device) -> int:
    """How often a step waits for values of the device, without the optimizer, whose counters are on the host."""
    before: Counter[str] = Counter()
    with host_waits(device) as counts:

        def remember(*_):
            before.clear()
            before.update(counts)

        def restore(*_):
            counts.clear()
            counts.update(before)

        handles = [
            step.optimizer.register_step_pre_hook(remember),
            step.optimizer.register_step_post_hook(restore),
        ]
        step()
    for handle in handles:
        handle.remove()
    return counts.total()


def step_benchmark(distillation: Distillation, arguments: StepBenchmarkArguments) -> dict:
    """The report on the step: `masked_clips_per_s` counts each clip once per mask.

    `host_waits` is how often the host waits for the device in a step; it is not counted for compiled steps. See
    [`speed`] for the other figures.
    """
    device = choose_device(arguments.device)
    steps: dict[str, TrainerStep | ReferenceStep] = {}
    contenders, masks = [], {}

    def add(name: str, varied: Distillation, make: Callable[[], TrainerStep | ReferenceStep]):
        def build() -> TrainerStep | ReferenceStep:
            steps[name] = make()
            return steps[name]

        masks[name] = varied.masks_per_clip
        flops = arguments.batch_size * varied.flops
        contenders.append(Contender({"step": name}, build, arguments.batch_size, flops))

    if arguments.with_reference:
        plain = distillation.varied(StepVariant(masks_per_clip=1, decoder_keep=1.0))
        add(REFERENCE, plain, partial(ReferenceStep, plain, arguments))
    for text in arguments.variants:
        variant = StepVariant.parse(text)
        varied = distillation.varied(variant)
        add(f"mvd_hf {text}".strip(), varied, partial(TrainerStep, varied, arguments, variant.compile))
    rows, phases = Race(device, DTYPES[arguments.dtype], arguments.rounds, arguments.seed).run(contenders), []
    for row in rows:
        name, per_second = row["step"], row["clips_per_s"]
        row["masked_clips_per_s"] = per_second and per_second * masks[name]
        step = None if per_second is None else steps[name]
        row["host_waits"] = None if step is None or step.compiles else count_waits(step, device)
        if isinstance(step, TrainerStep):
            phases += phase_rows({"step": name}, step.phases(arguments.rounds))
    about_step = {**about(torch.get_num_threads()), "precision": arguments.dtype}
    return {"about": about_step, "arguments": vars(arguments), "step": rows, "phases": phases}
