# %% [markdown]
# # Distil DINOv2 and VideoMAE into a small model of your videos
#
# `my_videos` is a folder of your videos. Distillation needs no labels; with a sub-folder per class
# (`my_videos/jump/1.mp4`) the last steps compare and fine-tune the result. It needs `mvd_hf`
# ([installation](../../README.md#install)) and a GPU: take a few clips and few epochs to try it on a CPU.

# %%
import json
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from mvd_hf.visualization.strips import figure_pixels

# %% [markdown]
# ## Look at the data
#
# The audit finds files that cannot be read, and copies. Its list tells the training what to leave out.

# %%
# !mvd-hf audit my_videos --output audit.csv

# %% [markdown]
# ## Choose teachers
#
# DINOv2 teaches appearance, VideoMAE motion; the student is a ViT-S. [Other teachers](../teachers.md) are other names.

# %%
RECIPE = """
student: mvd-s
teachers:
  image: {model: facebook/dinov2-base, target_norm: layernorm}
  video: MCG-NJU/videomae-base
dataset: my_videos
manifest: audit.csv
output_dir: outputs/my_student
num_train_epochs: 100
warmup_epochs: 10
per_device_train_batch_size: 16
logging_steps: 5
"""
Path("my_recipe.yaml").write_text(RECIPE, encoding="utf-8")

# %% [markdown]
# ## What it costs
#
# GPU hours for your number of videos, computed for an H100 that reaches 40 % of its peak (`--device_tflops`, `--mfu`).

# %%
# !mvd-hf cost my_recipe.yaml --num_videos 1000

# %% [markdown]
# ## Distil
#
# On a GPU add `--bf16 true`. Interrupt it whenever you like: the same command continues.

# %%
# !mvd-hf distill my_recipe.yaml

# %% [markdown]
# ## Follow the run
#
# The losses fall, the cosines rise towards 1, the rank of the student's features stays well above 1. [What a bad run
# looks like](../distillation.md#what-to-watch-in-the-log).

# %%
state = json.loads(Path("outputs/my_student/trainer_state.json").read_text(encoding="utf-8"))
log = [entry for entry in state["log_history"] if "student_rank" in entry]
figure = Figure((9, 3), layout="constrained")
panels = {"loss": ("loss_image", "loss_video"), "cosine": ("cosine_image", "cosine_video"), "rank": ("student_rank",)}
for axes, (title, keys) in zip(figure.subplots(1, 3), panels.items(), strict=True):
    for key in keys:
        axes.plot([entry["step"] for entry in log], [entry[key] for entry in log], marker=".", label=key)
    axes.set(title=title, xlabel="step")
    axes.legend(frameon=False)
Image.fromarray(figure_pixels(figure))

# %% [markdown]
# ## What has the student kept of its teachers?
#
# The same probes on the frozen features of the student, its teachers and baselines, with the classes of your folders.
# If the student does not beat the baselines, it has learned nothing that helps with these classes.

# %%
# !mvd-hf probe --models.student outputs/my_student --models.image facebook/dinov2-base \
#     --models.video MCG-NJU/videomae-base --dataset my_videos --manifest audit.csv --baselines majority random

# %%
Image.open("outputs/probe/table.png")

# %% [markdown]
# ## Fine-tune
#
# On a GPU all weights are trained, on a CPU a linear probe; videos that show the same footage stay on one side of the
# split.

# %%
# !mvd-hf finetune --dataset my_videos --manifest audit.csv --model outputs/my_student \
#     --output_dir outputs/my_classifier

# %% [markdown]
# ## Publish
#
# A dry run shows the card and the files. VideoMAE's weights are CC-BY-NC-4.0, so is what was distilled from them;
# without `--dry_run true` the model goes to a private repository of yours.

# %%
# !mvd-hf publish model outputs/my_student --repo me/my-student --license cc-by-nc-4.0 --dry_run true
