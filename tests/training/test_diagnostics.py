"""Health of a distillation: agreement, variance, effective rank, the online probe and what of it is logged."""

import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from mvd_hf import DistillationTrainer, MVDForFeatureDistillation, MVDTrainingArguments, load_teachers, tube_mask
from mvd_hf.training.diagnostics import OnlineProbe, agreement, effective_rank, gram_matrix


def test_agreement_is_the_cosine_and_the_variance_of_the_targets():
    hidden = {"image": torch.randn(2, 2, 8), "video": torch.randn(2, 2, 6)}
    metrics = agreement({"image": 3 * hidden["image"], "video": -hidden["video"]}, hidden)
    assert metrics["cosine_image"].item() == pytest.approx(1)
    assert metrics["cosine_video"].item() == pytest.approx(-1)
    expected = hidden["image"].flatten(0, 1).var(dim=0, correction=0).mean().item()
    assert metrics["target_variance_image"].item() == pytest.approx(expected)
    dead = agreement(hidden, {name: torch.ones_like(target) for name, target in hidden.items()})
    assert dead["target_variance_video"] == 0


@pytest.mark.parametrize("width", [8, 384, 768, 1280])
@pytest.mark.parametrize("used", [1, 4, 64])
def test_effective_rank_counts_the_dimensions_in_use(used, width):
    used = min(used, width)
    features = torch.linalg.qr(torch.randn(1600, used)).Q @ torch.linalg.qr(torch.randn(width, used)).Q.T
    assert effective_rank(gram_matrix(20 * features)) == pytest.approx(used, rel=1e-2)


def test_a_gram_matrix_that_is_too_coarse_is_refused():
    with pytest.raises(ValueError, match=r"float32.*gram_matrix"):
        effective_rank(torch.eye(3))


def test_effective_rank_is_the_published_formula():
    features = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([5.0, 3, 2, 1, 0.5, 0.1])
    values = torch.linalg.svdvals(features)
    share = values / values.sum()
    assert effective_rank(gram_matrix(features)) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-6)


def test_the_probe_learns_what_the_features_tell_and_leaves_them_alone():
    torch.manual_seed(0)
    probe, accelerator = OnlineProbe(8, 3, learning_rate=0.05), Accelerator(cpu=True)
    centres = torch.randn(3, 8)
    accuracies = []
    for _ in range(60):
        labels = torch.randint(3, (32,))
        features = (centres[labels][:, None] + 0.1 * torch.randn(32, 4, 8)).requires_grad_()
        accuracies.append(probe.learn(features, labels, accelerator).item())
        assert features.grad is None
    assert accuracies[-1] > 0.95 > accuracies[0]


def test_a_blank_batch_teaches_the_probe_nothing():
    probe = OnlineProbe(4, 2)
    probe.learn(torch.randn(2, 3, 4), torch.tensor([0, 1]), Accelerator(cpu=True), is_blank=True)
    assert all((parameter == 0).all() for parameter in probe.parameters())


def test_the_number_of_classes_is_given_or_known_to_the_clips():
    def labelled(names):
        return SimpleNamespace(reader=SimpleNamespace(labels=SimpleNamespace(names=names)))

    assert OnlineProbe.for_clips(labelled(["run", "walk"]), 4).num_classes == 2
    assert OnlineProbe.for_clips(labelled(None), 4, 3).num_classes == 3
    with pytest.raises(ValueError, match="probe_classes"):
        OnlineProbe.for_clips(labelled(None), 4)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_labels_that_are_no_class_of_the_probe_are_refused(labels):
    with pytest.raises(ValueError, match="not all among the 3 classes"):
        OnlineProbe(4, 3).learn(torch.randn(2, 3, 4), torch.tensor(labels), Accelerator(cpu=True))
    with pytest.raises(ValueError, match="num_classes=1"):
        OnlineProbe(4, 1)


class Clips(torch.utils.data.Dataset):
    def __init__(self, config):
        self.config = config

    def __len__(self):
        return 16

    def __getitem__(self, key):
        generator = torch.Generator().manual_seed(sum(key))
        shape = (self.config.num_frames, 3, *self.config.frame_size)
        return {
            "pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
            "bool_masked_pos": tube_mask(self.config.grid, self.config.mask_ratio, generator),
            "labels": torch.tensor(key[1] % 2),
        }


def train(config, teachers, folder, epochs, resume=None):
    torch.manual_seed(0)
    args = MVDTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=4,
        dataloader_num_workers=0,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        num_train_epochs=epochs,
        schedule_epochs=2,
        warmup_epochs=0,
        base_learning_rate=0.1,
    )
    trainer = DistillationTrainer(
        MVDForFeatureDistillation(config),
        load_teachers(teachers, config.grid, config.num_frames),
        probe=OnlineProbe(config.hidden_size, 2),
        args=args,
        train_dataset=Clips(config),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_logs_its_health_and_the_probe_resumes(tiny_student_config, tiny_teachers, tmp_path):
    whole = train(tiny_student_config, tiny_teachers, tmp_path / "whole", 2)
    logs = [entry for entry in whole.state.log_history if "loss" in entry]
    for entry in logs:
        assert {"loss_image", "loss_video", "probe_accuracy"} <= entry.keys()
        assert -1 <= entry["cosine_image"] <= 1
        assert entry["target_variance_video"] > 0
        assert 1 <= entry["student_rank"] <= tiny_student_config.hidden_size
    assert logs[-1]["cosine_image"] > logs[0]["cosine_image"]
    train(tiny_student_config, tiny_teachers, tmp_path / "cut", 1)
    resumed = train(tiny_student_config, tiny_teachers, tmp_path / "cut", 2, str(tmp_path / "cut" / "checkpoint-4"))
    assert [entry for entry in resumed.state.log_history if "loss" in entry] == logs
    for name, value in whole.probe.state_dict().items():
        assert torch.equal(value, resumed.probe.state_dict()[name])
