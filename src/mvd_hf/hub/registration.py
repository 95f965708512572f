"""The Auto classes and pipelines of transformers learn about MVD when they are imported, and not before.

Registering needs the classes, and importing those takes seconds (torchvision, the pipelines): `import mvd_hf` alone
should not. Every entry of `REGISTRATIONS` therefore runs right after its module of transformers has been imported.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def register_configuration(auto: ModuleType):
    from ..model.configuration_mvd import MVDConfig

    auto.AutoConfig.register("mvd", MVDConfig, exist_ok=True)


def register_models(auto: ModuleType):
    from ..model.configuration_mvd import MVDConfig
    from ..model.detection_mvd import MVDForActionDetection
    from ..model.modeling_mvd import (
        MVDForFeatureDistillation,
        MVDForPixelReconstruction,
        MVDForVideoClassification,
        MVDModel,
    )

    auto.AutoModel.register(MVDConfig, MVDModel, exist_ok=True)
    auto.AutoModelForPreTraining.register(MVDConfig, MVDForFeatureDistillation, exist_ok=True)
    auto.AutoModelForMaskedImageModeling.register(MVDConfig, MVDForPixelReconstruction, exist_ok=True)
    auto.AutoModelForVideoClassification.register(MVDConfig, MVDForVideoClassification, exist_ok=True)
    auto.AutoModelForObjectDetection.register(MVDConfig, MVDForActionDetection, exist_ok=True)


def register_video_processor(auto: ModuleType):
    from ..model.configuration_mvd import MVDConfig
    from ..model.video_processing_mvd import MVDVideoProcessor

    auto.AutoVideoProcessor.register(MVDConfig, MVDVideoProcessor, exist_ok=True)


def register_image_processor(auto: ModuleType):
    from ..model.configuration_mvd import MVDConfig
    from ..model.video_processing_mvd import MVDVideoProcessor

    classes = {"torchvision": MVDVideoProcessor}
    auto.AutoImageProcessor.register(MVDConfig, image_processor_classes=classes, exist_ok=True)


def register_pipelines(pipelines: ModuleType):
    from transformers import AutoModel, AutoModelForObjectDetection, AutoModelForVideoClassification

    from ..model.pipelines_mvd import (
        MVDActionDetectionPipeline,
        MVDFeatureExtractionPipeline,
        MVDMultiViewClassificationPipeline,
    )

    tasks = {
        "video-multiview-classification": (MVDMultiViewClassificationPipeline, AutoModelForVideoClassification),
        "video-feature-extraction": (MVDFeatureExtractionPipeline, (AutoModel, AutoModelForVideoClassification)),
        "video-action-detection": (MVDActionDetectionPipeline, AutoModelForObjectDetection),
    }
    for task, (pipeline, models) in tasks.items():
        pipelines.PIPELINE_REGISTRY.register_pipeline(task, pipeline, pt_model=models, type="video")


REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": register_configuration,
    "transformers.models.auto.modeling_auto": register_models,
    "transformers.models.auto.video_processing_auto": register_video_processor,
    "transformers.models.auto.image_processing_auto": register_image_processor,
    "transformers.pipelines": register_pipelines,
}


# importing one of these may import a module of REGISTRATIONS half-way, when its classes are not there yet
OURS = frozenset(f"mvd_hf.model.{name}_mvd" for name in ("modeling", "detection", "video_processing", "pipelines"))


class WatchedLoader(Loader):
    """Loads a module as its own loader does, and tells the finder when it begins and ends."""

    def __init__(self, loader: Loader, finder: "RegisteringFinder"):
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType):
        module.__spec__.loader = module.__loader__ = self.loader  # as if nothing had been between
        with self.finder.watch(module):
            self.loader.exec_module(module)


class RegisteringFinder(MetaPathFinder):
    """Runs each registration once its module is imported and none of ours is half-way through its own import."""

    def __init__(self):
        self.watched = {*REGISTRATIONS, *OURS} - set(sys.modules)
        self.ready = [name for name in REGISTRATIONS if name in sys.modules]
        self.half_way = 0

    def find_spec(self, name, path=None, target=None) -> ModuleSpec | None:
        if name not in self.watched:
            return None
        self.watched.remove(name)  # first: the search below comes here again
        spec = importlib.util.find_spec(name)
        if spec is not None:
            spec.loader = WatchedLoader(spec.loader, self)
        return spec

    @contextmanager
    def watch(self, module: ModuleType) -> Iterator[None]:
        """Run what is ready after a module's import."""
        is_ours = module.__name__ in OURS
        self.half_way += is_ours
        try:
            yield
        finally:
            self.half_way -= is_ours
        if not is_ours:
            self.ready.append(module.__name__)
        self.register()

    def register(self):
        """Run the registrations that are ready, unless one of our modules is half-way."""
        while self.ready and not self.half_way:
            name = self.ready.pop()
            REGISTRATIONS[name](sys.modules[name])


def register_with_transformers():
    """Register what is imported already, and everything else as soon as it is imported."""
    finder = RegisteringFinder()
    finder.register()
    sys.meta_path.insert(0, finder)
