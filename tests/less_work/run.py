"""What several masks per clip and decoding a part give for the same arithmetic, on toy videos.

    python tests/less_work/run.py [--epochs 12] [--seeds 2] [--output outputs/less_work]

The teachers are those of `recipes/tiny` (`python recipes/tiny/run.py` makes them). Every student has the batch of the
recipe, clips times masks, so the same learning rate, and is trained for the arithmetic of the recipe's student in
`--epochs`. `cpu_s` is the processor's time for training with its data; `eval_loss` is that of held-out clips under one
mask, all masked patches decoded; the probes are linear, on the mean of all patches' features.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import set_seed

from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, MVDModel, MVDTrainingArguments
from mvd_hf.arguments import parse_arguments
from mvd_hf.data.arguments import DataArguments, pretraining_clips
from mvd_hf.data.clips import collate_clips
from mvd_hf.data.toy import make_toy_dataset
from mvd_hf.evaluation.probing import fit_penalized
from recipes.benchmark.reports import as_table
from recipes.benchmark.steps import Distillation

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "recipes"))
from distill import StudentArguments  # noqa: E402

# masks per clip, part of the masked patches that is decoded
VARIANTS = ((1, 1.0), (1, 0.5), (2, 1.0), (4, 1.0), (4, 0.5))


def probe_accuracy(encoder: MVDModel, data: DataArguments, training: MVDTrainingArguments, label: str) -> float:
    """Accuracy on the held-out videos of a linear probe on the training videos' features."""
    features, labels = {}, {}
    for split in ("train", "validation"):
        source = DataArguments(dataset=data.dataset, eval_split=split, stride=data.stride)
        clips = pretraining_clips(source, encoder.config, training, label_column=label, evaluation=True)
        batches = list(DataLoader(clips, batch_size=64, collate_fn=collate_clips))
        with torch.no_grad():
            tokens = [encoder(batch["pixel_values"]).last_hidden_state.mean(1) for batch in batches]
        features[split] = torch.cat(tokens).double()
        labels[split] = torch.cat([batch["labels"] for batch in batches])
    mean, std = features["train"].mean(0), features["train"].std(0)
    standard = {split: (value - mean) / std for split, value in features.items()}
    weight, bias = fit_penalized(standard["train"], labels["train"], int(labels["train"].max()) + 1, 1e-2)
    scores = standard["validation"] @ weight.T + bias
    return float((scores.argmax(1) == labels["validation"]).double().mean())


def distil(words: list[str], masks: int, keep: float, budget: float, seed: int) -> dict[str, float]:
    """Figures of a student that is trained for `budget` FLOPs per video."""
    kinds = (StudentArguments, DataArguments, MVDTrainingArguments)
    words = [*words, f"--masks_per_clip={masks}", f"--config.decoder_keep={keep}", f"--seed={seed}"]
    recipe, data, training = parse_arguments([*words, f"--per_device_train_batch_size={16 // masks}"], *kinds)
    set_seed(seed)
    built = Distillation.from_recipe(recipe.student, recipe.config, recipe.teachers, masks)
    epochs = budget / built.flops
    training.warmup_epochs *= epochs / training.num_train_epochs
    training.num_train_epochs = epochs
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(built.config),
        built.load_teachers(),
        args=training,
        train_dataset=pretraining_clips(data, built.config, training),
        eval_dataset=pretraining_clips(data, built.config, training, evaluation=True),
    )
    start = time.process_time()
    trainer.train()
    seconds = time.process_time() - start
    encoder = trainer.model.mvd.eval()
    return {
        "epochs": training.num_train_epochs,
        "cpu_s": seconds,
        "eval_loss": trainer.evaluate()["eval_loss"],
        **{f"probe_{label}": probe_accuracy(encoder, data, training, label) for label in ("appearance", "motion")},
    }


def main():
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=12, help="of the recipe's own student")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", default="outputs/less_work")
    options = parser.parse_args()
    videos = make_toy_dataset(Path(options.output) / "data", num_validation=128, height=40, width=48)
    words = [str(ROOT / "recipes/tiny/distill.yaml"), "--use_cpu", f"--dataset={videos}", "--disable_tqdm=true"]
    words += [f"--output_dir={options.output}/student", "--eval_strategy=no", "--logging_steps=100000"]
    (recipe,) = parse_arguments([words[0]], StudentArguments, DataArguments, MVDTrainingArguments)[:1]
    flops = Distillation.from_recipe(recipe.student, recipe.config, recipe.teachers, 1).flops
    runs = {variant: [] for variant in VARIANTS}
    for seed in range(options.seeds):  # variants take turns
        for variant in VARIANTS:
            runs[variant].append(distil(words, *variant, options.epochs * flops, seed))
            logging.info("seed %d, masks_per_clip %d, decoder_keep %s: %s", seed, *variant, runs[variant][-1])
    rows = []
    for (masks, keep), figures in runs.items():
        row = {"masks_per_clip": masks, "decoder_keep": keep}
        for name in figures[0]:
            values = np.array([each[name] for each in figures])
            spread = f" ± {values.std(ddof=1):.4f}" if name.startswith(("eval", "probe")) and len(values) > 1 else ""
            row[name] = f"{values.mean():.4f}{spread}" if spread else float(values.mean())
        rows.append(row)
    logging.info("\n%s", as_table(rows))


if __name__ == "__main__":
    main()
