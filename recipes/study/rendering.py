"""The study's report, rendered from its results alone: text, tables and figures."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mvd_hf.visualization.similarity import FeatureSimilarity, draw_similarity

from .results import ENOUGH_SEEDS, METHODS, Comparison, chance_bound, compare, compare_labels
from .scenes import PARTS, TASKS, SceneSettings, class_names, scenes
from .stages import ARMS

METHOD_TITLES = {
    "finetune": "fine-tuned",
    "attentive": "attentive probe",
    "linear": "linear probe",
    "knn": "k-NN",
}
# colours of the arms, distinguishable for readers with colour blindness (Okabe and Ito)
COLORS = dict(zip(ARMS, ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True))
FIGURES = ("scenes", "accuracies", "similarity", "losses", "compute")
# how the similarity of two time slots is averaged
AVERAGES = {
    "place": "cosine at the same position, mean over positions",
    "slot": "cosine of the means over all positions",
}
PAPER_TABLE = """\
| student | image teacher | video teacher | Kinetics-400: appearance | Something-Something v2: motion |
|---|---|---|---|---|
| ViT-S | x | | 80.4 | 69.4 |
| ViT-S | | x | 80.1 | 70.0 |
| ViT-S | x | x | **80.6** | **70.7** |
| ViT-B | x | | 82.3 | 71.4 |
| ViT-B | | x | 82.1 | 71.8 |
| ViT-B | x | x | **82.7** | **72.5** |"""


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *body])


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation over seeds, in percent."""
    mean = 100 * statistics.fmean(values)
    return f"{mean:.1f} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else f"{mean:.1f}"


def accuracy_table(columns: Mapping[str, Mapping[str, Sequence[float]]], names: Sequence[str]) -> str:
    """Accuracies of all arms, and chance in the last row.

    Args:
        columns: by column and arm, a list over seeds.
        names: the columns to show.
    """
    rows = [["", *names]]
    for arm in next(iter(columns.values())):
        rows.append([ARMS[arm].title, *(spread(columns[name][arm]) for name in names)])
    chance = [f"{100 / len(class_names(name)):.1f}" for name in names]
    return markdown_table([*rows, ["chance", *chance]])


def comparisons_of(results: Mapping) -> list[Comparison]:
    """The paper's claims, checked on fine-tuned accuracies."""
    split = tested_split(results)
    return compare(results["accuracies"]["finetune"][split], results["study"]["scenes"][split])


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """A row per claim of the paper: difference of each seed, mean and p."""
    rows = [["claim", "difference, seed by seed (points)", "mean", "p", "paper (ViT-S, ViT-B)", "here"]]
    for comparison in comparisons:
        each = ", ".join(f"{value:+.1f}" for value in comparison.differences)
        mean, p = f"{comparison.mean:+.1f}", f"{comparison.p:.3f}"
        rows.append([comparison.title, each, mean, p, comparison.paper, comparison.verdict])
    return markdown_table(rows)


def label_comparisons_of(results: Mapping) -> dict[str, list[Comparison]]:
    """Comparisons of the linear probe on frozen features of the test videos, by label."""
    return compare_labels(results["accuracies"]["linear"]["test"], results["study"]["scenes"]["test"])


def label_table(labels: Mapping[str, Sequence[Comparison]]) -> str:
    """A row per label: mean difference of each pair of arms, seeds above and below 0, p."""
    if not any(labels.values()):
        return "This run has no pair of arms to compare."
    rows = [["", *(comparison.title for comparison in next(iter(labels.values())))]]
    for label, comparisons in labels.items():
        cells = []
        for item in comparisons:
            above, below = (sum(sign * value > 0 for value in item.differences) for sign in (1, -1))
            difference = f"{item.mean:+.1f} ({above} up, {below} down), p = {item.p:.3f}"
            cells.append("at chance" if item.at_chance else difference)
        rows.append([label, *cells])
    return markdown_table(rows)


def label_summary(labels: Mapping[str, Sequence[Comparison]]) -> str:
    """Sentences on the differences between frozen features on which all seeds agree."""
    count = sum(len(comparisons) for comparisons in labels.values())
    if not count:
        return "Frozen features are not compared: this run has no pair of arms to compare."
    agreed = [(label, item) for label, comparisons in labels.items() for item in comparisons if item.is_unanimous]
    compared = f"{count} comparisons of frozen features (linear probe, label by label)"
    if not agreed:
        return f"In none of the {compared} do all of at least {ENOUGH_SEEDS} seeds agree."
    items = [f"- {item.title}, on {label}: {item.mean:+.1f} points, p = {item.p:.3f}." for label, item in agreed]
    return "\n".join([f"Of the {compared}, all seeds agree on these:", "", *items])


