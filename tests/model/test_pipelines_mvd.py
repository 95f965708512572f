"""Our pipelines: views, features of clips and windows, people, batches, saving, errors."""

import io
import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoVideoProcessor, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from launching import run_fresh
from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForVideoClassification,
    MVDVideoProcessor,
)
from mvd_hf.data.decoding import read_frames
from mvd_hf.data.mixup import Mixup
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.model.frame_sampling import key_frame_clip
from mvd_hf.model.pipelines_mvd import (
    MVDActionDetectionPipeline,
    MVDFeatureExtractionPipeline,
    MVDMultiViewClassificationPipeline,
    SlidingWindows,
)
from mvd_hf.model.video_reading import VideoReadError
from video_files import MOMENTS, write_moments

SIZES = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTHS = {"long": 40, "short": 5}
VIEWS, FEATURES, PEOPLE = "video-multiview-classification", "video-feature-extraction", "video-action-detection"
BOXES = [[0.1, 0.2, 0.5, 0.9], [0.5, 0.1, 0.9, 0.6], [0.0, 0.0, 1.0, 1.0]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, str]:
    """A long, a short and a broken video file."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_video(folder / f"{name}.mp4", toy_frames("dots", "left", length, 24, 32, np.random.default_rng(seed)))
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return {name: str(folder / f"{name}.mp4") for name in (*LENGTHS, "broken")}


def save(folder: Path, kind=MVDForVideoClassification, processor=None, **fields) -> Path:
    """A model whose weights are large enough for inputs to matter, with its processor."""
    torch.manual_seed(0)
    config = MVDConfig(**(SIZES | {"num_frames": 4, "num_labels": 6, "decoder_num_hidden_layers": 1} | fields))
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    MVDVideoProcessor.for_model(config, frame_sampling_rate=2, **(processor or {})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("student"), MVDForFeatureDistillation)


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    folder = save(tmp_path_factory.mktemp("detector"), MVDForActionDetection)
    MVDVideoProcessor.for_detection(MVDConfig.from_pretrained(folder), frame_sampling_rate=2).save_pretrained(folder)
    return folder


def load(task: str, folder: Path, **options):
    return pipeline(task, model=str(folder), device="cpu", **options)


def scores_by_hand(folder: Path, video, function=lambda logits: logits.softmax(-1), **views) -> torch.Tensor:
    """Mean over the views of what a function makes of the logits."""
    clips = AutoVideoProcessor.from_pretrained(folder)(video, do_sample_frames=True, return_tensors="pt", **views)
    with torch.no_grad():
        model = MVDForVideoClassification.from_pretrained(folder)
        return function(model(clips.pixel_values.flatten(0, -5)).logits.double()).mean(0)


def check_scores(found: list[dict], expected: torch.Tensor):
    order = expected.argsort(descending=True)[: len(found)]
    assert [item["label"] for item in found] == [f"LABEL_{label}" for label in order.tolist()]
    assert [item["score"] for item in found] == pytest.approx(expected[order].tolist(), abs=1e-6)


@pytest.mark.parametrize("task", ["video-classification", VIEWS, FEATURES])
def test_what_data_sets_hold_is_taken(classifier, videos, task):
    run = load(task, classifier)
    paths = [videos["long"], videos["short"]]
    expected = str(run(paths))
    rows = datasets.Dataset.from_dict({"video": paths}).cast_column("video", datasets.Video(decode=False))
    contents = [{"path": None, "bytes": Path(path).read_bytes()} for path in paths]
    assert str(list(run(KeyDataset(rows, "video")))) == expected
    assert str(run([row["video"] for row in rows])) == expected
    assert str(run(contents)) == expected
    assert str([run(item) for item in contents]) == expected
    if task != "video-classification":  # of transformers, which takes lists only
        assert str(run(rows["video"])) == expected


@pytest.mark.parametrize("task", [VIEWS, FEATURES])
def test_a_list_of_frames_is_one_video(classifier, videos, task):
    frames = read_frames(videos["long"], range)
    run = load(task, classifier)
    images = [Image.fromarray(frame) for frame in frames]
    expected = str(run(frames))
    assert str(run(images)) == str(run(tuple(images))) == str(run(list(frames))) == expected
    with pytest.raises(ValueError, match="tuple"):
        load("video-classification", classifier)(images)


# several views


@pytest.mark.parametrize(("sampling", "views"), [("dense", (5, 3)), ("uniform", (2, 3))])
def test_views_are_the_papers_where_the_processor_stores_one(sampling, views, videos, tmp_path):
    folder = save(tmp_path, processor={"sampling": sampling})
    classify = load(VIEWS, folder)
    assert isinstance(classify, MVDMultiViewClassificationPipeline)
    expected = scores_by_hand(folder, videos["long"], num_clips=views[0], num_crops=views[1])
    one_view = scores_by_hand(folder, videos["long"])
    assert (expected - one_view).abs().max() > 1e-3  # so that the views matter
    check_scores(classify(videos["long"]), expected)
    check_scores(classify(videos["long"], num_clips=1, num_crops=1), one_view)


def test_stored_views_and_those_of_a_call(videos, tmp_path):
    folder = save(tmp_path, processor={"num_clips": 2, "num_crops": 2})
    classify = load(VIEWS, folder)
    check_scores(classify(videos["long"]), scores_by_hand(folder, videos["long"]))
    views = {"num_clips": 3, "sampling": "uniform", "frame_sampling_rate": 1}
    check_scores(classify(videos["long"], **views), scores_by_hand(folder, videos["long"], **views))
    configured = load(VIEWS, folder, num_crops=1, top_k=2)
    found = configured(videos["long"])
    assert len(found) == 2
    check_scores(found, scores_by_hand(folder, videos["long"], num_crops=1))


def test_views_of_several_videos_share_batches(classifier, videos, monkeypatch):
    classify, sizes = load(VIEWS, classifier), []
    forward = classify.model.forward
    monkeypatch.setattr(
        classify.model, "forward", lambda **clips: sizes.append(len(clips["pixel_values"])) or forward(**clips)
    )
    paths = [videos["long"], videos["short"]]
    expected = [scores_by_hand(classifier, path, num_clips=5, num_crops=3) for path in paths]
    for batch_size, batches in {1: [1] * 30, 8: [8, 8, 8, 6], 100: [30]}.items():
        sizes.clear()
        for found, scores in zip(classify(paths, batch_size=batch_size), expected, strict=True):
            check_scores(found, scores)
        assert sizes == batches
    check_scores(classify(videos["short"], batch_size=15), expected[1])


def test_the_function_is_that_of_the_problem_unless_given(videos, tmp_path):
    functions = dict.fromkeys((None, "single_label_classification"), lambda logits: logits.softmax(-1))
    functions |= {"multi_label_classification": torch.sigmoid, "regression": lambda logits: logits}
    views = {"num_clips": 2, "num_crops": 1}
    for problem, function in functions.items():
        folder = save(tmp_path / str(problem), problem_type=problem)
        classify = load(VIEWS, folder)
        check_scores(classify(videos["long"], **views), scores_by_hand(folder, videos["long"], function, **views))
        plain = scores_by_hand(folder, videos["long"], lambda logits: logits, **views)
        check_scores(classify(videos["long"], function_to_apply="none", **views), plain)


def test_decoded_videos_are_accepted(classifier, videos):
    classify, path = load(VIEWS, classifier), Path(videos["long"])
    frames = read_frames(path, range(40))
    expected = classify(videos["long"])
    for video in (path, frames, torch.from_numpy(frames).movedim(-1, 1), path.read_bytes()):
        assert classify(video) == expected
    assert classify([[Image.fromarray(frame) for frame in frames]]) == [expected]  # a list is a list of videos


def test_the_stock_pipeline_of_a_model_trained_with_soft_labels(classifier, videos, tmp_path):
    model = MVDForVideoClassification.from_pretrained(classifier).train()
    clips = {"pixel_values": torch.rand(2, 4, 3, 16, 16), "labels": torch.tensor([1, 4])}
    mixed = Mixup(num_classes=6)(clips, torch.Generator().manual_seed(0))
    assert mixed["labels"].is_floating_point()
    model(**mixed).loss.backward()
    model.save_pretrained(tmp_path)
    AutoVideoProcessor.from_pretrained(classifier).save_pretrained(tmp_path)
    for task in ("video-classification", VIEWS):
        scores = load(task, tmp_path)(videos["long"], top_k=6)
        assert sum(item["score"] for item in scores) == pytest.approx(1)  # softmax, not sigmoid


# features


def features_by_hand(folder: Path, clips: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return AutoModel.from_pretrained(folder)(clips).last_hidden_state


def test_features_of_the_clip_that_the_processor_chooses(student, videos):
    extract = load(FEATURES, student)
    assert isinstance(extract, MVDFeatureExtractionPipeline)
    clip = AutoVideoProcessor.from_pretrained(student)(videos["long"], return_tensors="pt", return_metadata=True)
    tokens = features_by_hand(student, clip.pixel_values).unflatten(1, (2, 2, 2))
    expected = {"tokens": tokens, "tubelets": tokens.mean((2, 3)), "pooled": tokens.mean((1, 2, 3))}
    for name, features in expected.items():
        output = extract(videos["long"], features=name)
        assert output["features"].shape == features.shape
        assert torch.allclose(output["features"], features, atol=1e-5)
        assert output["frames"].tolist() == [clip.video_metadata[0].frames_indices]
    assert torch.equal(extract(videos["long"])["features"], extract(videos["long"], features="pooled")["features"])


def test_features_of_several_clips_and_crops(student, videos):
    output = load(FEATURES, student)(videos["long"], num_clips=2, num_crops=3, batch_size=4)
    assert output["features"].shape == (6, 32)
    first, last = output["frames"][0].tolist(), output["frames"][5].tolist()
    assert output["frames"].tolist() == [first] * 3 + [last] * 3
    assert first[-1] < last[0]


@pytest.mark.parametrize("name", LENGTHS)
def test_windows_slide_over_the_whole_video(student, videos, name):
    extract, processor = load(FEATURES, student), AutoVideoProcessor.from_pretrained(student)
    frames = read_frames(videos[name], range(LENGTHS[name]))
    for step, rate in ((3, 2), (16, 1)):
        windows = np.stack([window for window, _ in SlidingWindows(4, rate, step).cut(range(len(frames)))])
        clips = processor([frames[window] for window in windows], return_tensors="pt").pixel_values
        expected = features_by_hand(student, clips).mean(1)
        options = {"window_step": step, "frame_sampling_rate": rate}
        for video in (videos[name], frames, Path(videos[name]).read_bytes()):
            output = extract(video, batch_size=3, **options)
            assert np.array_equal(output["frames"].numpy(), windows)
            assert torch.allclose(output["features"], expected, atol=1e-5)
        one_by_one = list(extract.stream(videos[name], batch_size=2, **options))
        assert torch.allclose(torch.stack([part["features"] for part in one_by_one]), expected, atol=1e-5)
        assert [part["frames"].tolist() for part in one_by_one] == windows.tolist()


def test_windows_of_several_videos_are_not_mixed(student, videos):
    extract, names = load(FEATURES, student, window_step=4), ("long", "short")
    for output, name in zip(extract([videos[name] for name in names], batch_size=5), names, strict=True):
        alone = extract(videos[name])
        assert torch.equal(output["frames"], alone["frames"])
        assert torch.allclose(output["features"], alone["features"], atol=1e-5)


def test_each_frame_is_prepared_once_and_few_are_waiting(student, videos, monkeypatch):
    extract = load(FEATURES, student)
    prepared, process = [], extract.video_processor.preprocess
    monkeypatch.setattr(
        extract.video_processor, "preprocess", lambda *a, **k: prepared.append(len(a[0])) or process(*a, **k)
    )
    stream = extract.stream(videos["long"], window_step=2, frame_sampling_rate=2)
    next(stream)
    assert len(prepared) < 12  # the first window's frames, and those that tell that it is not the last
    list(stream)
    assert prepared == [1] * 20


def test_pooled_features_of_a_classifier_are_what_its_head_sees(classifier, videos):
    output = load(FEATURES, classifier)(videos["long"])
    model = MVDForVideoClassification.from_pretrained(classifier)
    with torch.no_grad():
        logits = model.classifier(output["features"])
    clip = AutoVideoProcessor.from_pretrained(classifier)(videos["long"], return_tensors="pt").pixel_values
    with torch.no_grad():
        assert torch.allclose(logits, model(clip).logits, atol=1e-5)


def test_class_tokens_are_no_patches(videos, tmp_path):
    folder = save(tmp_path, MVDForFeatureDistillation, use_class_token=True)
    clip = AutoVideoProcessor.from_pretrained(folder)(videos["long"], return_tensors="pt").pixel_values
    expected = features_by_hand(folder, clip)[:, 1:].mean(1)
    assert torch.allclose(load(FEATURES, folder)(videos["long"])["features"], expected, atol=1e-5)


def test_half_precision_gives_floats(student, videos):
    exact = load(FEATURES, student)(videos["long"])["features"]
    half = load(FEATURES, student, dtype=torch.bfloat16)(videos["long"])["features"]
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.2


# refused


def test_wrong_arguments_are_named(classifier, videos):
    pipelines = {task: load(task, classifier) for task in (VIEWS, FEATURES)}
    for task, options, message in (
        (VIEWS, {"num_clip": 2}, "num_clip"),
        (VIEWS, {"window_step": 2}, "window_step"),
        (VIEWS, {"function_to_apply": "tanh"}, "'tanh'"),
        (VIEWS, {"num_crops": 0}, "num_crops=0"),
        (FEATURES, {"features": "all"}, "'all'"),
        (FEATURES, {"window_step": 0}, "step=0"),
        (FEATURES, {"window_step": 2, "num_crops": 3}, "num_crops.*window_step"),
        (FEATURES, {"top_k": 2}, "top_k"),
    ):
        with pytest.raises(ValueError, match=message):
            pipelines[task](videos["long"], **options)
    for task, options in ((VIEWS, {}), (FEATURES, {}), (FEATURES, {"window_step": 2})):
        with pytest.raises(VideoReadError, match=r"broken\.mp4"):
            pipelines[task](videos["broken"], **options)
        with pytest.raises(VideoReadError, match=r"missing\.mp4: no such file"):
            pipelines[task](["missing.mp4"], **options)


def test_a_model_without_processor_is_refused(classifier, tmp_path):
    model = MVDForVideoClassification.from_pretrained(classifier)
    with pytest.raises(ValueError, match="video_processor"):
        MVDMultiViewClassificationPipeline(model=model)
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"preprocessor"):
        load(VIEWS, tmp_path)


# people


def people_by_hand(folder: Path, frames: np.ndarray, boxes=BOXES, **options) -> list[dict]:
    """What the model says of the people in the middle of a clip."""
    model, processor = MVDForActionDetection.from_pretrained(folder), AutoVideoProcessor.from_pretrained(folder)
    with torch.no_grad():
        outputs = model(**processor(frames, boxes=boxes, return_tensors="pt", **options))
    (people,) = processor.post_process_action_detection(outputs, 0.0, target_sizes=[frames.shape[1:3]])
    return people


def check_people(found: list[dict], expected: list[dict]):
    for person, right in zip(found, expected, strict=True):
        assert list(person["box"].values()) == pytest.approx(right["box"].tolist(), abs=1e-3)
        scores = [action["score"] for action in person["actions"]]
        assert scores == pytest.approx(right["scores"][: len(scores)].tolist(), abs=1e-5)
        assert [int(action["label"].removeprefix("LABEL_")) for action in person["actions"]] == (
            right["labels"][: len(scores)].tolist()
        )


def test_people_are_those_of_a_frame_within_its_clip(detector, videos):
    run = load(PEOPLE, detector)
    assert isinstance(run, MVDActionDetectionPipeline)
    for time, indices in {None: [16, 18, 20, 22], 0.4: [7, 9, 11, 13], 0.0: [0, 0, 1, 3]}.items():
        people = run(videos["long"], boxes=BOXES, time=time, top_k=6)
        check_people(people, people_by_hand(detector, read_frames(videos["long"], indices)))
        assert [list(person["box"]) for person in people] == [["xmin", "ymin", "xmax", "ymax"]] * 3
        assert people[2]["box"] == pytest.approx({"xmin": 0, "ymin": 0, "xmax": 32, "ymax": 24}, abs=1e-3)
        scores = [tuple(action["score"] for action in person["actions"]) for person in people]
        assert [len(each) for each in scores] == [6] * 3
        assert len(set(scores)) == 3


def test_people_in_pixels_in_decoded_frames_and_nobody(detector, videos):
    run = load(PEOPLE, detector)
    expected = run(videos["long"], boxes=BOXES)
    pixels = (np.array(BOXES) * [32, 24, 32, 24]).tolist()
    check = [action["score"] for person in expected for action in person["actions"]]
    frames = read_frames(videos["long"], range)
    clip = frames[key_frame_clip(19, 40, 4, 2)[0]]
    for people in (
        run(videos["long"], boxes=pixels, box_unit="pixels"),
        run({"video": frames, "boxes": np.array(BOXES)}),
        run(clip, boxes=torch.tensor(BOXES), frame_sampling_rate=1),
    ):
        assert [a["score"] for person in people for a in person["actions"]] == pytest.approx(check, abs=1e-5)
    assert run(videos["long"], boxes=[]) == []
    assert [p["actions"] for p in run(videos["long"], boxes=BOXES, threshold=1.0)] == [[], [], []]


def test_frames_of_several_videos_make_batches_with_their_own_people(detector, videos):
    run = load(PEOPLE, detector)
    inputs = [{"video": videos["long"], "boxes": BOXES[:count], "time": 0.2 * count} for count in (1, 3, 0, 2)]
    for together, single in zip(run(inputs, batch_size=3), map(run, inputs), strict=True):
        assert [person["box"] for person in together] == [person["box"] for person in single]
        for one, other in zip(together, single, strict=True):
            assert [a["score"] for a in one["actions"]] == pytest.approx(
                [a["score"] for a in other["actions"]], abs=1e-5
            )


def test_frames_of_videos_of_different_sizes_make_batches(detector, videos, tmp_path):
    wide = str(tmp_path / "wide.mp4")
    write_video(wide, toy_frames("dots", "left", 20, 24, 48, np.random.default_rng(5)))
    run = load(PEOPLE, detector)
    inputs = [{"video": video, "boxes": BOXES[:2]} for video in (videos["long"], wide, videos["short"], wide)]
    for together, single in zip(run(inputs, batch_size=4), map(run, inputs), strict=True):
        for one, other in zip(together, single, strict=True):
            assert one["box"] == other["box"]
            assert [a["score"] for a in one["actions"]] == pytest.approx(
                [a["score"] for a in other["actions"]], abs=1e-5
            )


def test_impossible_inputs_of_an_action_detector_are_refused(detector, videos):
    run, frames = load(PEOPLE, detector), np.zeros((4, 24, 32, 3), np.uint8)
    for video, options, message in (
        (videos["long"], {}, "boxes"),
        (videos["long"], {"boxes": [[0.5, 0.5, 0.1, 0.9]]}, "0.1"),
        (videos["long"], {"boxes": [[1, 2, 30, 20]]}, "box_unit='pixels'"),
        (videos["long"], {"boxes": BOXES, "time": 9.0}, "9 s"),
        (videos["long"], {"boxes": BOXES, "num_crops": 3}, "num_crops"),
        (frames, {"boxes": BOXES, "time": 0.0}, "decoded frames"),
        ({"file": "x.mp4"}, {"boxes": BOXES}, "'file'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(video, **options)


# saving


@pytest.mark.slow
def test_saved_pipelines_are_loaded_by_a_fresh_interpreter(classifier, detector, videos, tmp_path):
    originals = {task: load(task, classifier) for task in (VIEWS, FEATURES)} | {PEOPLE: load(PEOPLE, detector)}
    for task, original in originals.items():
        original.save_pretrained(tmp_path / task)
        assert set(json.loads((tmp_path / task / "config.json").read_text())["custom_pipelines"]) == {task}
    program = (
        "import sys, torch, mvd_hf; from transformers import pipeline\n"
        "folder, video, *tasks = sys.argv[1:]\n"
        "for task in tasks:\n"
        "    run = pipeline(task, model=f'{folder}/{task}', trust_remote_code=True, device='cpu')\n"
        "    assert type(run).__module__.startswith('transformers_modules')\n"
        f"    options = {{'boxes': {BOXES}}} if 'detection' in task else {{}}\n"
        "    torch.save(run(video, **options), f'{folder}/{task}.pt')\n"
    )
    run_fresh(program, tmp_path, videos["long"], *originals, variables={"HF_HOME": str(tmp_path / "home")})
    outputs = {task: torch.load(tmp_path / f"{task}.pt") for task in originals}
    expected = {task: originals[task](videos["long"]) for task in (VIEWS, FEATURES)}
    scores = [action["score"] for person in outputs[PEOPLE] for action in person["actions"]]
    people = originals[PEOPLE](videos["long"], boxes=BOXES)
    assert scores == pytest.approx([action["score"] for person in people for action in person["actions"]], abs=1e-5)
    assert [item["label"] for item in outputs[VIEWS]] == [item["label"] for item in expected[VIEWS]]
    assert torch.allclose(outputs[FEATURES]["features"], expected[FEATURES]["features"], atol=1e-5)


# sliding windows


def test_windows_slide_until_one_reaches_the_end():
    totals, shapes = (1, 2, 3, 7, 8, 9, 20, 100), ((1, 1), (2, 3), (4, 2), (5, 1))
    for (num_frames, stride), step, total in itertools.product(shapes, (1, 2, 7, 20), totals):
        windows = SlidingWindows(num_frames, stride, step)
        cut = list(windows.cut(f"frame {number}" for number in range(total)))
        span = num_frames * stride
        starts = [start for start in range(0, total, step) if start == 0 or start - step + span < total]
        for start, (numbers, frames) in zip(starts, cut, strict=True):
            last_step = (total - 1 - start) // stride
            assert numbers.tolist() == [start + stride * min(i, last_step) for i in range(num_frames)]
            assert frames == [f"frame {number}" for number in numbers]
        chosen = {number for numbers, _ in cut for number in numbers.tolist()}
        unused = [number for number in range(total) if not windows.is_used(number)]
        assert not chosen & set(unused)
        longer = SlidingWindows(num_frames, stride, step).cut(range(total + 2 * span + step))
        assert {n for numbers, _ in longer for n in numbers.tolist() if n < total} == set(range(total)) - set(unused)


def test_windows_come_as_soon_as_they_are_there():
    read = []

    def frames():
        for number in range(1000):
            read.append(number)
            yield number

    windows = SlidingWindows(4, 2, 3).cut(frames())
    numbers, kept = next(windows)
    assert numbers.tolist() == kept == [0, 2, 4, 6]
    assert len(read) == 7
    next(windows)
    assert len(read) == 10


def test_windows_without_frames_are_refused():
    for name in ("num_frames", "stride", "step"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            SlidingWindows(**({"num_frames": 4, "stride": 2, "step": 3} | {name: 0}))


# frames by seconds


@pytest.mark.parametrize("name", ["25", "variable"])
@pytest.mark.parametrize("step", [2, 6])
def test_windows_slide_by_seconds(student, tmp_path, name, step):
    video, moments = write_moments(tmp_path, name), MOMENTS[name]
    sources = [str(video), io.BytesIO(video.read_bytes()), {"path": "x.mp4", "bytes": video.read_bytes()}]
    extract = load(FEATURES, student, fps=5, window_step=step)
    outputs = [extract(source) for source in sources]
    seen = np.array([np.abs(moments - moment + 1e-6).argmin() for moment in np.arange(20) / 5])
    windows = [seen[start : start + 4] for start in range(0, 20 - 4 + step, step)]
    windows = [np.pad(window, (0, 4 - len(window)), mode="edge") for window in windows]
    assert outputs[0]["frames"].tolist() == np.stack(windows).tolist()
    clips = read_frames(video, outputs[0]["frames"].ravel()).reshape(-1, 4, 64, 96, 3)
    expected = torch.cat([load(FEATURES, student, frame_sampling_rate=1)(clip)["features"] for clip in clips])
    for output in outputs:
        torch.testing.assert_close(output["features"], expected)


def test_views_and_people_are_sampled_by_seconds(classifier, detector, tmp_path):
    slow, fast = (str(write_moments(tmp_path, name)) for name in ("10", "60"))
    found = [load(VIEWS, classifier, fps=2.5)(video) for video in (slow, fast)]
    assert [item["label"] for item in found[0]] == [item["label"] for item in found[1]]
    assert load(VIEWS, classifier)(fast) != found[1]
    run = load(PEOPLE, detector)
    by_number = run(fast, boxes=BOXES, time=2.0, frame_sampling_rate=12)
    by_seconds = run(fast, boxes=BOXES, time=2.0, fps=5)
    assert [person["box"] for person in by_number] == [person["box"] for person in by_seconds]
    with pytest.raises(ValueError, match="fps=5"):
        run(read_frames(fast, range(4)), boxes=BOXES, fps=5)
