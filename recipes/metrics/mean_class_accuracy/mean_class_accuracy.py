"""Mean of the classes' accuracies, as a metric of `evaluate`."""

import datasets
import evaluate
import numpy as np

from mvd_hf.evaluation.metrics import mean_class_accuracy

DESCRIPTION = "The unweighted mean of the accuracies of all classes with samples."
INPUTS = """
Args:
    predictions: predicted class indices.
    references: true class indices.
Returns:
    mean_class_accuracy: from 0 to 1.
"""


class MeanClassAccuracy(evaluate.Metric):
    """See the module."""

    def _info(self):
        integer = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": integer, "references": integer}),
        )

    def _compute(self, predictions, references):
        predictions, labels = np.array(predictions), np.array(references)
        num_classes = int(max(predictions.max(), labels.max())) + 1
        return {"mean_class_accuracy": mean_class_accuracy(predictions, labels, num_classes)}