def method_table(accuracies: Mapping, split: str) -> str:
    """Accuracies of both tasks with every method."""
    methods = [method for method in METHODS if split in accuracies[method]]
    rows = [["", *(f"{METHOD_TITLES[method]}, {task}" for method in methods for task in TASKS)]]
    for arm in accuracies["linear"][split]["motion"]:
        cells = [spread(accuracies[method][split][task][arm]) for method in methods for task in TASKS]
        rows.append([ARMS[arm].title, *cells])
    return markdown_table(rows)


def cost_table(results: Mapping) -> str:
    """Compute and time of pre-training, and the accuracy after it."""
    finetuned = results["accuracies"]["finetune"][tested_split(results)]
    rows = [["", "TFLOPs, teachers' forward passes included", "TFLOPs of the teachers' training", "seconds", *TASKS]]
    for arm, cost in results["tflops"].items():
        kind = f"pretrain {arm}" if ARMS[arm].pixels else f"distill {arm}"
        teachers = f"{cost['teachers']:.1f}" if cost["teachers"] else ""
        accuracies = [spread(finetuned[task][arm]) for task in TASKS]
        seconds = f"{results['seconds'][kind]:.0f}"
        rows.append([ARMS[arm].title, f"{cost['own']:.1f}", teachers, seconds, *accuracies])
    return markdown_table(rows)


def tested_split(results: Mapping) -> str:
    """The split that fine-tuned classifiers were tested on."""
    return next(iter(results["accuracies"]["finetune"]))


def summary(results: Mapping) -> str:
    """What was and was not found, in sentences that follow from the numbers."""
    num_seeds = len(results["seeds"])
    comparisons = comparisons_of(results)
    lines = [
        f"- {item.title}: {item.verdict}."
        if item.at_chance
        else f"- {item.title}: {item.mean:+.1f} points, p = {item.p:.3f}; {item.verdict}."
        for item in comparisons
    ]
    if comparisons and all(item.at_chance for item in comparisons):
        lines = ["**This run says nothing about the paper's claims: no arm has learned either task.**"]
    if num_seeds < ENOUGH_SEEDS:
        lines.append(
            f"With {num_seeds} seed{'s' * (num_seeds > 1)} no comparison can have a p below {2 ** (1 - num_seeds):g}: "
            "such a run shows that all stages work; it cannot support or refute a claim."
        )
    return "\n".join(lines)


def above_chance(results: Mapping, method: str, split: str) -> str:
    """Which arms learned a task: their mean is more than two standard errors above chance."""
    sentences = []
    for task in TASKS:
        chance = 1 / len(class_names(task))
        bound = chance_bound(task, results["study"]["scenes"][split] * len(results["seeds"]))
        arms = results["accuracies"][method][split][task]
        below = [ARMS[arm].title for arm, values in arms.items() if statistics.fmean(values) <= bound]
        if not below:
            subject = "every arm is"
        elif len(below) == len(arms):
            subject = "no arm is"
        else:
            subject = f"all arms but these ({'; '.join(below)}) are"
        above = f"more than two standard errors above chance ({100 * chance:.1f} %)"
        sentences.append(f"On {task}, {subject} {above}.")
    return " ".join(sentences)


def introduction(results: Mapping) -> str:
    """The question, and the commands that repeat the study."""
    return f"""# What each teacher teaches

The MVD paper claims that students of image teachers are better at tasks that depend on appearance, that students of
video teachers are better at tasks that depend on motion, and that students of both are better at both. This study
tests that with `mvd_hf` at a scale that anyone can repeat. `report.py` renders this page from
[results.json](results.json); do not edit it by hand.

```bash
python recipes/study/run.py recipes/study/{results["setting"]}.yaml
python recipes/study/report.py recipes/study/results.json
```

The first command makes the videos, trains all models and writes a report like this one to its output folder. Run it
again to continue a run that stopped. The second command renders this page. There are four settings:

| setting | cost |
| --- | --- |
| [small.yaml](small.yaml) | nine minutes on two CPU cores |
| [hour.yaml](hour.yaml) | two hours on two CPU cores |
| [night.yaml](night.yaml) | planned for a night on two CPU cores; not run yet |
| [gpu.yaml](gpu.yaml) | planned for half an hour on a GPU; not run yet |"""


