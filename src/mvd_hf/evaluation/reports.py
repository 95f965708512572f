"""Reports of a test: metrics, predictions, classes, confusion and mistakes, as tables and figures."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.decoding import open_media
from ..data.sources import media_column, write_table
from ..model.video_reading import VideoReadError
from .results import Evaluation, HeadsEvaluation, MultiLabelEvaluation, RegressionEvaluation, ViewScores

# most classes with names beside the confusion matrix; mistakes, and columns, of the figure of mistakes
MAX_NAMED_CLASSES, NUM_MISTAKES, NUM_COLUMNS = 40, 12, 4


def prediction_rows(evaluation: Evaluation) -> datasets.Dataset:
    """A row per video: name, label, prediction, top-5 classes, probabilities, and the logits of its views."""
    order = np.argsort(-evaluation.probabilities, axis=1, kind="stable")
    names = evaluation.names
    return datasets.Dataset.from_dict(
        {
            "video": evaluation.videos,
            "row": evaluation.rows,
            "label": evaluation.labels,
            "label_name": [names[label] for label in evaluation.labels],
            "prediction": evaluation.predictions,
            "prediction_name": [names[label] for label in evaluation.predictions],
            "is_correct": evaluation.predictions == evaluation.labels,
            "top5": [[names[i] for i in row[:5]] for row in order],
            "probabilities": list(evaluation.probabilities.astype(np.float32)),
            "view_logits": list(evaluation.logits),
        }
    )


def multi_label_rows(evaluation: MultiLabelEvaluation) -> datasets.Dataset:
    """A row per video: name, classes, probabilities, and the logits of its views."""
    columns = {
        "label_names": [[evaluation.names[i] for i in np.flatnonzero(row)] for row in evaluation.labels],
        "probabilities": list(evaluation.probabilities.astype(np.float32)),
        "view_logits": list(evaluation.logits),
    }
    return datasets.Dataset.from_dict({"video": evaluation.videos, "row": evaluation.rows, **columns})


def number_rows(evaluation: RegressionEvaluation) -> datasets.Dataset:
    """A row per video: name, number, prediction, and the predictions of its views."""
    columns = {
        "label": evaluation.labels,
        "prediction": evaluation.predictions,
        "view_predictions": list(evaluation.logits[..., 0]),
    }
    return datasets.Dataset.from_dict({"video": evaluation.videos, "row": evaluation.rows, **columns})


def confused_pairs(evaluation: Evaluation) -> list[dict]:
    """Confused pairs of classes, most frequent first; `share` is relative to the videos of the label."""
    counts = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
    totals = evaluation.confusion.sum(axis=1)
    pairs = np.argwhere(counts)
    pairs = pairs[np.argsort(-counts[tuple(pairs.T)], kind="stable")]
    return [
        {
            "label": evaluation.names[i],
            "prediction": evaluation.names[j],
            "videos": int(counts[i, j]),
            "share": round(float(counts[i, j] / totals[i]), 4),
        }
        for i, j in pairs
    ]


def draw_confusion(evaluation: Evaluation) -> Figure:
    """The confusion matrix, colored by the share of each true class; with names and counts if they fit."""
    num_classes = len(evaluation.names)
    totals = evaluation.confusion.sum(axis=1, keepdims=True)
    shares = np.divide(evaluation.confusion, totals, out=np.zeros(evaluation.confusion.shape), where=totals > 0)
    side = min(3.5 + 0.32 * num_classes, 14.0)
    figure = Figure((side + 1.2, side), layout="constrained")
    axes: Axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    accuracy = 100 * evaluation.metrics()["video_top1"]
    axes.set_title(f"{len(evaluation.videos)} videos, {evaluation.protocol}, top-1 {accuracy:.1f} %", fontsize=11)
    axes.set_xlabel("prediction")
    axes.set_ylabel("true class")
    if num_classes <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(num_classes), evaluation.names, rotation=90 if num_classes > 6 else 30, ha="right")
        axes.set_yticks(range(num_classes), evaluation.names)
        axes.tick_params(labelsize=8)
        for i, j in np.argwhere(evaluation.confusion):
            shade = "white" if shares[i, j] > 0.6 else "black"
            text = str(evaluation.confusion[i, j])
            axes.text(j, i, text, ha="center", va="center", color=shade, fontsize=max(4, 9 - num_classes / 8))
    return figure


def middle_frame(rows: datasets.Dataset, row: int) -> np.ndarray | None:
    """The middle frame (H, W, 3) of the video of a row; `None` if it cannot be read."""
    try:
        with open_media(rows[row][media_column(rows)]) as reader:
            return reader.read([len(reader) // 2])[0]
    except VideoReadError:
        return None


def shorten(text: str, length: int = 30) -> str:
    """The end of a text, at most `length` characters."""
    return text if len(text) <= length else f"...{text[3 - length :]}"


def draw_mistakes(evaluation: Evaluation, rows: datasets.Dataset, number: int = NUM_MISTAKES) -> Figure:
    """The most confident mistakes, at least one: the middle frame of each video, its label and its prediction."""
    mistakes = evaluation.mistakes()[:number]
    num_lines = -(-len(mistakes) // NUM_COLUMNS)
    figure = Figure((3.1 * NUM_COLUMNS, 3.3 * num_lines + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    figure.suptitle(f"The most confident of {(evaluation.predictions != evaluation.labels).sum()} mistakes")
    for axes, mistake in zip(figure.subplots(num_lines, NUM_COLUMNS, squeeze=False).flat, mistakes, strict=False):
        frame = middle_frame(rows, mistake["row"])
        if frame is not None:
            axes.imshow(frame)
        axes.set_title(
            f"{shorten(mistake['label'])}\npredicted: {shorten(mistake['prediction'])} "
            f"({100 * mistake['confidence']:.0f} %)",
            fontsize=9,
        )
        axes.set_xlabel("/".join(Path(mistake["video"]).parts[-2:])[-44:], fontsize=7)
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
        if not axes.has_data():
            axes.axis("off")
    return figure


def write_report(evaluation: ViewScores, rows: datasets.Dataset, folder: str | Path, figures: bool = True):
    """Write the results of a test to a folder: `metrics.json`, `missing.csv`, and by the kind of labels:

    - One class: `predictions.parquet` (a row per video), `per_class.csv`, `confusion.csv` (rows: true classes),
      `confused_pairs.csv`, `mistakes.csv`, and the figures `confusion.png` and, if there are mistakes, `mistakes.png`.
    - Several classes: `predictions.parquet` and `per_class.csv`, with the average precision of each class.
    - Several heads: a report as of one class for each head, in a sub-folder of its name.
    - Numbers: `predictions.parquet`.

    Args:
        evaluation: the test.
        rows: the data set, for the frames of the figures.
        folder: is created if needed.
        figures: whether to draw the figures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(evaluation.metrics(), indent=1) + "\n", encoding="utf-8")
    missing = [{"video": video, "reason": reason} for video, reason in evaluation.missing]
    write_table(folder / "missing.csv", missing, ["video", "reason"])
    if isinstance(evaluation, HeadsEvaluation):
        for head, part in evaluation.parts.items():
            write_report(part, rows, folder / head, figures)
    elif isinstance(evaluation, MultiLabelEvaluation):
        multi_label_rows(evaluation).to_parquet(folder / "predictions.parquet")
        columns = ["class", "name", "videos", "average_precision"]
        write_table(folder / "per_class.csv", evaluation.per_class(), columns)
    elif isinstance(evaluation, RegressionEvaluation):
        number_rows(evaluation).to_parquet(folder / "predictions.parquet")
    else:
        write_classes(evaluation, rows, folder, figures)


def write_classes(evaluation: Evaluation, rows: datasets.Dataset, folder: Path, figures: bool):
    """Write the tables and figures of a test with one class per video."""
    names = evaluation.names
    prediction_rows(evaluation).to_parquet(folder / "predictions.parquet")
    write_table(folder / "per_class.csv", evaluation.per_class(), ["class", "name", "videos", "accuracy"])
    confusion = pd.DataFrame(evaluation.confusion, names, names)
    confusion.to_csv(folder / "confusion.csv", errors="backslashreplace", lineterminator="\n")
    write_table(folder / "confused_pairs.csv", confused_pairs(evaluation), ["label", "prediction", "videos", "share"])
    columns = ["video", "row", "label", "prediction", "confidence", "probability_of_label"]
    write_table(folder / "mistakes.csv", evaluation.mistakes(), columns)
    if figures:
        draw_confusion(evaluation).savefig(folder / "confusion.png", dpi=130)
        if evaluation.mistakes():
            draw_mistakes(evaluation, rows).savefig(folder / "mistakes.png", dpi=130)
        else:
            (folder / "mistakes.png").unlink(missing_ok=True)  # of an earlier test
