"""k-NN reports during distillation: at their steps, right for known features, and without effect on training."""

import numpy as np
import pytest
import torch

from masked_clips import Clips, arguments
from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, MVDVideoProcessor, load_teachers
from mvd_hf.training.knn import KnnArguments, KnnCallback, report_knn, two_fold_accuracy


def trainer_of(config, teachers, folder) -> DistillationTrainer:
    torch.manual_seed(0)
    loaded = load_teachers(teachers, config.grid, config.num_frames)
    return DistillationTrainer(
        MVDForFeatureDistillation(config),
        loaded,
        args=arguments(folder, num_train_epochs=2, seed=1),
        processing_class=MVDVideoProcessor.for_model(config, frame_sampling_rate=2),
        train_dataset=Clips(config),
    )


def test_it_is_reported_at_its_steps_and_changes_no_loss(tmp_path, tiny_teachers, tiny_student_config, toy_folder):
    logs = []
    for fields in ({}, {"dataset": toy_folder, "label_column": "motion", "steps": 2, "videos": 10, "neighbours": 3}):
        trainer = trainer_of(tiny_student_config, tiny_teachers, tmp_path)
        report_knn(trainer, fields)
        trainer.train()
        logs.append(trainer.state.log_history)
        assert trainer.model.training
    losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    reports = {entry["step"]: entry["knn_accuracy"] for entry in logs[1] if "knn_accuracy" in entry}
    assert list(reports) == [2, 4]
    assert all(0 <= accuracy <= 1 for accuracy in reports.values())
    assert not any("knn_accuracy" in entry for entry in logs[0])


def test_it_is_the_accuracy_of_the_students_features(tmp_path, tiny_teachers, tiny_student_config, toy_folder):
    trainer = trainer_of(tiny_student_config, tiny_teachers, tmp_path)
    callback = KnnCallback(trainer, KnnArguments(toy_folder, label_column="appearance", neighbours=1))
    assert callback.clips.shape == (32, 4, 3, 32, 32)
    callback.clips = torch.arange(32, dtype=torch.uint8).remainder(4)[:, None, None, None, None] * callback.clips
    accuracy = callback.accuracy()
    encoder = trainer.model.mvd.eval()
    with torch.no_grad():
        features = encoder(callback.clips).last_hidden_state.mean(dim=1)
    features = torch.nn.functional.normalize(features - features.mean(dim=1, keepdim=True), dim=1)
    near = features @ features.T
    parity = torch.arange(32) % 2
    near[parity[:, None] == parity] = -2  # only the other half votes
    assert accuracy == pytest.approx((callback.labels[near.argmax(dim=1)] == callback.labels).float().mean().item())


def test_each_half_is_the_bank_of_the_other():
    labels = torch.from_numpy(np.arange(40) // 2 % 4)  # each class in both halves
    exact = torch.eye(4)[labels]
    assert two_fold_accuracy(exact, labels, 3) == 1
    # a feature of its own for each video says nothing about the others
    assert two_fold_accuracy(torch.eye(40), labels, 1) < 0.5


def test_what_cannot_be_reported_is_refused(tmp_path, tiny_teachers, tiny_student_config, toy_folder):
    trainer = trainer_of(tiny_student_config, tiny_teachers, tmp_path)
    for fields, bad in (
        ({"steps": 5}, r"--knn\.dataset"),
        ({"dataset": toy_folder, "steps": 0}, "steps=0"),
        ({"dataset": toy_folder, "label_column": "motion", "videos": 3}, "3 videos"),
    ):
        with pytest.raises(ValueError, match=bad):
            report_knn(trainer, fields)
