"""The page of a study: tables, the outcome of each hypothesis, and accuracy against labels as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .plan import ARMS
from .results import FINETUNE

# colors of the arms, distinguishable for readers with color blindness (Okabe and Ito)
COLORS = dict(zip(ARMS, ("#000000", "#E69F00", "#CC79A7", "#0072B2", "#D55E00", "#009E73"), strict=True))
HYPOTHESES = {
    "a": "the student of both beats training from scratch",
    "b": "the student of both beats VideoMAE at equal compute",
    "c": "the image teacher's student beats the video teacher's",
    "d": "the student of both is within noise of the better of the two",
}

TITLES = {"none": "Most frequent class", "knn": "k-NN", "linear": "Linear probe", "attentive": "Attentive probe"}
TITLES |= {FINETUNE: "Fine-tuned"}


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is the header."""
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *body])


def title(model: str) -> str:
    """Name of an arm, a teacher or a baseline."""
    return ARMS[model].title if model in ARMS else model.replace("_", " ")


def measure_table(table: Sequence[Mapping], measure: str, method: str) -> str:
    """A measure of every model with one method, by share of the labels: mean and 95 % interval in percent."""
    rows = [row for row in table if row["method"] == method]
    shares = sorted({row["share"] for row in rows})
    lines = [["", *(f"{share:g} % of the labels" for share in shares)]]
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = {row["share"]: row for row in rows if row["model"] == model}
        bounds = {share: [100 * bound for bound in row[f"{measure}_interval"]] for share, row in cells.items()}
        lines.append(
            [
                title(model),
                *(
                    f"{100 * cells[share][measure]:.1f} ({bounds[share][0]:.1f}-{bounds[share][1]:.1f})"
                    if share in cells
                    else "-"
                    for share in shares
                ),
            ]
        )
    return markdown(lines)


def measure_section(table: Sequence[Mapping], measure: str, method: str) -> str:
    """A heading, and the table of a measure."""
    heading = f"## {TITLES.get(method, method)}: {measure.replace('_', ' ')} in %"
    return f"{heading}\n\n{measure_table(table, measure, method)}"


def hypothesis_table(checks: Sequence[Mapping]) -> str:
    """A row per hypothesis and share: the paired difference and its outcome."""
    rows = [["hypothesis", "labels", "difference (95 %), points", "seed by seed", "the first is"]]
    for check in checks:
        low, high = check["interval"]
        rows.append(
            [
                f"({check['hypothesis']}) {title(check['model'])} against {title(check['against'])}",
                f"{check['share']:g} %",
                f"{check['mean']:+.1f} ({low:+.1f} to {high:+.1f})",
                ", ".join(f"{value:+.1f}" for value in check["seeds"]),
                check["outcome"],
            ]
        )
    return markdown(rows)


def training_table(results: Mapping) -> str:
    """Loss, epochs and seconds of each pre-training, seed by seed."""
    rows = [["pre-training", "final loss", "epochs", "seconds"]]
    for name, losses in results["losses"].items():
        values = (["-" if loss is None else f"{loss:.3f}" for loss in losses], map(str, results["epochs"][name]))
        seconds = [f"{value:.0f}" for value in results["seconds"][name]]
        rows.append([name, *(", ".join(value) for value in (*values, seconds))])
    return markdown(rows)


def draw_curves(table: Sequence[Mapping]) -> Figure:
    """Accuracy and macro F1 after fine-tuning against the share of labels, with 95 % bands."""
    figure = Figure((10, 4.2), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("accuracy", "macro_f1"), strict=True):
        for arm, color in COLORS.items():
            rows = [row for row in table if row["method"] == FINETUNE and row["model"] == arm]
            rows.sort(key=lambda row: row["share"])
            shares = [row["share"] for row in rows]
            axes.plot(shares, [100 * row[measure] for row in rows], "o-", color=color, label=title(arm))
            bounds = [[100 * row[f"{measure}_interval"][side] for row in rows] for side in (0, 1)]
            axes.fill_between(shares, *bounds, color=color, alpha=0.12)
        for baseline, style in (("majority", ":"), ("pixels", "--")):
            rows = sorted((row for row in table if row["model"] == baseline), key=lambda row: row["share"])
            values = [100 * row[measure] for row in rows]
            axes.plot([row["share"] for row in rows], values, style, color="gray", label=baseline)
        shares = sorted({row["share"] for row in table})
        axes.set_xscale("log")
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.minorticks_off()
        axes.set_xlabel("labelled training videos in %")
        axes.set_ylabel(f"{measure.replace('_', ' ')} in %")
    figure.axes[0].legend(fontsize=8)
    return figure


def page(results: Mapping) -> str:
    """The whole page in Markdown."""
    table, seeds = results["table"], results["seeds"]
    methods = list(dict.fromkeys(row["method"] for row in table))
    parts = [
        f"# {results['data']}: what pre-training gives",
        f"{len(results['classes'])} classes, {results['videos']} {results['study']['evaluate_on']} videos, seeds "
        f"{', '.join(map(str, seeds))}, on {results['device']}, torch {results['versions']['torch']}. Means over "
        "seeds with 95 % intervals by bootstrap over seeds and videos.",
        "![Accuracy against labels](curves.png)",
        "## Hypotheses",
        "\n".join(f"- ({name}) {text}" for name, text in HYPOTHESES.items()),
        hypothesis_table(results["hypotheses"]),
        *(measure_section(table, measure, method) for method in methods for measure in ("accuracy", "macro_f1")),
        "## Pre-training",
        training_table(results),
    ]
    return "\n\n".join(parts) + "\n"


def write_report(results: Mapping, folder: Path):
    """Write README.md and curves.png."""
    folder.mkdir(parents=True, exist_ok=True)
    draw_curves(results["table"]).savefig(folder / "curves.png", dpi=130)
    (folder / "README.md").write_text(page(results), encoding="utf-8")
