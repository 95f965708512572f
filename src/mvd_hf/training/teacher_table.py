"""Which models can teach: examples of each family with what they saw, their license, size and cost, as a table."""

from dataclasses import dataclass

from ..hub.licenses import restrictions
from ..model.configuration_mvd import MVDConfig
from ..teachers.teacher import TeacherConfig, choose_family
from .costs import HUB_MODELS, teacher_flops, teacher_network

UNKNOWN = "unknown"


@dataclass(frozen=True)
class KnownTeacher:
    """A model of the Hub that can teach.

    Args:
        family: key of `mvd_hf.teachers.families.FAMILIES`.
        model: Hub id.
        saw: the data it was trained on.
        license: of its weights, as its card on the Hub names it (read in November 2026).
        good_at: what its objective makes its features hold.
    """

    family: str
    model: str
    saw: str
    license: str
    good_at: str

    @property
    def commercial(self) -> str:
        """Whether the license allows commercial use."""
        if self.license == UNKNOWN:
            return UNKNOWN
        found = restrictions(self.license)
        return "read the license" if found is None else "no" if "no commercial use" in found else "yes"


IMAGENET, WEBLI, KINETICS = "ImageNet-1k", "WebLI: images with text", "Kinetics-400"
NC = "cc-by-nc-4.0"
TEACHERS = (
    # Its card says Apache-2.0; the authors' own files, from which it was converted, are CC-BY-NC-4.0.
    KnownTeacher("vit_mae", "facebook/vit-mae-base", IMAGENET, "apache-2.0 or cc-by-nc-4.0", "appearance; MVD's"),
    KnownTeacher("videomae", "MCG-NJU/videomae-base", KINETICS, NC, "motion; MVD's"),
    KnownTeacher("dinov2", "facebook/dinov2-base", "LVD-142M: images", "apache-2.0", "objects and their parts"),
    KnownTeacher(
        *("dinov3_vit", "facebook/dinov3-vitb16-pretrain-lvd1689m", "LVD-1689M: images", "dinov3-license"),
        "objects and their parts, dense tasks",
    ),
    KnownTeacher("clip_vision_model", "openai/clip-vit-base-patch16", "images with text", UNKNOWN, "named concepts"),
    KnownTeacher("siglip_vision_model", "google/siglip2-base-patch16-224", WEBLI, "apache-2.0", "named concepts"),
    KnownTeacher(
        "tipsv2_vision_model", "google/tipsv2-b14", "images with text", "apache-2.0", "named concepts, dense tasks"
    ),
    KnownTeacher("ijepa", "facebook/ijepa_vith14_1k", IMAGENET, NC, "appearance, without augmentations"),
    KnownTeacher(
        *("radio", "nvidia/C-RADIOv4-H", "images, through SigLIP 2, DINOv3 and SAM 3", "nvidia-open-model-license"),
        "what its three teachers are good at",
    ),
    KnownTeacher(
        *("timm_wrapper", "timm/vit_pe_core_base_patch16_224.fb", "images and videos with text", "apache-2.0"),
        "named concepts",
    ),
    KnownTeacher("vit", "google/vit-base-patch16-224", "ImageNet-21k: labels", "apache-2.0", "classes of objects"),
    KnownTeacher("vjepa2", "facebook/vjepa2-vitl-fpc64-256", "a million hours of videos", "mit", "motion"),
    KnownTeacher(
        *("videoprism_vision_model", "google/videoprism-base-f16r288", "videos and images with text", UNKNOWN),
        "actions and named concepts",
    ),
)
# purpose: image teacher and video teacher to begin with
PAIRS = {
    "as in the paper": ("facebook/vit-mae-base", "MCG-NJU/videomae-base"),
    "motion (Something-Something)": ("facebook/dinov2-base", "facebook/vjepa2-vitl-fpc64-256"),
    "actions with names (Kinetics)": ("google/siglip2-base-patch16-224", "facebook/vjepa2-vitl-fpc64-256"),
    "detection, dense tasks": ("facebook/dinov3-vitb16-pretrain-lvd1689m", "MCG-NJU/videomae-base"),
    "commercial use": ("facebook/dinov2-base", "facebook/vjepa2-vitl-fpc64-256"),
}


def markdown(rows: list[list[str]]) -> str:
    """A Markdown table; the first row is its header."""
    header, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([header, "|" + "---|" * len(rows[0]), *body])


def size_and_cost(model: str) -> list[str]:
    """Patch, width, TFLOPs for a clip of 16 frames on the 8x14x14 patches of a student, and GB of weights in bf16."""
    if model not in HUB_MODELS:
        return [UNKNOWN] * 4  # its configuration is only known to another library
    teacher = TeacherConfig(model)
    network = teacher_network(teacher)
    sizes = choose_family(teacher, network.config).architecture(network.config, model)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    flops = teacher_flops(teacher, MVDConfig())
    return [str(sizes.patch_size), str(sizes.hidden_size), f"{flops / 1e12:.2f}", f"{2 * parameters / 1e9:.1f}"]


def teacher_table() -> str:
    """The teachers and the default pairs, as two Markdown tables."""
    columns = ["family", "example", "saw", "license", "commercial use", "patch", "width", "TFLOPs per clip"]
    rows = [[*columns, "GB in bf16", "good at"]]
    for known in TEACHERS:
        described = [f"`{known.family}`", f"`{known.model}`", known.saw, known.license, known.commercial]
        rows.append([*described, *size_and_cost(known.model), known.good_at])
    pairs = [[purpose, *(f"`{model}`" for model in models)] for purpose, models in PAIRS.items()]
    return f"{markdown(rows)}\n\n{markdown([['to begin with', 'image teacher', 'video teacher'], *pairs])}"
