"""The tables and the figure of a comparison, as Markdown, CSV, parquet and PNG."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ..data.sources import media_column, media_name
from .comparison import ComparisonResults

# titles of the columns of the printed table, in their order; `{...}` is a value with its interval
COLUMNS = {
    "model": "model",
    "method": "method",
    "top1": "top-1 (95 %)",
    "top5": "top-5",
    "balanced": "balanced (95 %)",
    "macro_f1": "macro F1 (95 %)",
    "kept": "% of best teacher",
    "input": "frames x pixels",
    "parameters_m": "parameters (M)",
    "gflops_per_clip": "GFLOPs per clip",
    "clips_per_s": "clips/s here",
    "license": "license",
    "setting": "setting",
}
COSTS = ("parameters_m", "gflops_per_clip", "clips_per_s")
COLORS = {"student": "tab:blue", "teacher": "tab:orange", "baseline": "tab:gray"}


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(row: dict, column: str) -> str:
    """A value of the table as text, with its interval if it has one."""
    value = row[column]
    if value is None:
        return "unknown" if column == "license" and row["input"] and row["parameters_m"] else "-"
    if column in COSTS:
        return f"{value:.3g}"
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    return f"{text} ({row[f'{column}_low']:.1f}-{row[f'{column}_high']:.1f})" if f"{column}_low" in row else text


def comparison_text(results: ComparisonResults) -> str:
    """The protocol, the table, paired differences and warnings, as Markdown."""
    table, differences = results.table(), results.differences()
    columns = [column for column in COLUMNS if column in table[0]]
    parts = [
        results.protocol,
        as_markdown([[COLUMNS[name] for name in columns], *([cell(row, name) for name in columns] for row in table)]),
    ]
    if differences:
        heading = ["model", "against", "method", "top-1 difference (95 %)"]
        lines = [
            [
                *(row[name] for name in heading[:3]),
                f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})",
            ]
            for row in differences
        ]
        parts.append("Paired differences in percent points:\n\n" + as_markdown([heading, *lines]))
    return "\n\n".join(parts + [f"**{warning}**" for warning in results.warnings()])


def draw_comparison(results: ComparisonResults) -> Figure:
    """Top-1 accuracies with their intervals, a bar for each row of the table."""
    table = results.table()[::-1]
    figure = Figure((7, 0.9 + 0.32 * len(table)), layout="constrained")
    axes = figure.subplots()
    values = [row["top1"] for row in table]
    errors = [
        [max(row["top1"] - row["top1_low"], 0) for row in table],
        [max(row["top1_high"] - row["top1"], 0) for row in table],
    ]
    axes.barh(range(len(table)), values, xerr=errors, color=[COLORS[row["role"]] for row in table], capsize=3)
    names = [row["model"] if row["method"] == "none" else f"{row['model']}, {row['method']}" for row in table]
    axes.set_yticks(range(len(table)), names)
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"top-1 accuracy on {len(results.rows)} videos in %, 95 % intervals")
    for role in {row["role"]: None for row in table[::-1]}:
        axes.barh([0], [0], color=COLORS[role], label=role)
    figure.legend(loc="outside upper right", ncols=len(COLORS), fontsize=8)
    return figure


def prediction_table(results: ComparisonResults) -> pd.DataFrame:
    """A row per test video: its label, and the class that each probe predicts."""
    names, rows = results.split.names, results.split.test
    files = [media_name(item) for item in rows[media_column(rows)]]
    columns = {
        "video": [files[row] for row in results.rows],
        "label": [names[label] for label in results.labels],
    }
    for outcome in results.outcomes:
        predicted = results.probabilities(outcome).argmax(axis=1)
        columns[f"{outcome.model} {outcome.method}"] = [names[label] for label in predicted]
    return pd.DataFrame(columns)


def write_comparison(results: ComparisonResults, folder: str | Path) -> str:
    """Write `table.md`, `.csv`, `.parquet`, `.png`, `differences.csv`, `predictions.parquet`; returns `table.md`.

    Args:
        results: of a comparison.
        folder: is created if needed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text, table = comparison_text(results), pd.DataFrame(results.table())
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    table.to_csv(folder / "table.csv", index=False)
    table.to_parquet(folder / "table.parquet", index=False)
    pd.DataFrame(results.differences()).to_csv(folder / "differences.csv", index=False)
    prediction_table(results).to_parquet(folder / "predictions.parquet", index=False)
    draw_comparison(results).savefig(folder / "table.png", dpi=150)
    return text
