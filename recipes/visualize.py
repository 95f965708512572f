"""Pictures of what models see and say, by name: a PNG or mp4 file, and the numbers beside it.

    python recipes/visualize.py similarity --models outputs/a outputs/b --dataset outputs/tiny/data --stride 2

| name | what is drawn | its keys, below |
|---|---|---|
| `similarity` | how alike features are from frame to frame (the paper's analysis) | `SimilarityArguments` |
| `tokens` | what teachers and student see, as colours | `TokenPictureArguments` |
| `reconstruction` | what VideoMAE or MAE makes of what it does not see | `ReconstructionArguments` |
| `attention` | where a patch looks, over space and time | `AttentionArguments` |
| `detect` | people and what they do, in a video's key frames | `DetectionPictureArguments` |
"""

import logging
import sys

from mvd_hf.arguments import parse_arguments, take_name
from mvd_hf.visualization.attention import AttentionArguments, write_attention
from mvd_hf.visualization.detections import DetectionPictureArguments, write_detections
from mvd_hf.visualization.reconstruction import ReconstructionArguments, write_reconstruction
from mvd_hf.visualization.similarity import SimilarityArguments, write_similarity
from mvd_hf.visualization.tokens import TokenPictureArguments, write_tokens

# the keys of each kind of picture, and what draws it
PICTURES = {
    "similarity": (SimilarityArguments, write_similarity),
    "tokens": (TokenPictureArguments, write_tokens),
    "reconstruction": (ReconstructionArguments, write_reconstruction),
    "attention": (AttentionArguments, write_attention),
    "detect": (DetectionPictureArguments, write_detections),
}


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, rest = take_name(arguments, list(PICTURES), "picture")
    kind, write = PICTURES[name]
    (drawing,) = parse_arguments(rest, kind)
    logging.info("Written to %s", write(drawing))


if __name__ == "__main__":
    main(sys.argv[1:])
