"""From clips to a batch: several clips per video side by side, unreadable ones left out."""

from torch.utils.data import default_collate

# what an item says about itself beside its tensors
BAD_VIDEOS, IS_BLANK = "bad_videos", "is_blank"


def collate_clips(items: list) -> dict | None:
    """A batch of the clips of a [`ClipDataset`] or [`StreamingClips`]; those of one video lie next to each other.

    Clips that stand for an unreadable video are left out. A batch of nothing else keeps one of them, all black, and
    says so with `is_blank`: its loss counts nothing, so that other processes are not left waiting. `bad_videos`
    lists (file, reason) of every video of the batch that could not be read.

    Args:
        items: clips, or lists of clips, as dicts of tensors; all `None` (skipped while resuming) gives `None`.
    """
    if all(item is None for item in items):
        return None
    clips = [clip for item in items for clip in (item if isinstance(item, list) else [item])]
    good = [clip for clip in clips if not clip.get(IS_BLANK)]
    kept = good or clips[:1]
    batch = default_collate(
        [{key: value for key, value in clip.items() if key not in (BAD_VIDEOS, IS_BLANK)} for clip in kept]
    )
    if not good:
        batch[IS_BLANK] = True
    bad_videos = [event for clip in clips for event in clip.get(BAD_VIDEOS, ())]
    if bad_videos:
        batch[BAD_VIDEOS] = bad_videos
    return batch
