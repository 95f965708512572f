"""What the options of a processor make of frames and of boxes: views of a clip, and people in them.

Letters in shapes: V views, K clips, T frames, C channels, H x W pixels of a frame, P people.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Mapping, Sequence

import torch

from .boxes_mvd import Placement, as_pixels, clip_boxes
from .resizing_mvd import covering_size, crop_offsets, resize_bilinear, short_side_size
from .video_inputs_mvd import is_box_matrix

NORMALIZATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def resized_size(height: int, width: int, options: Mapping) -> tuple[int, int]:
    """(height, width) of resized frames.

    Raises:
        ValueError: if the size is neither a short side nor a height and width.
    """
    size, crop = options["size"], options["crop_size"]
    if not options["do_resize"]:
        return height, width
    if size.shortest_edge and not size.longest_edge:
        if options["do_center_crop"]:
            return covering_size(height, width, size.shortest_edge, (crop.height, crop.width))
        return short_side_size(height, width, size.shortest_edge)
    if size.height and size.width:
        return size.height, size.width
    raise ValueError(f"size={dict(size)} must be {{'shortest_edge': ...}} or {{'height': ..., 'width': ...}}.")


def make_views(frames: torch.Tensor, options: Mapping, normalize: Callable[..., torch.Tensor]) -> torch.Tensor:
    """The view (T, C, H, W), or views (V, T, C, H, W), of the frames (K * T, C, H, W) of clips.

    Args:
        frames: uint8, or floats in [0, 1].
        options: of the processor.
        normalize: rescales and normalizes frames, called with the options `NORMALIZATION`.

    Raises:
        ValueError: if the frames have another type or are too small, or there is no crop to take several of.
    """
    if frames.dtype != torch.uint8 and not (frames.is_floating_point() and not options["do_rescale"]):
        raise ValueError(
            f"Frames of {frames.dtype} cannot be processed; pass uint8 from 0 to 255, or floats in [0, 1] with "
            f"do_rescale=False."
        )
    if frames.shape[1] == 1 and options["do_convert_rgb"]:
        frames = frames.expand(-1, 3, -1, -1)
    frames = resize_bilinear(frames, *resized_size(*frames.shape[-2:], options))
    clips = frames.unflatten(0, (options["num_clips"], -1))
    if options["do_center_crop"]:
        size = options["crop_size"].height, options["crop_size"].width
        offsets = crop_offsets(*frames.shape[-2:], size, options["num_crops"])
        crops = [clips[..., top : top + size[0], left : left + size[1]] for top, left in offsets]
    elif options["num_crops"] == 1:
        crops = [clips]
    else:
        raise ValueError(f"num_crops={options['num_crops']} crops need do_center_crop=True.")
    views = normalize(torch.stack(crops, dim=1).flatten(0, 1), *(options[name] for name in NORMALIZATION))
    if options["size_divisor"] is not None:
        rows, columns = (-side % options["size_divisor"] for side in views.shape[-2:])
        views = torch.nn.functional.pad(views, (0, columns, 0, rows))
    return views[0] if len(views) == 1 else views


# people


def list_boxes(boxes, num_videos: int, options: Mapping) -> list:
    """The boxes of each video of a batch; a list of `None` without boxes."""
    if boxes is None:
        return [None] * num_videos
    if options["num_clips"] * options["num_crops"] != 1:
        raise ValueError("Boxes go with a single view of a video: leave num_clips and num_crops at 1.")
    listed = [boxes] if is_box_matrix(boxes) else list(boxes)
    if len(listed) != num_videos:
        raise ValueError(f"There are boxes for {len(listed)} of {num_videos} videos; give (people, 4) for each.")
    return listed


def placement(height: int, width: int, options: Mapping) -> Placement:
    """The place of frames of this size in the model's input."""
    resized, offset = resized_size(height, width, options), (0, 0)
    if options["do_center_crop"]:
        (offset,) = crop_offsets(*resized, (options["crop_size"].height, options["crop_size"].width))
    return Placement((height, width), resized, offset)


def place_boxes(boxes, size: tuple[int, int], options: Mapping) -> torch.Tensor:
    """Boxes (P, 4) of frames of `size` (height, width) in pixels of the model's input, clipped to it."""
    place, crop = placement(*size, options), options["crop_size"]
    placed = place.place(as_pixels(boxes, options["box_unit"], *size)).to(device=options["device"])
    visible = (crop.height, crop.width) if options["do_center_crop"] else place.size
    return clip_boxes(placed, *visible)


def actions_of_people(
    outputs, threshold: float, top_k: int | None, sizes: Sequence[tuple[int, int]] | None, options: Mapping
) -> list[list[dict[str, torch.Tensor]]]:
    """The boxes, labels and scores of each person of each clip; see `post_process_action_detection` of the processor.

    Args:
        outputs: of the model.
        threshold, top_k: least probability, and largest number of actions per person.
        sizes: (height, width) of each original video; `None` leaves boxes in pixels of the input.
        options: of the processor.
    """
    results = []
    for clip in range(len(outputs.logits)):
        is_person = outputs.box_mask[clip].bool()
        boxes = outputs.boxes[clip][is_person].float()
        if sizes is not None:
            boxes = placement(*(int(side) for side in sizes[clip]), options).undo(boxes)
        probabilities = outputs.logits[clip][is_person].detach().float().sigmoid()
        scores, labels = probabilities.sort(dim=1, descending=True, stable=True)
        counts = (scores >= threshold)[:, :top_k].sum(dim=1).tolist()
        people = zip(boxes, labels, scores, counts, strict=True)
        results.append([{"box": box, "labels": label[:n], "scores": score[:n]} for box, label, score, n in people])
    return results


__all__ = ["actions_of_people", "list_boxes", "make_views", "place_boxes", "placement", "resized_size"]