OUTLOOK = f"""## What could make an effect visible

A teacher can only pass on what it has learned. In order of importance:

1. Train teachers, students and classifiers for longer: accuracies at chance cannot be compared. The loss of a video
   autoencoder is flat for hundreds of steps before it falls. It falls sooner with plainer backgrounds, crops of one
   scale and a wider decoder. Classifiers stay at chance for hundreds of steps, too; for fewer steps if the encoder's
   initial weights have a larger standard deviation (`encoder_init_std`) and if the head does not start near zero
   (`head_init_scale`).
2. Run more seeds: with five seeds p cannot be below {2 ** (1 - 5):g}; a p below 0.05 needs six.
3. Use more test videos: the standard error falls with the square root of their number.
4. Use an image teacher that knows more than these videos show. The paper's image teacher was trained on ImageNet. Here
   both teachers learn from the same videos, so the image teacher has little to add."""


def setting(results: Mapping) -> str:
    """What was run: setting, seeds, videos, models, epochs, evaluation."""
    study, seeds, unfinished = results["study"], len(results["seeds"]), results["unfinished_seeds"]
    scenes_of, encoder, split = study["scenes"], study["encoder"], tested_split(results)
    left = f" Unfinished seeds, not counted: {', '.join(map(str, unfinished))}." if unfinished else ""
    missing = [ARMS[arm].title for arm in ARMS if arm not in study["arms"]]
    without = f" Not in this run: {', '.join(missing)}." if missing else ""
    lengths = {
        "image teacher": study["image_teacher"],
        "video teacher": study["video_teacher"],
        "students and the video MAE": study["student"],
        "fine-tuning": study["finetune"],
    }
    epochs = ", ".join(f"{title} {keys['num_train_epochs']:g}" for title, keys in lengths.items())
    masked = "".join(
        f"\n- {ARMS[arm].title}: epochs {study['student']['num_train_epochs'] / ARMS[arm].masks:g}, batches of "
        f"{study['student']['per_device_train_batch_size'] // ARMS[arm].masks} clips: the same number of\n  "
        f"updates and of masked clips as the other students, from 1/{ARMS[arm].masks} of the clips."
        for arm in study["arms"]
        if ARMS[arm].masks > 1
    )
    size, side = f"{scenes_of['width']}x{scenes_of['height']}", encoder["image_size"]
    tasks = " and ".join(
        f"`{task}` ({len(class_names(task))} classes: {' x '.join(parts)})" for task, parts in TASKS.items()
    )
    remarks = "".join(
        f"- {remark}\n" for remark in results["remarks"]
    )  # written by whoever ran it, and kept with the numbers
    return f"""## This run

The setting `{results["setting"]}` with {seeds} seed{"s" * (seeds > 1)} on {results["device"]}, torch
{results["versions"]["torch"]}, transformers {results["versions"]["transformers"]}.{left}{without}
No other setting has results here.

- Videos: {scenes_of["train"]} to train on, {scenes_of["validation"]} for validation, {scenes_of["test"]} for the test;
  {scenes_of["frames"]} frames of {size} pixels. The test shows other variants of textures and trajectories.
- Tasks: {tasks} of the
  largest object. Both are independent, and a single frame says nothing about motion (`recipes.study.scenes`).
- Encoders: width {encoder["hidden_size"]}, {encoder["num_hidden_layers"]} layers, clips of {encoder["num_frames"]}
  frames of {side}x{side} pixels.
- Epochs: {epochs}. Each seed trains its own teachers; all seeds
  share the videos.{masked}
- Evaluation: the last weights, one view per video. No setting was chosen on the test videos. Every finished seed of
  the setting is counted.
- An accuracy of one seed is measured on {scenes_of[split]} videos: its standard error is at most
  {100 * (0.25 / scenes_of[split]) ** 0.5:.1f} points.
- The {results["stages"]["count"]} stages took {results["stages"]["seconds"] / 60:.0f} minutes in sum,
  {study["processes"]} at a time, on a machine that also did other work. Of a resumed stage, only the last run
  counts.
{remarks}
![Scenes: each row is a video, every third frame; the row below plays the same scene backwards](figures/scenes.png)"""


def findings(results: Mapping) -> str:
    """Fine-tuned accuracies, and the paper's claims."""
    finetuned = results["accuracies"]["finetune"][tested_split(results)]
    comparisons = comparisons_of(results)
    return f"""## What was found

{summary(results)}

{above_chance(results, "finetune", tested_split(results))}

{label_summary(label_comparisons_of(results))}

Differences after fine-tuning, paired by seed. p is that of the exact two-sided sign-flip test of each comparison, not
corrected for the number of comparisons ({len(comparisons)}):

{comparison_table(comparisons)}

## Fine-tuned

Top-1 accuracy on the test videos in percent, mean ± sample standard deviation over seeds:

{accuracy_table(finetuned, list(TASKS))}

The same predictions, part by part (probabilities are summed over the other parts):

{accuracy_table(finetuned, [name for name in finetuned if name in PARTS])}

![Accuracies, a dot per seed](figures/accuracies.png)

The paper's Table 1 (ViT-B teachers, 400 epochs, top-1; not reproduced here):

{PAPER_TABLE}

The paper's differences between teachers are 0.2 to 1.3 points. A run of this size can only show effects many times as
large."""


