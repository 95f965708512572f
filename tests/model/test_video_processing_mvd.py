"""The video processor: resizing, crops, frames, inputs, arguments, saving, errors, and the stock pipeline."""

import http.server
import io
import json
import shutil
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoImageProcessor, AutoVideoProcessor, pipeline
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.video_utils import VideoMetadata

import mvd_hf.model.video_processing_mvd as video_processing
from launching import run_fresh
from mvd_hf import MVDConfig, MVDForActionDetection, MVDForVideoClassification, MVDVideoProcessor
from mvd_hf.data.decoding import read_frames
from mvd_hf.data.toy import toy_frames, write_video
from mvd_hf.model.frame_sampling import dense_test_frames, uniform_test_frames
from mvd_hf.model.resizing_mvd import covering_size, crop_offsets, resize_bilinear, resize_short_side
from mvd_hf.model.video_reading import VideoReadError
from video_files import MOMENTS, write_moments

SIZE = 16
RAW = {"do_rescale": False, "do_normalize": False}  # grey levels come out
WHOLE = RAW | {"do_resize": False, "do_center_crop": False}
LENGTHS = {"long": 40, "short": 5}


def processor(**fields) -> MVDVideoProcessor:
    """A processor of clips of 4 x 16 x 16 pixels."""
    distance = {} if fields.get("fps") else {"frame_sampling_rate": 2}
    return MVDVideoProcessor(**{"size": SIZE, "crop_size": SIZE, "num_frames": 4} | distance | fields)


def pixels_of(videos, **fields) -> torch.Tensor:
    return processor(**fields)(videos, return_tensors="pt").pixel_values


