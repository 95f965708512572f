"""Accuracy of a k-nearest-neighbour classifier on frozen features, as a metric of `evaluate`."""

import datasets
import evaluate
import numpy as np

from mvd_hf.evaluation.metrics import knn_scores, top_k_accuracy

DESCRIPTION = """
Top-1 and top-5 accuracy of the votes of the k nearest training features by cosine, weighted exp(cosine / temperature).
Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018.
"""
INPUTS = """
Args:
    predictions: features (width,) of each sample.
    references: class index of each sample.
    bank: features (M, width) of the training samples, given to `compute`.
    bank_labels: their class indices.
    k: neighbours, 20 by default.
    temperature: of the votes, 0.07 by default; None for equal votes.
Returns:
    knn_top1, knn_top5: from 0 to 1.
"""


class KnnAccuracy(evaluate.Metric):
    """See the module."""

    def _info(self):
        features = {
            "predictions": datasets.Sequence(datasets.Value("float32")),
            "references": datasets.Value("int64"),
        }
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references, bank, bank_labels, k=20, temperature=0.07):
        labels, bank_labels = np.array(references), np.array(bank_labels)
        num_classes = int(max(labels.max(), bank_labels.max())) + 1
        scores = knn_scores(np.array(predictions), np.array(bank), bank_labels, num_classes, k, temperature)
        return {"knn_top1": top_k_accuracy(scores, labels, 1), "knn_top5": top_k_accuracy(scores, labels, 5)}
