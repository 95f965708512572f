from .data.arguments import load_clips as load_clips
from .data.masking import random_mask as random_mask
from .data.masking import tube_mask as tube_mask
from .detection.trainer import DetectionTrainer as DetectionTrainer
from .evaluation.multiview import evaluate_views as evaluate_views
from .finetuning.trainer import FinetuningArguments as FinetuningArguments
from .finetuning.trainer import FinetuningTrainer as FinetuningTrainer
from .hub.conversion import convert_checkpoint as convert_checkpoint
from .hub.loading import load_classifier as load_classifier
from .hub.publish import publish as publish
from .model.configuration_mvd import MVDConfig as MVDConfig
from .model.detection_mvd import MVDForActionDetection as MVDForActionDetection
from .model.modeling_mvd import MVDForFeatureDistillation as MVDForFeatureDistillation
from .model.modeling_mvd import MVDForPixelReconstruction as MVDForPixelReconstruction
from .model.modeling_mvd import MVDForVideoClassification as MVDForVideoClassification
from .model.modeling_mvd import MVDModel as MVDModel
from .model.video_processing_mvd import MVDVideoProcessor as MVDVideoProcessor
from .teachers.teacher import TeacherConfig as TeacherConfig
from .teachers.teacher import load_teachers as load_teachers
from .training.arguments import MVDTrainingArguments as MVDTrainingArguments
from .training.distillation import DistillationTrainer as DistillationTrainer
from .training.losses import distillation_losses as distillation_losses
from .training.trainer import MVDTrainer as MVDTrainer

__version__: str