def frozen(results: Mapping) -> str:
    """Accuracies of probes."""
    linear, labels = results["accuracies"]["linear"], label_comparisons_of(results)
    known = results["study"]["probe"].get("train_videos") or results["study"]["scenes"]["train"]
    probed = [method for method in METHODS[1:] if "test" in results["accuracies"][method]]
    learned = "\n".join(f"- {METHOD_TITLES[name]}: {above_chance(results, name, 'test')}" for name in probed)
    return f"""## Frozen

Probes are fitted on the features of {known} training videos. Top-1 accuracy on the test videos:

{method_table(results["accuracies"], "test")}

{learned}

The linear probe on the test videos, label by label:

{accuracy_table(linear["test"], list(PARTS))}

Paired by seed: mean difference in points, number of seeds above and below 0, and p of the sign-flip test of each
comparison. All labels and pairs are shown.

{label_table(labels)}

The linear probe on the validation videos, whose variants of textures and trajectories training shows:

{accuracy_table(linear["validation"], [*PARTS, *TASKS])}"""


def similarities_of(results: Mapping, average: str) -> FeatureSimilarity:
    """Similarity between time slots: for each arm a matrix per seed."""
    return FeatureSimilarity({arm: np.array(seeds) for arm, seeds in results["similarities"][average].items()})


def similarity_table(results: Mapping) -> str:
    """Mean similarity of different time slots, over seeds."""
    rows = [["", *AVERAGES.values()]]
    found = {average: similarities_of(results, average) for average in AVERAGES}
    for arm in results["study"]["arms"]:
        cells = []
        for similarity in found.values():
            values = similarity.off_diagonal(arm)
            cells.append(f"{values.mean():.3f}" + (f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""))
        rows.append([ARMS[arm].title, *cells])
    return markdown_table(rows)


def similarity_verdict(results: Mapping) -> str:
    """Whether features of the image teacher's student are more similar between time slots, seed by seed."""
    if not {"image", "video"} <= set(results["study"]["arms"]):
        return ""
    sentences = [
        "The paper reports that features of different frames are more similar for students of image teachers than for "
        "students of video teachers."
    ]
    for average, title in AVERAGES.items():
        found = similarities_of(results, average)
        differences = tuple(found.off_diagonal("image") - found.off_diagonal("video"))
        each = ", ".join(f"{value:+.3f}" for value in differences)
        comparison = Comparison("", differences)
        sentences.append(f"Image minus video, {title}: {each}; p = {comparison.p:.3f}, {comparison.verdict}.")
    return " ".join(sentences)


def similarity(results: Mapping) -> str:
    """Similarity of features between time slots."""
    return f"""## Similarity of features between frames

Similarity of the last layer's features in different time slots (tubelets) of a clip, averaged over slots and test
clips; mean ± sample standard deviation over seeds:

{similarity_table(results)}

{similarity_verdict(results)}

![Similarity of features between time slots, at the same position](figures/similarity.png)"""


def losses_and_costs(results: Mapping) -> str:
    """Loss curves, and accuracy against compute."""
    last = {
        name.replace("_", " "): parts["loss"][-1][1]
        for name, parts in results["losses"].items()
        if list(parts) == ["loss"] and parts["loss"]
    }
    ends = ", ".join(f"{name} {loss:.3f}" for name, loss in last.items())
    return f"""## Losses of each teacher

![Training losses, means over seeds](figures/losses.png)

Final losses of the autoencoders: {ends}. They predict pixels that are normalised patch by patch, so the loss of an
untrained autoencoder is 1. A student of such a teacher would learn the features of a random network.

## Accuracy against compute

{cost_table(results)}

![Accuracy against the compute of pre-training; open dots include the training of the teachers](figures/compute.png)

`mvd_hf.training.costs` counts the FLOPs. All arms take the same number of updates, but not the same compute."""


def render(results: Mapping) -> str:
    """The report, a README."""
    parts = (introduction, setting, findings, frozen, similarity, losses_and_costs)
    return "\n\n".join([*(part(results) for part in parts), OUTLOOK]) + "\n"


