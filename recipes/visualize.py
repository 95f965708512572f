"""Figures of features, attention, reconstructions and detections: a PNG or mp4 file, and the numbers beside it.

    python recipes/visualize.py similarity --models outputs/a outputs/b --dataset outputs/tiny/data --stride 2

| name | figure | keys |
|---|---|---|
| `similarity` | similarity of features between frames (the paper's analysis) | `SimilarityArguments` |
| `tokens` | principal components of features, as colors | `TokenFigureArguments` |
| `reconstruction` | masked patches as VideoMAE or MAE reconstructs them | `ReconstructionArguments` |
| `attention` | attention of one patch to all patches of a clip | `AttentionArguments` |
| `detect` | people and their actions in the key frames of a video | `DetectionFigureArguments` |
"""

import logging

from mvd_hf.arguments import parse_arguments, run_script, take_name
from mvd_hf.visualization.attention import AttentionArguments, write_attention
from mvd_hf.visualization.detections import DetectionFigureArguments, write_detections
from mvd_hf.visualization.reconstruction import ReconstructionArguments, write_reconstruction
from mvd_hf.visualization.similarity import SimilarityArguments, write_similarity
from mvd_hf.visualization.tokens import TokenFigureArguments, write_tokens

# by name: the class of the keys, and the function that writes the figure
FIGURES = {
    "similarity": (SimilarityArguments, write_similarity),
    "tokens": (TokenFigureArguments, write_tokens),
    "reconstruction": (ReconstructionArguments, write_reconstruction),
    "attention": (AttentionArguments, write_attention),
    "detect": (DetectionFigureArguments, write_detections),
}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, rest = take_name(arguments, list(FIGURES), "figure")
    kind, write = FIGURES[name]
    (figure,) = parse_arguments(rest, kind)
    logging.info("Written to %s", ", ".join(map(str, write(figure))))


if __name__ == "__main__":
    run_script(main)
