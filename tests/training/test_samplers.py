"""Orders of samples in training and evaluation."""

import datasets
import pytest
import torch

from mvd_hf import MVDVideoProcessor
from mvd_hf.data.clips import ClipDataset, ClipSampler
from mvd_hf.model.frame_sampling import pretraining_frames
from mvd_hf.training.samplers import EpochSampler, EvaluationSampler, check_frame_distance


def test_the_sampler_shuffles_anew_each_epoch_and_gives_whole_steps():
    sampler = EpochSampler(num_samples=10, total_batch_size=4, seed=3)
    assert len(sampler) == 8
    first = list(sampler)
    assert first == list(sampler)
    assert {epoch for epoch, _ in first} == {0}
    assert len({index for _, index in first}) == 8
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _ in second} == {1}
    assert [index for _, index in first] != [index for _, index in second]


def test_a_data_set_smaller_than_a_step_is_refused():
    with pytest.raises(ValueError, match="3 samples, fewer than the total batch of 4"):
        EpochSampler(num_samples=3, total_batch_size=4, seed=0)


@pytest.mark.parametrize(("count", "batch", "blanks"), [(10, 4, 2), (8, 4, 0), (1, 3, 2)])
def test_an_evaluation_takes_every_sample_once_and_fills_the_last_batch_with_blanks(count, batch, blanks):
    sampler = EvaluationSampler(count, batch)
    assert len(sampler) == count + blanks
    assert list(sampler) == [(0, index) for index in range(count)] + [(0, -1)] * blanks


def test_clips_by_seconds_need_a_processor_of_the_same_rate():
    rows = datasets.Dataset.from_dict({"video": ["a.mp4"]})
    by_number, by_seconds = (ClipDataset(rows, ClipSampler(pretraining_frames, None, fps=fps)) for fps in (None, 4))
    check_frame_distance(by_number, MVDVideoProcessor(frame_sampling_rate=2))
    check_frame_distance(by_seconds, MVDVideoProcessor(fps=4))
    check_frame_distance(torch.utils.data.Dataset(), MVDVideoProcessor(fps=4))
    for clips, processor in ((by_number, MVDVideoProcessor(fps=4)), (by_seconds, MVDVideoProcessor(fps=8))):
        with pytest.raises(ValueError, match=f"fps={processor.fps}"):
            check_frame_distance(clips, processor)