def draw_scenes(settings: SceneSettings, num_pairs: int = 3) -> Figure:
    """Some training scenes and their reverses, every third frame."""
    shown = SceneSettings(**{**vars(settings), "train": 2 * num_pairs})
    lines = [np.concatenate(list(frames[::3]), axis=1) for _, frames in scenes("train", shown)]
    sheet = np.concatenate(lines)
    figure = Figure((sheet.shape[1] / 40, sheet.shape[0] / 40))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(sheet, interpolation="nearest")
    axes.axis("off")
    return figure


def draw_accuracies(results: Mapping) -> Figure:
    """Accuracies after fine-tuning and of the attentive probe: a dot per seed, chance as a line."""
    figure = Figure((9, 5.6), layout="constrained")
    grid = figure.subplots(2, len(TASKS))
    for line, method in zip(grid, METHODS[:2], strict=True):
        columns = next(iter(results["accuracies"][method].values()))
        columns = results["accuracies"][method].get(tested_split(results), columns)
        for axes, task in zip(line, TASKS, strict=True):
            for place, (arm, values) in enumerate(columns[task].items()):
                percent = [100 * value for value in values]
                axes.bar(place, statistics.fmean(percent), color=COLORS[arm], alpha=0.35)
                axes.plot([place] * len(percent), percent, "o", color=COLORS[arm], markersize=4)
            axes.axhline(100 / len(class_names(task)), color="grey", linestyle=":")
            axes.set_xticks(range(len(columns[task])), [arm.replace("_", "\n") for arm in columns[task]], fontsize=8)
            axes.set_title(f"{METHOD_TITLES[method]}: {task}", fontsize=10)
            axes.set_ylabel("top-1, %")
    return figure


def draw_losses(results: Mapping) -> Figure:
    """Training losses of the autoencoders, and of the students for each teacher."""
    figure = Figure((9, 3.2), layout="constrained")
    panels = dict(zip(("loss", "loss_image", "loss_video"), figure.subplots(1, 3), strict=True))
    styles = {"image_teacher": ("#56B4E9", "--"), "video_teacher": ("#F0A080", "--")}
    for name, parts in results["losses"].items():
        is_student = any(part != "loss" for part in parts)
        for part, points in parts.items():
            if points and (part != "loss") == is_student:
                color, line = styles.get(name, (COLORS.get(name), "-"))
                panels[part].plot(*zip(*points, strict=True), line, color=color, label=name.replace("_", " "))
    titles = ("pixels", "features of the image teacher", "features of the video teacher")
    for axes, title in zip(panels.values(), titles, strict=True):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend(fontsize=7)
            axes.set_yscale("log")
    return figure


def draw_compute(results: Mapping) -> Figure:
    """Accuracy after fine-tuning and of the attentive probe against the compute of pre-training.

    A filled dot is an arm without the training of its teachers, the open dot includes it.
    """
    figure = Figure((9, 5.6), layout="constrained")
    split = tested_split(results)
    for line, method in zip(figure.subplots(2, len(TASKS)), METHODS[:2], strict=True):
        for axes, task in zip(line, TASKS, strict=True):
            found = results["accuracies"][method][split][task]
            for arm, cost in results["tflops"].items():
                height = 100 * statistics.fmean(found[arm])
                own, whole = cost["own"], cost["own"] + cost["teachers"]
                axes.plot([own, whole], [height] * 2, "-", color=COLORS[arm], linewidth=0.8)
                axes.plot(own, height, "o", color=COLORS[arm], label=arm.replace("_", " "))
                axes.plot(whole, height, "o", color=COLORS[arm], markerfacecolor="white")
            axes.set_title(f"{METHOD_TITLES[method]}: {task}", fontsize=10)
            axes.set_xlabel("TFLOPs of pre-training")
            axes.set_ylabel("top-1, %")
            axes.legend(fontsize=7)
    return figure


def write_report(results: Mapping, folder: str | Path):
    """Write `README.md` and its figures to a folder."""
    folder = Path(folder)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    figures = {
        "scenes": draw_scenes(SceneSettings(**results["study"]["scenes"])),
        "accuracies": draw_accuracies(results),
        "similarity": draw_similarity(
            similarities_of(results, "place"),
            f"Similarity of features between time slots, at the same position, mean of {len(results['seeds'])} seeds",
        ),
        "losses": draw_losses(results),
        "compute": draw_compute(results),
    }
    for name in FIGURES:
        figures[name].savefig(folder / "figures" / f"{name}.png", dpi=90)
    (folder / "README.md").write_text(render(results), encoding="utf-8")
