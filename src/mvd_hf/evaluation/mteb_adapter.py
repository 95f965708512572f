"""A frozen model as an encoder of mteb, for its Massive Video Embedding Benchmark, MVEB.

    pip install ".[mteb]"

    import mteb
    from mvd_hf.evaluation.mteb_adapter import MTEBEncoder

    mteb.evaluate(MTEBEncoder("outputs/my_student"), mteb.get_benchmark("MVEB(video, v1)"))

Only the tasks without text and without sound can be run.
"""

from pathlib import Path
from typing import Any

import datasets
import torch
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction

from ..model.video_reading import VideoReadError
from .encoders import Encoder, EncoderArguments
from .views import VideoViews, ViewOptions, load_views


class MTEBEncoder(AbsEncoder):
    """The mean token of clips as the embedding of a video, the mean over its clips.

    Videos are read by the reader of mvd_hf, so torchcodec is not needed.

    Args:
        model_name: Hub id or local folder of a model that can teach or that was trained here.
        revision: of the results in mteb.
        device: to compute on; by default CUDA if available.
        num_clips: clips of a video, of frames spread over its whole length.
        batch_size: clips per forward pass.
        num_workers: decoding workers.
        fields: of `mvd_hf.evaluation.encoders.EncoderArguments`, such as `layers` or `dtype`.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        num_clips: int = 2,
        batch_size: int = 8,
        num_workers: int = 2,
        **fields: Any,
    ):
        self.encoder = Encoder("model", EncoderArguments(model_name, **fields))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = self.encoder.to(self.device)
        self.num_clips, self.options = num_clips, ViewOptions(views_per_pass=batch_size, num_workers=num_workers)
        name = f"local/{Path(model_name).name}" if Path(model_name).is_dir() else model_name
        known = {"name": name, "n_parameters": self.encoder.num_parameters(), "embed_dim": self.encoder.width}
        known |= {"modalities": ["video"], "similarity_fn_name": ScoringFunction.COSINE, "framework": ["PyTorch"]}
        self.mteb_model_meta = ModelMeta.create_empty(known | ({"revision": revision} if revision else {}))

    @torch.no_grad()
    def encode(self, inputs, *, task_metadata, **options: Any) -> torch.Tensor:
        """Embeddings (videos, D) of the column `video`. Raises ValueError for text, VideoReadError for a bad video."""
        rows = inputs.dataset
        others = set(rows.features) & {"text", "audio", "image"}
        if "video" not in rows.features or others:
            raise ValueError(f"{task_metadata.name} has {', '.join(rows.features)}: choose tasks on videos alone.")
        rows = rows.cast_column("video", datasets.Video(decode=False)).select_columns("video")
        videos = VideoViews(rows, self.encoder.processor("uniform", 4, self.num_clips))
        embeddings = []
        for batch in load_views(videos, range(len(rows)), self.options):
            for _, name, views, problem in batch:
                if views is None:
                    raise VideoReadError(name, problem)
                parts = views.to(self.device).split(self.options.views_per_pass)
                pooled = torch.cat([self.encoder.pool(self.encoder(part)) for part in parts])
                embeddings.append(pooled.mean(dim=0).cpu())
        return torch.stack(embeddings)