def random_frames(frames: int = 4, height: int = 20, width: int = 26, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def numbered_frames(count: int, height: int = SIZE, width: int = SIZE) -> np.ndarray:
    """Frames whose red is their number, green the row and blue the column."""
    frame, row, column = np.meshgrid(range(count), range(height), range(width), indexing="ij")
    return np.stack([frame, row, column], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """A long and a short video file."""
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, length) in enumerate(LENGTHS.items()):
        write_video(folder / f"{name}.mp4", toy_frames("dots", "left", length, 24, 32, np.random.default_rng(seed)))
    (folder / "broken.mp4").write_bytes(b"not a video at all")
    return {name: folder / f"{name}.mp4" for name in (*LENGTHS, "broken")}


@pytest.fixture(scope="module")
def server(videos):
    """Address of a server of the videos on this machine, to which Hugging Face's offline mode does not apply.

    /moved/NAME leads to /NAME.
    """

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    handler = partial(Handler, directory=str(videos["long"].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


# resizing and crops


def test_resized_grey_levels():
    line = torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2)
    assert resize_bilinear(line, 1, 4)[0, 0, 0].tolist() == [0, 64, 191, 255]
    assert resize_bilinear(line.transpose(-1, -2), 4, 1)[0, 0, :, 0].tolist() == [0, 64, 191, 255]
    frames = torch.from_numpy(random_frames(2, 12, 8)).movedim(-1, 1)
    blocks = frames.int().unflatten(-1, (4, 2)).unflatten(-3, (6, 2)).sum((-1, -3))
    assert torch.equal(resize_bilinear(frames, 6, 4), ((blocks + 2) // 4).to(torch.uint8))


def test_resized_frames_are_within_a_grey_level_of_exact_interpolation():
    for size in [(7, 9), (20, 61), (53, 26), (1, 1), (90, 3)]:
        frames = torch.from_numpy(random_frames(3)).movedim(-1, 1)
        resized, exact = resize_bilinear(frames, *size), resize_bilinear(frames.double(), *size)
        assert resized.dtype == torch.uint8
        assert resized.shape == (3, 3, *size)
        assert (resized - exact).abs().max() < 1


def test_the_long_side_is_rounded_down_and_fitting_frames_stay():
    frames = torch.zeros(1, 3, 48, 75, dtype=torch.uint8)
    assert resize_short_side(frames, 56).shape[-2:] == (56, 87)
    assert resize_short_side(frames.mT, 56).shape[-2:] == (87, 56)
    assert resize_short_side(frames, 48) is frames


def test_frames_cover_a_crop_that_is_not_square():
    assert covering_size(48, 64, 24, 24) == (24, 32)
    assert covering_size(48, 64, 24, (24, 32)) == (24, 32)
    assert covering_size(48, 64, 24, (24, 48)) == (36, 48)
    assert covering_size(50, 33, 24, (48, 24)) == (48, 31)
    assert covering_size(64, 48, 24, (48, 24)) == (48, 36)
    assert covering_size(48, 64, 16, 24) == (16, 21)  # the crop is refused afterwards
    frames = random_frames(4, 48, 64)
    own = processor(size=24, crop_size={"height": 24, "width": 48}, **RAW)
    assert own(frames, num_crops=3, return_tensors="pt")["pixel_values"].shape == (1, 3, 4, 3, 24, 48)


def test_crop_offsets():
    assert crop_offsets(10, 13, 10) == [(0, 2)]  # halves are rounded to even
    assert crop_offsets(15, 10, 10) == [(2, 0)]
    assert crop_offsets(10, 17, 10, 3) == [(0, 0), (0, 3), (0, 7)]
    assert crop_offsets(17, 10, 10, 3) == [(0, 0), (3, 0), (7, 0)]
    assert crop_offsets(14, 14, 10, 2) == [(0, 2), (4, 2)]
    assert crop_offsets(10, 20, (8, 12), 2) == [(1, 0), (1, 8)]
    assert crop_offsets(16, 20, (8, 18), 3) == [(0, 1), (4, 1), (8, 1)]  # along the side with more room
    with pytest.raises(ValueError, match=r"11x11.*10x20"):
        crop_offsets(10, 20, 11)
    with pytest.raises(ValueError, match="num_crops=0"):
        crop_offsets(10, 20, 10, 0)


def test_centre_crop_scale_and_normalisation():
    frames = random_frames(4, 16, 22)
    expected = torch.from_numpy(frames[:, :, 3:19]).movedim(-1, 1) / 255
    assert torch.allclose(pixels_of(frames, do_normalize=False)[0], expected, atol=1e-6)
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    normalised = pixels_of(frames)
    assert normalised.dtype == torch.float32
    assert torch.allclose(normalised[0], (expected - mean) / std, atol=1e-5)
    assert torch.equal(pixels_of(frames, **RAW)[0], (expected * 255).round().to(torch.uint8))


def test_rectangular_sizes():
    frames = random_frames(4, 20, 26)
    clip = pixels_of(frames, size={"height": 12, "width": 18}, crop_size={"height": 8, "width": 16}, **RAW)[0]
    resized = resize_bilinear(torch.from_numpy(frames).movedim(-1, 1), 12, 18)
    assert torch.equal(clip, resized[..., 2:10, 1:17])


# which frames


def test_frames_are_those_of_the_samplers():
    for length in [1, 3, 7, 8, 30]:
        for num_clips in [1, 3]:
            samplers = {"dense": dense_test_frames(length, 4, 2, num_clips)}
            samplers["uniform"] = uniform_test_frames(length, 4, num_clips)
            for sampling, expected in samplers.items():
                options = {"do_sample_frames": True, "sampling": sampling, "num_clips": num_clips} | RAW
                output = processor(return_metadata=True, **options)(numbered_frames(length), return_tensors="pt")
                clips = output.pixel_values[0].view(num_clips, 4, 3, SIZE, SIZE)
                assert torch.equal(clips[:, :, 0, 0, 0], torch.from_numpy(expected).to(torch.uint8))
                metadata = output.video_metadata[0]
                assert (metadata.total_num_frames, metadata.frames_indices) == (length, expected.ravel().tolist())


def test_frame_numbers_without_a_video():
    described = VideoMetadata(total_num_frames=30)
    assert processor().sample_frames(described).tolist() == [10, 12, 14, 16]
    assert processor().sample_frames(described, num_frames=2, sampling="uniform").tolist() == [7, 21]
    with pytest.raises(ValueError, match="fps=3"):
        processor().sample_frames(described, fps=3)
    described.fps = 12
    assert processor().sample_frames(described, fps=6).tolist() == processor().sample_frames(described).tolist()


def test_views_are_all_crops_of_the_first_clip_then_of_the_next():
    frames = numbered_frames(30, SIZE, 26)
    views = pixels_of([frames, frames], do_sample_frames=True, num_clips=2, num_crops=3, **RAW)
    assert views.shape == (2, 6, 4, 3, SIZE, SIZE)
    clips = dense_test_frames(30, 4, 2, 2)
    first_pixels = [(int(clip[0]), column) for clip in clips for column in (0, 5, 10)]
    assert [(view[0, 0, 0, 0].item(), view[0, 2, 0, 0].item()) for view in views[1]] == first_pixels


def test_decoded_frames_are_one_clip_by_default():
    clip = numbered_frames(4)
    assert pixels_of(clip, **RAW)[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert pixels_of(clip, do_sample_frames=True, **RAW)[0, :, 0, 0, 0].tolist() == [0, 2, 2, 2]
    assert pixels_of(numbered_frames(6), do_sample_frames=False, **RAW).shape[1] == 6
    with pytest.raises(ValueError, match=r"6 frames.*num_frames=4.*do_sample_frames=True"):
        pixels_of(numbered_frames(6))
    with pytest.raises(ValueError, match=r"num_clips=2.*do_sample_frames=True"):
        pixels_of(clip, num_clips=2)


def test_all_frames_of_a_file(videos):
    clip = pixels_of(videos["short"], do_sample_frames=False, **WHOLE)[0]
    assert torch.equal(clip.movedim(1, -1), torch.from_numpy(read_frames(videos["short"], range(5))))


def test_frames_of_files(videos):
    for name, length in LENGTHS.items():
        samplers = {"dense": dense_test_frames(length, 4, 2, 1)[0], "uniform": uniform_test_frames(length, 4, 1)[0]}
        for sampling, indices in samplers.items():
            clip = pixels_of(str(videos[name]), sampling=sampling, **WHOLE)[0]
            assert torch.equal(clip.movedim(1, -1), torch.from_numpy(read_frames(videos[name], indices)))
            metadata = processor(sampling=sampling, return_metadata=True)(videos[name]).video_metadata[0]
            assert (metadata.total_num_frames, metadata.frames_indices) == (length, indices.tolist())
            assert (metadata.height, metadata.width) == (24, 32)


# forms of input


def test_every_form_of_a_file_gives_the_same(videos, server):
    path = videos["long"]
    expected = pixels_of(path)
    assert expected.shape == (1, 4, 3, SIZE, SIZE)
    with path.open("rb") as file:
        forms = [str(path), path.read_bytes(), file, io.BytesIO(path.read_bytes()), bytearray(path.read_bytes())]
        forms += [f"{server}/long.mp4", f"{server}/moved/long.mp4"]
        for form in forms:
            assert torch.equal(pixels_of(form), expected)
    frames = read_frames(path, range(40))
    for form in (frames, torch.from_numpy(frames).movedim(-1, 1), [Image.fromarray(frame) for frame in frames]):
        assert torch.equal(pixels_of(form, do_sample_frames=True), expected)


def test_every_form_of_a_clip_gives_the_same():
    clip = random_frames()
    tensor = torch.from_numpy(clip).movedim(-1, 1)
    expected = pixels_of(clip)
    read_only = clip.copy()
    read_only.setflags(write=False)
    images = [Image.fromarray(frame) for frame in clip]
    forms = [tensor, tensor.contiguous(), images, tuple(images), list(clip), list(tensor), read_only]
    forms += [clip[::-1].copy()[::-1]]
    forms += [torch.from_numpy(clip), clip.transpose(0, 3, 1, 2), clip[None], tensor[None], [clip], [images]]
    for form in forms:
        assert torch.equal(pixels_of(form), expected)
    both = torch.cat([expected, expected])
    for form in (np.stack([clip, clip]), torch.stack([tensor, tensor]), [clip, tensor], [images, clip]):
        assert torch.equal(pixels_of(form), both)


def test_batches_of_different_videos(videos):
    batch = [videos["short"], random_frames(), videos["long"].read_bytes()]
    together = pixels_of(batch)
    assert together.shape == (3, 4, 3, SIZE, SIZE)
    for video, clip in zip(batch, together, strict=True):
        assert torch.equal(pixels_of(video)[0], clip)


def test_channels():
    narrow = random_frames(4, 3, 20)  # 3 rows: both axes could be the channels
    assert torch.equal(pixels_of(narrow, **WHOLE)[0], torch.from_numpy(narrow).movedim(-1, 1))
    assert torch.equal(pixels_of(torch.from_numpy(narrow), **WHOLE)[0], torch.from_numpy(narrow))
    first = pixels_of(narrow, input_data_format="channels_first", **WHOLE)[0]
    assert torch.equal(first, torch.from_numpy(narrow))
    grey = random_frames()[..., :1]
    assert torch.equal(pixels_of(grey), pixels_of(grey.repeat(3, axis=-1)))
    palette = [Image.fromarray(frame).convert("P") for frame in random_frames()]
    assert torch.equal(pixels_of(palette), pixels_of([image.convert("RGB") for image in palette]))


def test_floats_are_already_scaled():
    clip = random_frames()
    floats = pixels_of(torch.from_numpy(clip / 255).movedim(-1, 1), do_rescale=False)
    assert floats.dtype == torch.float32
    assert (floats - pixels_of(clip)).abs().max() < 0.02  # a grey level


def test_other_forms_of_output():
    clip = random_frames()
    output = processor()(clip)
    assert torch.equal(output["pixel_values"][0], pixels_of(clip)[0])
    arrays = processor()([clip, clip], return_tensors="np")["pixel_values"]
    assert isinstance(arrays, np.ndarray)
    assert arrays.shape == (2, 4, 3, SIZE, SIZE)


def test_device_of_the_work():
    assert pixels_of(random_frames(), device="meta").device.type == "meta"
    assert pixels_of(random_frames(), device=torch.device("cpu")).device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_pixels():
    clip = random_frames(16, 256, 340)
    on_gpu, on_cpu = (MVDVideoProcessor(device=name, **RAW)(clip)["pixel_values"][0] for name in ("cuda", "cpu"))
    assert on_gpu.device.type == "cuda"
    assert torch.equal(on_gpu.cpu(), on_cpu)


# arguments and saving

OWN = {"sampling": "uniform", "num_frames": 8, "frame_sampling_rate": 3, "num_clips": 5, "num_crops": 3}


def test_saved_and_loaded(tmp_path):
    original = MVDVideoProcessor(**OWN, size=32, crop_size=32, image_mean=[0.5, 0.4, 0.3], do_sample_frames=True)
    original.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert {name: stored[name] for name in OWN} == OWN
    loaded = MVDVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == original.to_dict()
    frames = random_frames(30, 40, 50)
    assert torch.equal(loaded(frames).pixel_values[0], original(frames).pixel_values[0])
    changed = MVDVideoProcessor.from_pretrained(tmp_path, num_clips=1)
    assert (changed.num_clips, changed.num_crops) == (1, 3)
    assert MVDVideoProcessor(**original.to_dict()).to_dict() == original.to_dict()


def test_it_is_the_image_processor_too(tmp_path):
    processor(num_crops=3).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == {
        "image_processor_type": "MVDVideoProcessor"
    }
    MVDConfig(num_frames=4).save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MVDVideoProcessor
    assert loaded.to_dict() == MVDVideoProcessor.from_pretrained(tmp_path).to_dict()
    assert loaded.num_crops == 3


@pytest.mark.parametrize("task", ["object-detection", "image-feature-extraction"])
def test_pipelines_for_images_are_refused_with_the_task_for_videos(tmp_path, task):
    model = MVDForActionDetection(
        MVDConfig(
            image_size=16, patch_size=8, num_frames=4, hidden_size=48, num_hidden_layers=1, num_attention_heads=3
        )
    )
    processor = MVDVideoProcessor.for_detection(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="video-"):
        pipeline(task, model=str(tmp_path), device="cpu")
    build = pipeline(task, model=model, image_processor=processor, device="cpu")
    with pytest.raises(ValueError, match="video"):
        build(Image.new("RGB", (32, 32)))


def test_fields_of_another_version_are_kept_out_of_the_way(tmp_path):
    processor().save_pretrained(tmp_path)
    file = tmp_path / "video_preprocessor_config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"do_something_new": True}))
    assert MVDVideoProcessor.from_pretrained(tmp_path).num_frames == 4
    file.write_text(json.dumps(stored | {"num_clips": "5"}))
    with pytest.raises(StrictDataclassError, match="num_clips"):
        MVDVideoProcessor.from_pretrained(tmp_path)


def test_wrong_arguments_are_refused():
    wrong = {"num_crop": 3, "num_crops": "3", "num_clips": True, "sampling": "random", "frame_sampling_rate": 2.5}
    for name, value in (wrong | {"fps": "2", "do_pad": True, "resample": 3}).items():
        for call in (MVDVideoProcessor, partial(processor(), random_frames())):
            with pytest.raises((TypeError, ValueError, StrictDataclassError), match=name):
                call(**{name: value})


def test_arguments_of_a_call_win_over_stored_ones():
    stored = processor(num_frames=2, sampling="uniform", **RAW)
    clip = stored(numbered_frames(30), num_frames=4, sampling="dense", do_sample_frames=True, return_tensors="pt")
    assert clip.pixel_values[0, :, 0, 0, 0].tolist() == [10, 12, 14, 16]
    assert (stored.num_frames, stored.sampling) == (2, "uniform")
    unsaid = stored(numbered_frames(2), num_frames=None, size=None, image_mean=None, return_tensors="pt")
    assert torch.equal(unsaid.pixel_values, stored(numbered_frames(2), return_tensors="pt").pixel_values)


def test_impossible_values_are_named():
    for fields, message in [
        ({"num_frames": 0, "do_sample_frames": True}, "num_frames=0"),
        ({"num_clips": 0, "do_sample_frames": True}, "num_clips=0"),
        ({"frame_sampling_rate": 0, "do_sample_frames": True}, "stride=0"),
        ({"num_crops": 0}, "num_crops=0"),
        ({"num_crops": 3, "do_center_crop": False}, "num_crops=3.*do_center_crop"),
        ({"size": {"longest_edge": 20}}, "longest_edge.*shortest_edge"),
        ({"crop_size": 17}, "17x17.*16x20"),
    ]:
        with pytest.raises(ValueError, match=message):
            pixels_of(random_frames(), **fields)


def test_frames_that_cannot_be_used_are_named():
    for video, message in [
        ([], "no video"),
        (3, "type int"),
        ([None], "type NoneType"),
        ([["a.mp4", "b.mp4"]], "type list"),
        (random_frames()[0], r"shape \(20, 26, 3\)"),
        (random_frames()[..., [0, 1, 2, 0]], r"shape \(4, 20, 26, 4\).*RGB"),
        (random_frames()[:0], r"shape \(0, 20, 26, 3\)"),
        (random_frames().astype(np.int64), "torch.int64.*do_rescale=False"),
        (random_frames() / 255, "torch.float64.*do_rescale=False"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], r"\(8, 8, 3\), \(8, 9, 3\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            pixels_of(video)


def test_a_bad_file_is_named(videos, server):
    for bad in (videos["broken"], f"{server}/broken.mp4", "missing.mp4"):
        with pytest.raises(VideoReadError, match=str(bad).rpartition("/")[2]) as raised:
            pixels_of([videos["long"], bad])
        assert str(raised.value).startswith(str(bad))
    with pytest.raises(VideoReadError, match=f"{server}/nowhere.mp4: cannot be downloaded .*404"):
        pixels_of(f"{server}/nowhere.mp4")
    with pytest.raises(VideoReadError, match="bytes of video"):
        pixels_of(b"no video")


# with a model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    """A classifier with a processor of uniform frames."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = MVDForVideoClassification(MVDConfig(**sizes, num_frames=4, num_labels=6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    processor(sampling="uniform").save_pretrained(folder)
    return folder


def scores_of(folder: Path, frames: np.ndarray) -> torch.Tensor:
    """Probabilities of a clip (T, H, W, 3), computed step by step."""
    frames = resize_short_side(torch.from_numpy(frames).movedim(-1, 1), SIZE)[..., 2 : 2 + SIZE]
    mean, std = (torch.tensor(value)[:, None, None] for value in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    with torch.no_grad():
        logits = MVDForVideoClassification.from_pretrained(folder)(((frames / 255 - mean) / std)[None]).logits[0]
    return logits.softmax(-1)


def check_scores(found: list[dict], expected: torch.Tensor):
    order = expected.argsort(descending=True)[: len(found)]
    assert [item["label"] for item in found] == [f"LABEL_{label}" for label in order.tolist()]
    assert [item["score"] for item in found] == pytest.approx(expected[order].tolist(), abs=1e-5)


def test_the_stock_pipeline(model_folder, videos, server):
    classify = pipeline("video-classification", model=str(model_folder), device="cpu")
    assert type(classify.video_processor) is MVDVideoProcessor
    long, short = (str(videos[name]) for name in LENGTHS)
    expected = {
        path: scores_of(model_folder, read_frames(path, uniform_test_frames(LENGTHS[Path(path).stem], 4, 1)[0]))
        for path in (long, short)
    }
    dense = scores_of(model_folder, read_frames(long, dense_test_frames(40, 4, 2, 1)[0]))
    assert (expected[long] - dense).abs().max() > 1e-3  # so that the sampling matters
    check_scores(classify(long), expected[long])
    check_scores(classify(f"{server}/short.mp4", top_k=6), expected[short])
    assert sum(item["score"] for item in classify(short, top_k=6)) == pytest.approx(1)
    for found, path in zip(classify([short, long]), (short, long), strict=True):
        check_scores(found, expected[path])
    frames = torch.from_numpy(read_frames(long, range(40))).movedim(-1, 1)
    check_scores(classify(frames), expected[long])
    with pytest.raises(VideoReadError, match="broken"):
        classify(str(videos["broken"]))


def test_the_stock_pipeline_makes_batches(model_folder, videos, monkeypatch):
    classify = pipeline("video-classification", model=str(model_folder), device="cpu")
    forward, sizes = classify.model.forward, []
    monkeypatch.setattr(
        classify.model, "forward", lambda **clips: sizes.append(len(clips["pixel_values"])) or forward(**clips)
    )
    paths = [str(videos["long"]), str(videos["short"]), str(videos["long"])]
    alone = [classify(path) for path in paths]
    sizes.clear()
    together = classify(paths, batch_size=2)
    assert sizes == [2, 1]
    for found, expected in zip(together, alone, strict=True):
        assert [item["label"] for item in found] == [item["label"] for item in expected]
        assert [item["score"] for item in found] == pytest.approx([item["score"] for item in expected], abs=1e-5)


def test_the_stock_pipeline_saves_the_processor(model_folder, videos, tmp_path):
    classify = pipeline("video-classification", model=str(model_folder), device="cpu")
    classify.save_pretrained(tmp_path)
    again = pipeline("video-classification", model=str(tmp_path), device="cpu")
    assert again.video_processor.to_dict() == classify.video_processor.to_dict()
    assert again(str(videos["long"])) == classify(str(videos["long"]))


@pytest.mark.slow
def test_as_code_that_comes_with_a_model(tmp_path, videos):
    folder = tmp_path / "model"
    processor().save_pretrained(folder)
    sources = Path(video_processing.__file__).parent
    for source in sources.glob("*.py"):
        shutil.copy(source, folder)
    file = folder / "video_preprocessor_config.json"
    entry = {"auto_map": {"AutoVideoProcessor": "video_processing_mvd.MVDVideoProcessor"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    program = (
        "import sys, torch; from transformers import AutoVideoProcessor\n"
        "sys.modules['mvd_hf'] = None  # as if it were not installed\n"
        "loaded = AutoVideoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "torch.save(loaded(sys.argv[2], return_tensors='pt').pixel_values, sys.argv[3])\n"
    )
    arguments, variables = (folder, videos["long"], tmp_path / "clip.pt"), {"HF_HOME": str(tmp_path / "home")}
    run_fresh(program, *arguments, folder=tmp_path, variables=variables)
    assert torch.equal(torch.load(tmp_path / "clip.pt"), pixels_of(videos["long"]))


def test_processor_of_a_model_has_its_frames_pixels_and_normalisation():
    config = MVDConfig(image_size=(32, 48), patch_size=8, num_frames=8, image_mean=(0.5, 0.4, 0.3))
    processor = MVDVideoProcessor.for_model(config, sampling="uniform")
    clip = processor(np.zeros((8, 64, 96, 3), np.uint8), return_tensors="pt")["pixel_values"]
    assert clip.shape == (1, 8, 3, 32, 48)
    assert (processor.sampling, processor.image_mean) == ("uniform", config.image_mean)


# people


def detector_config(**fields) -> MVDConfig:
    return MVDConfig(**{"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32} | fields)


def test_a_detector_sees_whole_frames_with_zeros_up_to_whole_patches():
    detection = MVDVideoProcessor.for_detection(detector_config(image_size=28, patch_size=4))
    assert detection.size.shortest_edge == 32
    frames = random_frames(4, 32, 50)
    pixels = detection(frames, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 4, 3, 32, 52)
    assert not pixels[..., 50:].any()
    whole = detection(frames, size_divisor=1, return_tensors="pt").pixel_values
    assert torch.equal(pixels[..., :50], whole)


def test_boxes_are_resized_with_the_frames():
    for unit in ["relative", "pixels"]:
        detection = MVDVideoProcessor.for_detection(detector_config(), box_unit=unit)
        frames, boxes = random_frames(4, 74, 100), np.array([[10.0, 37.0, 60.0, 74.0], [0.0, 0.0, 100.0, 74.0]])
        given = boxes / [100, 74, 100, 74] if unit == "relative" else boxes
        inputs = detection(frames, boxes=given, return_tensors="pt")
        torch.testing.assert_close(inputs.boxes[0], torch.tensor([[5, 18.5, 30, 37], [0, 0, 50, 37.0]]))
        assert inputs.box_mask.tolist() == [[True, True]]
        assert inputs.pixel_values.shape[-2:] == (40, 56)


def test_boxes_show_the_same_pixels_before_and_after():
    frames = np.zeros((4, 60, 90, 3), dtype=np.uint8)
    frames[:, 15:45, 30:60] = 255
    inputs = processor(size=20, crop_size=16, **RAW)(frames, boxes=[[1 / 3, 0.25, 2 / 3, 0.75]], return_tensors="pt")
    x1, y1, x2, y2 = (round(edge) for edge in inputs.boxes[0, 0].tolist())
    assert (x1, y1, x2, y2) == (3, 3, 13, 13)  # resized to 20 x 30, then the centre of 16 x 16
    assert inputs.pixel_values[0, ..., y1:y2, x1:x2].float().mean() > 230
    assert inputs.pixel_values[0, ..., :y1, :].float().mean() < 10


def test_boxes_end_at_the_crop():
    inputs = processor()(random_frames(4, 16, 32), boxes=[[0, 0, 1, 1]], return_tensors="pt")
    assert inputs.boxes.tolist() == [[[0, 0, 16, 16]]]


def test_a_batch_has_boxes_for_each_video():
    detection, frames = MVDVideoProcessor.for_detection(detector_config()), random_frames(4, 40, 40)
    inputs = detection([frames] * 3, boxes=[[[0, 0, 1, 1]], [], [[0, 0, 0.5, 1], [0.5, 0, 1, 1]]], return_tensors="pt")
    assert inputs.box_mask.tolist() == [[True, False], [False, False], [True, True]]
    listed = detection([frames] * 2, boxes=torch.rand(2, 3, 4).sort(dim=-1).values[..., [0, 1, 2, 3]])
    assert [boxes.shape for boxes in listed.boxes] == [(3, 4), (3, 4)]
    assert isinstance(detection(frames, boxes=[[0, 0, 1, 1]], return_tensors="np").boxes, np.ndarray)
    with pytest.raises(ValueError, match="boxes for 1 of 3 videos"):
        detection([frames] * 3, boxes=[[[0, 0, 1, 1]]])
    with pytest.raises(ValueError, match="single view"):
        detection(frames, boxes=[[0, 0, 1, 1]], num_crops=3, do_center_crop=True)


def test_what_people_do_comes_back_in_the_original_pixels(tmp_path):
    config = detector_config(num_labels=3, num_hidden_layers=1, num_attention_heads=2)
    model = MVDForActionDetection(config).eval()
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 2.0, -2.0]))
    MVDVideoProcessor.for_detection(config).save_pretrained(tmp_path)
    detection = AutoVideoProcessor.from_pretrained(tmp_path)
    assert (detection.size_divisor, detection.do_center_crop) == (8, False)
    boxes = [[[10, 20, 60, 70], [0, 0, 100, 75]], []]
    inputs = detection([random_frames(4, 75, 100)] * 2, boxes=boxes, box_unit="pixels", return_tensors="pt")
    outputs = model(**inputs)
    (one, two), nobody = detection.post_process_action_detection(outputs, target_sizes=[(75, 100)] * 2)
    assert nobody == []
    torch.testing.assert_close(one["box"], torch.tensor([10.0, 20, 60, 70]))
    torch.testing.assert_close(two["box"], torch.tensor([0.0, 0, 100, 75]))
    assert one["labels"].tolist() == [1, 0]
    torch.testing.assert_close(one["scores"], torch.tensor([2.0, 0.0]).sigmoid())
    assert not one["scores"].requires_grad
    everything = detection.post_process_action_detection(outputs, threshold=0)
    assert everything[0][0]["labels"].tolist() == [1, 0, 2]
    torch.testing.assert_close(everything[0][1]["box"], outputs.boxes[0, 1])
    (first, _), _ = detection.post_process_action_detection(outputs, threshold=0, top_k=1)
    assert first["labels"].tolist() == [1]
    (sure, _), _ = detection.post_process_action_detection(outputs, threshold=0.9)
    assert sure["labels"].tolist() == []
    with pytest.raises(ValueError, match="1 target_sizes for 2 clips"):
        detection.post_process_action_detection(outputs, target_sizes=[(75, 100)])


def test_boxes_come_back_through_a_crop_and_a_size_given_in_the_call():
    config = detector_config(num_labels=3, num_hidden_layers=1, num_attention_heads=2)
    model, crops = MVDForActionDetection(config).eval(), MVDVideoProcessor.for_model(config)
    inputs = crops(random_frames(4, 80, 96), boxes=[[0.3, 0.4, 0.6, 0.7]], size=40, return_tensors="pt")
    ((person,),) = crops.post_process_action_detection(model(**inputs), target_sizes=[(80, 96)], size=40)
    torch.testing.assert_close(person["box"], torch.tensor([28.8, 32, 57.6, 56]))


# frames by seconds


def test_a_rate_in_seconds_chooses_the_frames_of_the_same_moments(tmp_path):
    for name in MOMENTS:
        video = write_moments(tmp_path, name)
        output = processor(fps=5, num_clips=2)(video, return_metadata=True)
        moments = MOMENTS[name][np.array(output.video_metadata[0].frames_indices).reshape(2, 4)]
        assert np.abs(moments - [np.arange(4) / 5, 3.2 + np.arange(4) / 5]).max() <= 0.06, name


def test_a_processor_stores_frames_per_second_instead_of_a_stride(tmp_path):
    processor(frame_sampling_rate=None, fps=5).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert (stored["fps"], stored["frame_sampling_rate"]) == (5, None)
    loaded = MVDVideoProcessor.from_pretrained(tmp_path)
    assert (loaded.fps, loaded.frame_sampling_rate) == (5, None)
    assert MVDVideoProcessor.from_pretrained(tmp_path, frame_sampling_rate=2).fps is None
    assert "fps" not in processor().to_dict()


def test_a_call_chooses_between_seconds_and_stride(videos):
    for stored, given in ((processor(), {"fps": 6.25}), (processor(fps=3), {"frame_sampling_rate": 4})):
        found = stored(videos["long"], return_metadata=True, **given).video_metadata[0].frames_indices
        assert (
            found
            == processor(frame_sampling_rate=4)(videos["long"], return_metadata=True).video_metadata[0].frames_indices
        )


def test_seconds_and_stride_exclude_each_other(videos):
    with pytest.raises(ValueError, match="fps=5"):
        MVDVideoProcessor(fps=5, frame_sampling_rate=4)
    with pytest.raises(ValueError, match="frame_sampling_rate=3"):
        processor()(videos["long"], fps=5, frame_sampling_rate=3)
    with pytest.raises(ValueError, match=r"fps=5.*uniform"):
        MVDVideoProcessor(fps=5, sampling="uniform")
    with pytest.raises(ValueError, match=r"fps=5.*video file"):
        MVDVideoProcessor(fps=5, num_frames=4)(numbered_frames(30, 256, 256), do_sample_frames=True)
