"""Folders of tiny checkpoints and the records of a run beside them, as publishing finds them."""

import json
from pathlib import Path

from mvd_hf import MVDConfig, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.data.hashing import hash_of_checkpoint
from mvd_hf.hub.results import METRICS_NAME

TINY = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_frames": 4, "decoder_num_hidden_layers": 1}

RUN = {
    "model": "MVDForVideoClassification",
    "recipe": {"student": "mvd-b", "dataset": "me/clips", "teachers": {"image": "mae-b"}},
    "hub_dataset": "me/clips",
    "sources": {"image": {"model": "mae-b", "is_local": True, "license": "cc-by-nc-4.0"}},
    "videos": 1234,
    "clips_per_video": 1,
    "effective_batch": 64,
    "learning_rate": 1.5e-4,
    "epochs": 20,
    "steps": 380,
    "precision": "bf16",
    "seed": 0,
    "seconds": 5400.0,
    "hardware": {"device": "NVIDIA H100", "count": 8},
    "training": {"loss": 0.123456, "loss_image": 0.1},
    "evaluation": {"eval_loss": 0.234567},
    "versions": {"python": "3.11", "torch": "2.14"},
}

METRICS = {"protocol": "16x5x3", "num_videos": 100, "missing": 0}
METRICS |= {"video_top1": 0.5125, "video_top5": 0.75, "clip_top1": 0.5, "clip_top5": 0.7}


def write_metrics(folder: Path):
    """Leave in a folder what a test of its checkpoint leaves."""
    (folder / METRICS_NAME).parent.mkdir()
    (folder / METRICS_NAME).write_text(json.dumps(METRICS | {"weights": hash_of_checkpoint(folder)}))


def save(folder: Path, kind=MVDForVideoClassification, processor=None, **fields) -> Path:
    model = kind(MVDConfig(**(TINY | {"num_labels": 6} | fields)))
    model.save_pretrained(folder)
    MVDVideoProcessor.for_model(model.config, **(processor or {})).save_pretrained(folder)
    return folder
