"""mvd_hf: Masked Video Distillation for the Hugging Face ecosystem."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification

from .model.configuration_mvd import MVDConfig
from .model.modeling_mvd import (
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
)

AutoConfig.register("mvd", MVDConfig, exist_ok=True)
AutoModel.register(MVDConfig, MVDModel, exist_ok=True)
AutoModelForPreTraining.register(MVDConfig, MVDForFeatureDistillation, exist_ok=True)
AutoModelForVideoClassification.register(MVDConfig, MVDForVideoClassification, exist_ok=True)

__all__ = [
    "MVDConfig",
    "MVDModel",
    "MVDForPixelReconstruction",
    "MVDForFeatureDistillation",
    "MVDForVideoClassification",
]
