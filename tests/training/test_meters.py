"""What a run keeps count of: means of losses over clips, steps with NaN, videos that could not be read."""

import csv
import logging

import pytest
import torch
from accelerate import Accelerator

from mvd_hf.training import meters
from mvd_hf.training.meters import MAX_BLANK_BATCHES, BadVideoMeter, LossMeter


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


class Processes:
    """Accelerator of several processes of which the others have given sums and steps."""

    def __init__(self, reduced: list[float], gathered: list[list[float]]):
        self.reduced, self.gathered = torch.tensor(reduced), torch.tensor(gathered)

    def reduce(self, values, how):
        assert how == "sum"
        return values + self.reduced

    def gather(self, values):
        return torch.cat([values, self.gathered])


def parts(**values) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_means_are_weighted_by_clips(accelerator):
    losses = LossMeter()
    losses.add(parts(loss=1.0, image=0.5), 1, 3)
    losses.add(parts(loss=5.0, image=2.5), 1, 1)
    assert losses.means(accelerator) == pytest.approx({"loss": 2.0, "image": 1.0})


def test_means_begin_anew_after_each_call(accelerator):
    losses = LossMeter()
    assert losses.means(accelerator) == {}
    losses.add(parts(loss=1.0), 1, 2)
    assert losses.means(accelerator) == {"loss": 1.0}
    assert losses.means(accelerator) == {}
    losses.add(parts(loss=3.0), 2, 2)
    assert losses.means(accelerator) == {"loss": 3.0}


def test_means_are_over_the_clips_of_all_processes():
    losses = LossMeter()
    losses.add(parts(loss=1.0), 1, 2)
    # another process with a sum of 12 over 4 clips
    assert losses.means(Processes([12.0, 4.0], [])) == pytest.approx({"loss": 14 / 6})


def test_half_precision_losses_are_summed_in_single_precision(accelerator):
    losses = LossMeter()
    for _ in range(1000):
        losses.add({"loss": torch.tensor(1.0, dtype=torch.bfloat16)}, 1, 1)
    assert losses.means(accelerator) == {"loss": 1.0}


def test_losses_do_not_hold_on_to_the_graph():
    losses = LossMeter()
    losses.add({"loss": torch.tensor(1.0, requires_grad=True) * 2}, 1, 1)
    assert not losses.sums.requires_grad


def test_a_blank_batch_counts_nothing(accelerator):
    losses = LossMeter()
    losses.add(parts(loss=100.0), 1, 0)
    assert losses.means(accelerator) == {}
    losses.add(parts(loss=100.0), 2, 0)
    losses.add(parts(loss=3.0), 2, 4)
    assert losses.means(accelerator) == {"loss": 3.0}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_first_loss_that_is_not_finite_is_named_with_its_step(accelerator, value):
    losses = LossMeter()
    for step in range(1, 6):
        losses.add(parts(loss=1.0, image=value if step >= 3 else 1.0, video=value if step >= 4 else 1.0), step, 2)
    with pytest.raises(FloatingPointError, match="'image' is NaN or infinite at step 3"):
        losses.check(accelerator)


def test_a_loss_that_is_not_finite_elsewhere_stops_all_processes():
    losses = LossMeter(lambda step, batch, process: [f"{step}-{batch}-{process}"])
    losses.add(parts(loss=1.0, image=1.0), 9, 2)
    with pytest.raises(
        FloatingPointError,
        match=r"'image' .* step 7, micro-batch 1 of process 1, samples: 1 \(7-1-1",
    ):
        losses.check(Processes([], [[torch.inf, 7.0], [0.0, 1.0], [0.0, 0.0]]))


def test_the_first_micro_batch_that_is_not_finite_is_named(accelerator):
    losses = LossMeter(lambda step, batch, process: [f"{step}-{batch}-{index}.mp4" for index in range(40)])
    for step, value in [(1, 1.0), (1, 1.0), (2, 1.0), (2, 1.0), (2, float("inf")), (2, float("nan")), (3, 1.0)]:
        losses.add(parts(loss=value), step, 2)
    with pytest.raises(FloatingPointError, match=r"batch 2 of process 0.* \(2-2-0\.mp4, .*2-2-31\.mp4, \.\.\.\)"):
        losses.check(accelerator)


def test_a_loss_that_is_not_finite_is_not_forgotten(accelerator):
    losses = LossMeter()
    losses.check(accelerator)
    losses.add(parts(loss=1.0), 1, 1)
    losses.check(accelerator)
    assert losses.means(accelerator) == {"loss": 1.0}
    losses.add(parts(loss=float("nan")), 2, 1)
    losses.add(parts(loss=1.0), 3, 1)
    with pytest.raises(FloatingPointError, match="step 2"):
        losses.check(accelerator)


