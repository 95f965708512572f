from .multiview import Evaluation as Evaluation
from .multiview import evaluate_views as evaluate_views
