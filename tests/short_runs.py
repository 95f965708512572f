"""Random clips with masks or labels, a tiny VideoMAE, and the arguments of a run of a few steps."""

from types import SimpleNamespace

import torch

from mvd_hf import MVDConfig, MVDTrainingArguments, tube_mask


class Clips(torch.utils.data.Dataset):
    def __init__(self, config: MVDConfig, count: int = 8, labels: bool = False):
        self.config, self.count, self.labels = config, count, labels

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        shape = (self.config.num_frames, 3, *self.config.frame_size)
        item = {"pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)}
        if self.labels:
            soft = torch.rand(self.config.num_labels, generator=generator)
            return {**item, "labels": soft / soft.sum()}
        return {**item, "bool_masked_pos": tube_mask(self.config.grid, self.config.mask_ratio, generator)}


def arguments(folder="unused", **overrides) -> MVDTrainingArguments:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return MVDTrainingArguments(**(options | overrides))


def videomae(**overrides) -> MVDConfig:
    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1}
    return MVDConfig.from_name("videomae-b", **(sizes | {"decoder_num_attention_heads": 2} | overrides))


def counts(clips_per_video: int = 1, masks_per_clip: int = 1, seed: int = 0) -> SimpleNamespace:
    """What pre-training clips take of the training arguments."""
    return SimpleNamespace(clips_per_video=clips_per_video, masks_per_clip=masks_per_clip, seed=seed)
