"""Action detection on AVA: annotations, key frames, the metric, and the trainer."""
