"""Random clips with masks, and the arguments of a short run on them."""

from functools import partial

import torch

from mvd_hf import MVDConfig, MVDTrainingArguments, tube_mask
from mvd_hf.data.masking import part_to_decode, several_masks


class Clips(torch.utils.data.Dataset):
    """Random clips with masks, `dataset[(epoch, index)]`."""

    def __init__(self, config: MVDConfig, count: int = 8, sizes: tuple[int, ...] = (32,)):
        self.config, self.count, self.sizes = config, count, sizes

    def __len__(self):
        return self.count

    def __getitem__(self, key):
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = torch.Generator().manual_seed(1000 * epoch + index)
        item = {"bool_masked_pos": tube_mask(self.config.grid, self.config.mask_ratio, generator)}
        for i, size in enumerate(self.sizes):
            name = "pixel_values" if i == 0 else f"pixel_values_{size}"
            shape = (self.config.num_frames, 3, size, size)
            item[name] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return item


class SeveralMasks(Clips):
    """[`Clips`] with `masks` masks each, and the part of the masked patches to decode if the configuration has one."""

    def __init__(self, config: MVDConfig, masks: int, **options):
        super().__init__(config, **options)
        self.masks = masks

    def __getitem__(self, key):
        item = super().__getitem__(key)
        generator = torch.Generator().manual_seed(sum(key) if isinstance(key, tuple) else key)
        if self.masks > 1:
            draw = partial(tube_mask, self.config.grid, self.config.mask_ratio)
            item["bool_masked_pos"] = several_masks(draw, self.masks, generator)
        if self.config.decoder_keep < 1:
            masks, count = item["bool_masked_pos"], self.config.num_decoded_patches
            item["bool_decoded_pos"] = part_to_decode(masks, count, generator)
        return {**item, "labels": torch.tensor(int(item["pixel_values"].sum()) % 2)}


def arguments(folder, **overrides) -> MVDTrainingArguments:
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "num_train_epochs": 2,
        "warmup_epochs": 0,
        "base_learning_rate": 0.1,
        "per_device_train_batch_size": 4,
        "dataloader_num_workers": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return MVDTrainingArguments(**(options | overrides))
