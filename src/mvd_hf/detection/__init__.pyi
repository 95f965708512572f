from .ava import ava_map as ava_map
from .trainer import DetectionArguments as DetectionArguments
from .trainer import DetectionTrainer as DetectionTrainer
