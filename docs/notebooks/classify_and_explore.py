# %% [markdown]
# # Classify and explore a clip
#
# A classifier of the Hub says what happens in your clip. Then you see what it saw: its views of the clip, its
# predictions over time, the attention of a patch, its features as colors, and how similar they are from frame to
# frame.
#
# It needs `mvd_hf` ([installation](../../README.md#install)) and a video file. `MODEL` is any VideoMAE or MVD
# classifier: a Hub id, or the folder of your own.

# %%
import torch
from PIL import Image
from transformers import pipeline

import mvd_hf
from mvd_hf.visualization.attention import choose_query, overlay_attention, query_attention
from mvd_hf.visualization.demo import classify_windows
from mvd_hf.visualization.similarity import FeatureSimilarity, draw_similarity, slot_similarity
from mvd_hf.visualization.strips import draw_strips, figure_pixels
from mvd_hf.visualization.tokens import token_colors

MODEL, NUM_CLASSES = "MCG-NJU/videomae-base-finetuned-kinetics", 400
VIDEO = "clip.mp4"


def show(figure):
    return Image.fromarray(figure_pixels(figure))


# %% [markdown]
# ## Classify
#
# The pipeline takes the mean over two clips of the video and three crops of each. `load_classifier` loads all weights
# or refuses; it names those that are new: here none.

# %%
model, new_weights = mvd_hf.load_classifier(MODEL, NUM_CLASSES)
processor = mvd_hf.MVDVideoProcessor.for_model(model.config, sampling="dense", frame_sampling_rate=4)
classify = pipeline("video-multiview-classification", model=model, video_processor=processor)
print("new weights:", new_weights)
for guess in classify(VIDEO, num_clips=2, num_crops=3):
    print(f"{guess['score']:.2f} {guess['label']}")

# %% [markdown]
# ## The views, and what the model says of each
#
# Every fourth frame of the six views. Models take the pixels as they are decoded (`uint8`) and normalize them.

# %%
options = {"num_clips": 2, "num_crops": 3, "do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
views = processor(VIDEO, **options)["pixel_values"][0]  # (6 views, frames, 3, height, width)
strips = {}
for number, view in enumerate(views):
    with torch.no_grad():
        score, label = model(view[None]).logits.softmax(-1)[0].max(-1)
    name = f"clip {number // 3 + 1}, crop {number % 3 + 1}\n{model.config.id2label[int(label)]}\n{score:.2f}"
    strips[name] = view[::4].permute(0, 2, 3, 1).numpy()
show(draw_strips(strips, [f"frame {i}" for i in range(0, views.shape[1], 4)]))

# %% [markdown]
# ## Predictions over time
#
# The same model on windows from the start to the end of the video, each as long as a clip of the training.

# %%
show(classify_windows(model, processor, VIDEO).draw())

# %% [markdown]
# ## Attention
#
# Where the patch in the middle of the clip (framed) looks, in the last layer, as the mean over the heads. Only the
# attention implementation `eager` gives weights.

# %%
clip = views[1]
frames = clip.permute(0, 2, 3, 1).numpy()
grid, step = model.config.grid, model.config.tubelet_size
encoder = model.mvd
encoder.set_attn_implementation("eager")
query = choose_query(None, model.config)
attention = query_attention(encoder, clip[None], query).mean(dim=0).numpy()
times = [f"slot {i}" for i in range(grid[0])]
show(draw_strips({"attention": overlay_attention(frames, attention, query)[::step]}, times))

# %% [markdown]
# ## Features as colors
#
# Three principal components of the features are red, green and blue. Patches of one color have similar features.

# %%
with torch.no_grad():
    tokens = encoder(clip[None]).last_hidden_state  # (1, patches, width)
colors, share = token_colors(tokens[0], grid)
show(draw_strips({"clip": frames[::step], f"{100 * share:.0f} % of\nvariance": colors}, times))

# %% [markdown]
# ## Similarity of frames
#
# The cosine of the features at the same place at two times, averaged over places. Students of image teachers have
# higher values off the diagonal than students of video teachers (the paper's figure).

# %%
show(draw_similarity(FeatureSimilarity({MODEL.split("/")[-1]: slot_similarity(tokens, grid).numpy()})))

# %% [markdown]
# ## Next
#
# The commands `mvd-hf visualize` draw the same for several models side by side, and `mvd-hf demo` shows it as a page:
# [Figures, demo page, export](../figures.md). Your own classes: [Fine-tune a model](../finetuning.md). Your own
# student: [the notebook about distillation](distil_on_your_videos.ipynb).
