"""Videos to training clips: sources, decoding, frame sampling, augmentation, masks and batches."""
