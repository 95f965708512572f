"""Diagnostics of a distillation: agreement with teachers, variance of targets, rank of the student's features."""

from collections.abc import Mapping

import torch
from torch import nn

from ..evaluation.encoders import pool_tokens


@torch.no_grad()
def agreement(predictions: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Per teacher, as scalars: `cosine_<name>` of prediction and target, and `target_variance_<name>`.

    The mean cosine similarity of the feature vectors, and the mean over channels of the targets' variance over patches
    and clips. A variance near 0 means that a teacher gives the same features everywhere.

    Args:
        predictions: per teacher (B, M, D) at the masked patches.
        targets: per teacher its features (B, M, D) at the same patches.
    """
    metrics = {}
    for name, target in targets.items():
        prediction, target = predictions[name].float(), target.float()
        metrics[f"cosine_{name}"] = nn.functional.cosine_similarity(prediction, target, dim=-1).mean()
        metrics[f"target_variance_{name}"] = target.flatten(0, 1).var(dim=0, correction=0).mean()
    return metrics


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """Features (N, D) transposed times themselves, (D, D) in float64.

    In float32, rounding adds singular values of about a thousandth of the largest one in each of the D dimensions.
    """
    if features.device.type == "mps":  # has no float64
        features = features.cpu()
    features = features.double()
    return features.T @ features


def effective_rank(gram: torch.Tensor) -> float:
    """RankMe (Garrido et al., 2023, eq. 1): how many dimensions features use, from 1 to D.

    It is exp(H), H the entropy of the singular values of the features (N, D) normalised to sum 1. Their squares are
    the eigenvalues of the Gram matrix.

    Args:
        gram: from [`gram_matrix`]; may be a sum over batches and processes.

    Raises:
        ValueError: if the matrix is not float64, because rounding would then dominate a low rank.
    """
    if gram.dtype != torch.float64:
        raise ValueError(f"The Gram matrix is {gram.dtype}: compute it in float64 with gram_matrix(features).")
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    share = values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


class OnlineProbe(nn.Module):
    """A linear classifier that is trained on the student's detached features during distillation.

    Its input is the mean of the visible patches' features, standardised per clip. Each batch is scored before the
    probe learns from it, so the accuracy is on clips that it has not seen in this epoch.

    Args:
        hidden_size: D, width of the student.
        num_classes: number of classes.
        learning_rate: of the probe's AdamW.
    """

    def __init__(self, hidden_size: int, num_classes: int, learning_rate: float = 1e-3):
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"An online probe needs at least 2 classes, not num_classes={num_classes}.")
        self.num_classes = num_classes
        self.classifier = nn.Linear(hidden_size, num_classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=learning_rate, weight_decay=0.0)

    @classmethod
    def for_clips(cls, clips, hidden_size: int, num_classes: int | None = None) -> "OnlineProbe":
        """A probe for labelled training clips, which may know the number of their classes.

        Raises:
            ValueError: if neither they nor `num_classes` say how many there are.
        """
        num_classes = num_classes or len(clips.reader.labels.names or ())
        if not num_classes:
            raise ValueError("The labels of the probe have no names that could be counted: give probe_classes.")
        return cls(hidden_size, num_classes)

    def learn(self, features: torch.Tensor, labels: torch.Tensor, accelerator, is_blank: bool = False) -> torch.Tensor:
        """Accuracy on a batch, as a scalar, then one step of learning from it, together with all processes.

        Args:
            features: (B, V, D) of visible patches.
            labels: (B,) class indices.
            accelerator: averages the gradients.
            is_blank: whether the batch takes part for the sake of other processes only.

        Raises:
            ValueError: if a label is not one of the classes; found on the CPU only, where looking costs no waiting.
        """
        if labels.device.type == "cpu" and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(f"Labels {labels.unique().tolist()} are not all among the {self.num_classes} classes.")
        pooled = pool_tokens(features.detach(), eps=1e-5)
        with torch.enable_grad(), torch.autocast(features.device.type, enabled=False):
            logits = self.classifier(pooled)
            loss = nn.functional.cross_entropy(logits, labels) * (0.0 if is_blank else 1.0)
            gradients = torch.autograd.grad(loss, list(self.parameters()))
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = accelerator.reduce(gradient, "mean")
        self.optimizer.step()
        return (logits.detach().argmax(dim=-1) == labels).float().mean()