def test_too_many_blank_batches_in_a_row_end_the_run(accelerator):
    losses = LossMeter(max_blank_batches=MAX_BLANK_BATCHES)
    for step in range(MAX_BLANK_BATCHES - 1):
        losses.add(parts(loss=1.0), step, 0)
        losses.check(accelerator)
    one_that_reads = Processes([], [[torch.inf], [0.0], [0.0]])
    as_blank = Processes([], [[torch.inf], [0.0], [1.0]])
    losses.check(one_that_reads)
    with pytest.raises(ValueError, match=f"{MAX_BLANK_BATCHES} batches"):
        losses.check(as_blank)
    losses.add(parts(loss=1.0), 100, 0)
    with pytest.raises(ValueError, match=f"{MAX_BLANK_BATCHES} batches"):
        losses.check(accelerator)
    losses.add(parts(loss=1.0), 101, 1)  # the count begins anew
    losses.check(accelerator)


EVENTS = [("a, b.mp4", "no such\nfile"), ("视频.mp4", 'the "head" is damaged')]


def test_bad_videos_are_counted_and_each_told_once(caplog):
    bad_videos = BadVideoMeter()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            bad_videos.add("training", EVENTS[:1])
        bad_videos.add("training", EVENTS)
        bad_videos.add("evaluation", EVENTS[:1])
    assert [record.getMessage() for record in caplog.records] == [
        "Left out of training: a, b.mp4: no such\nfile",
        'Left out of training: 视频.mp4: the "head" is damaged',
        "Left out of evaluation: a, b.mp4: no such\nfile",
    ]
    assert (bad_videos.total("training"), bad_videos.total("evaluation"), bad_videos.total("test")) == (5, 1, 0)


def test_counts_survive_a_file_and_add_up(tmp_path):
    first, second = BadVideoMeter(), BadVideoMeter()
    first.add("training", [*EVENTS, EVENTS[0]])
    first.add("evaluation", EVENTS[1:])
    first.save(tmp_path / "bad.csv")
    with open(tmp_path / "bad.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["split", "file", "reason", "times"],
        ["evaluation", *EVENTS[1], "1"],
        ["training", *EVENTS[0], "2"],
        ["training", *EVENTS[1], "1"],
    ]
    second.load(tmp_path / "bad.csv")
    assert second.counts == first.counts
    second.add("training", EVENTS[:1])
    second.load(tmp_path / "bad.csv")
    assert second.counts["training", *EVENTS[0]] == 5


@pytest.mark.parametrize("is_main", [True, False])
def test_counts_of_all_processes_move_to_the_main_one(monkeypatch, is_main):
    bad_videos, other = BadVideoMeter(), BadVideoMeter()
    bad_videos.add("training", EVENTS)
    other.add("training", EVENTS[:1])
    monkeypatch.setattr(meters, "gather_object", lambda own: [*own, dict(other.counts)])
    monkeypatch.setattr(meters, "PartialState", lambda: type("State", (), {"is_main_process": is_main}))
    bad_videos.gather()
    expected = {("training", *EVENTS[0]): 2, ("training", *EVENTS[1]): 1}
    assert bad_videos.counts == (expected if is_main else {})


def test_gathering_alone_changes_nothing(accelerator):
    bad_videos = BadVideoMeter()
    bad_videos.add("training", EVENTS)
    for _ in range(2):
        bad_videos.gather()
        assert bad_videos.total("training") == 2


def test_a_description_counts_files_and_occurrences():
    bad_videos = BadVideoMeter()
    bad_videos.add("training", [("a.mp4", "frame 3 is damaged"), ("a.mp4", "frame 7 is damaged")])
    bad_videos.add("training", [("b.mp4", "no such file")] * 3)
    bad_videos.add("evaluation", [("b.mp4", "no such file")])
    assert bad_videos.describe().splitlines() == [
        "2 videos could not be read, 6 times in all:",
        "  4 x b.mp4: no such file",
        "  2 x a.mp4: frame 3 is damaged",
    ]


def test_a_description_ends_after_twenty_files():
    bad_videos = BadVideoMeter()
    for i in range(25):
        bad_videos.add("training", [(f"{i}.mp4", "no such file")] * (30 - i))
    lines = bad_videos.describe().splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("25 videos could not be read")
    assert lines[1] == "  30 x 0.mp4: no such file"
    assert lines[-1] == "  ... and 5 more"


@pytest.mark.parametrize(
    "text", ["split,file\na,b\n", "split,file,reason,times\na,b,c\n", "split,file,reason,times\na,b,c,d\n"]
)
def test_a_damaged_list_of_bad_videos_is_named(tmp_path, text):
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.csv' is damaged"):
        BadVideoMeter().load(tmp_path / "bad.csv")
