"""Track objects by the features of frozen models, without training: label propagation on DAVIS 2017.

    python recipes/propagate.py --models.student outputs/my_student --models.student.image_size 512 \\
        --models.image facebook/dinov2-base --models.image.image_size 448 --davis DAVIS

Reports region similarity J and contour accuracy F, means over objects. Frames are resized to the square input of a
model: give all models the same number of patches, here 32 x 32 (of 16 pixels and of 14). Keys: below and
`mvd_hf.evaluation.propagation.PropagationSettings`.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch

from mvd_hf.arguments import parse_arguments, run_script
from mvd_hf.evaluation.encoders import Encoder, EncoderArguments
from mvd_hf.evaluation.propagation import PropagationSettings, read_sequences, sequence_scores, track_objects
from mvd_hf.evaluation.tables import as_markdown


@dataclass
class PropagationArguments:
    """The models and the sequences.

    Args:
        models: by name, each a Hub id or folder, or a mapping of the fields of
            `mvd_hf.evaluation.encoders.EncoderArguments`.
        davis: folder of DAVIS 2017 with `JPEGImages/480p`, `Annotations/480p` and `ImageSets/2017`.
        split: of its sequences.
        device: such as `cuda`; by default what there is.
        output_dir: folder for `propagation.csv` and `objects.csv`.
    """

    models: dict[str, str | Annotated[dict, EncoderArguments]] = field(default_factory=dict)
    davis: str = ""
    split: str = "val"
    device: str | None = None
    output_dir: str = "outputs/propagation"

    def __post_init__(self):
        if not self.models or not self.davis:
            raise ValueError(
                "Give --models.NAME with a Hub id or a folder, and --davis with the folder of DAVIS 2017."
            )


KINDS = (PropagationArguments, PropagationSettings)


def main(arguments: list[str]):
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    keys, settings = parse_arguments(arguments, *KINDS)
    device = torch.device(keys.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    objects, inputs = [], {}
    for name, entry in keys.models.items():
        fields = EncoderArguments(**({"model": entry} if isinstance(entry, str) else entry))
        encoder = Encoder(name, fields, image_frames=1).to(device)
        inputs[name] = "x".join(map(str, encoder.teacher.student_grid[1:]))
        for sequence, frames, masks in read_sequences(keys.davis, keys.split):
            scores = sequence_scores(track_objects(encoder, frames, masks[0], settings), masks)
            objects += [{"model": name, "sequence": sequence, "object": i + 1, **s} for i, s in enumerate(scores)]
            logging.info("%s, %s: %d objects", name, sequence, len(scores))
    objects = pd.DataFrame(objects)
    table = objects.groupby("model", sort=False)[["J", "F"]].mean().reset_index()
    table["J&F"], table["patches"] = (table["J"] + table["F"]) / 2, table["model"].map(inputs)
    folder = Path(keys.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    objects.to_csv(folder / "objects.csv", index=False)
    table.to_csv(folder / "propagation.csv", index=False)
    rows = [[f"{100 * v:.1f}" if isinstance(v, float) else str(v) for v in row] for row in table.values.tolist()]
    logging.info("\n%s\n\nWritten to %s", as_markdown([list(table.columns), *rows]), folder)


if __name__ == "__main__":
    run_script(main)
