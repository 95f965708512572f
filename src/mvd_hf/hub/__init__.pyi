from .cards import CardDetails as CardDetails
from .conversion import convert_checkpoint as convert_checkpoint
from .datasets import DatasetDetails as DatasetDetails
from .datasets import publish_dataset as publish_dataset
from .loading import load_classifier as load_classifier
from .loading import load_detector as load_detector
from .publish import publish as publish
