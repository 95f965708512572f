"""What the server of `launching.py` has done before it forks: slow imports and tables that libraries build once."""

import gc

import datasets  # noqa: F401
import torch._dynamo  # noqa: F401
import torchvision.transforms.v2  # noqa: F401
import transformers.pipelines  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import mvd_hf.detection.trainer
import mvd_hf.finetuning.adaptation
import mvd_hf.teachers.teacher
import mvd_hf.training.distillation
import mvd_hf.training.knn  # noqa: F401

get_checkpoint_conversion_mapping("vit")
gc.freeze()  # no collection of a forked process walks, and so copies, what the server holds
