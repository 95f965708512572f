"""mvd_hf: Masked Video Distillation (MVD, arXiv 2212.04500) for the Hugging Face ecosystem."""

from importlib.metadata import version

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForMaskedImageModeling,
    AutoModelForObjectDetection,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .curation.fingerprints import read_signatures
from .curation.near_duplicates import find_near_duplicates
from .curation.splitting import choose_sampling, find_overlap_by_content, split_rows
from .data.arguments import load_clips
from .data.clips import ClipCutter, ClipDataset
from .data.collation import collate_clips
from .data.masking import random_mask, tube_mask
from .data.streaming import StreamingClips
from .detection.ava import ava_map
from .detection.trainer import DetectionTrainer
from .evaluation.multiview import Evaluation, evaluate_views
from .finetuning.trainer import FinetuningArguments, FinetuningTrainer
from .hub.cards import CardDetails
from .hub.conversion import convert_checkpoint
from .hub.datasets import DatasetDetails, publish_dataset
from .hub.loading import load_classifier
from .hub.publish import publish
from .model.configuration_mvd import MVDConfig
from .model.detection_mvd import MVDForActionDetection
from .model.modeling_mvd import (
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
)
from .model.pipelines_mvd import (
    MVDActionDetectionPipeline,
    MVDFeatureExtractionPipeline,
    MVDMultiViewClassificationPipeline,
)
from .model.video_processing_mvd import MVDVideoProcessor
from .model.video_reading import VideoReadError, read_frames
from .teachers.teacher import Teacher, TeacherConfig, load_teachers
from .training.arguments import MVDTrainingArguments
from .training.distillation import DistillationTrainer, distillation_losses
from .training.trainer import MVDTrainer

__version__ = version("mvd_hf")

AutoConfig.register("mvd", MVDConfig, exist_ok=True)
AutoModel.register(MVDConfig, MVDModel, exist_ok=True)
AutoModelForPreTraining.register(MVDConfig, MVDForFeatureDistillation, exist_ok=True)
AutoModelForMaskedImageModeling.register(MVDConfig, MVDForPixelReconstruction, exist_ok=True)
AutoModelForVideoClassification.register(MVDConfig, MVDForVideoClassification, exist_ok=True)
AutoModelForObjectDetection.register(MVDConfig, MVDForActionDetection, exist_ok=True)
AutoVideoProcessor.register(MVDConfig, MVDVideoProcessor, exist_ok=True)
AutoImageProcessor.register(MVDConfig, image_processor_classes={"torchvision": MVDVideoProcessor}, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "video-multiview-classification",
    MVDMultiViewClassificationPipeline,
    pt_model=AutoModelForVideoClassification,
    type="video",
)
PIPELINE_REGISTRY.register_pipeline(
    "video-feature-extraction",
    MVDFeatureExtractionPipeline,
    pt_model=(AutoModel, AutoModelForVideoClassification),
    type="video",
)
PIPELINE_REGISTRY.register_pipeline(
    "video-action-detection", MVDActionDetectionPipeline, pt_model=AutoModelForObjectDetection, type="video"
)

__all__ = [
    "__version__",
    "MVDConfig",
    "MVDModel",
    "MVDForPixelReconstruction",
    "MVDForFeatureDistillation",
    "MVDForVideoClassification",
    "MVDForActionDetection",
    "MVDVideoProcessor",
    "MVDMultiViewClassificationPipeline",
    "MVDFeatureExtractionPipeline",
    "MVDActionDetectionPipeline",
    "read_frames",
    "VideoReadError",
    "read_signatures",
    "find_near_duplicates",
    "find_overlap_by_content",
    "split_rows",
    "choose_sampling",
    "load_clips",
    "ClipCutter",
    "ClipDataset",
    "StreamingClips",
    "collate_clips",
    "tube_mask",
    "random_mask",
    "Teacher",
    "TeacherConfig",
    "load_teachers",
    "MVDTrainer",
    "MVDTrainingArguments",
    "DistillationTrainer",
    "distillation_losses",
    "load_classifier",
    "FinetuningTrainer",
    "FinetuningArguments",
    "evaluate_views",
    "Evaluation",
    "DetectionTrainer",
    "ava_map",
    "convert_checkpoint",
    "CardDetails",
    "publish",
    "DatasetDetails",
    "publish_dataset",
]
