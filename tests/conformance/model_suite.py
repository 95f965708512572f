"""transformers' ModelTesterMixin and ConfigTester on the MVD classes; `run.py` puts it beside those tests."""

import copy
import unittest

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor
from torch import nn

from mvd_hf import (
    MVDConfig,
    MVDForActionDetection,
    MVDForFeatureDistillation,
    MVDForPixelReconstruction,
    MVDForVideoClassification,
    MVDModel,
)

MASKED = (MVDForPixelReconstruction, MVDForFeatureDistillation)


class ModelTester:
    """A tiny configuration and its inputs, as the common tests ask for them."""

    is_training = True
    batch_size = 4

    def __init__(self, parent):
        self.parent = parent
        config = self.get_config()
        self.hidden_size, self.num_hidden_layers = config.hidden_size, config.num_hidden_layers
        self.num_attention_heads, self.num_channels = config.num_attention_heads, config.num_channels
        self.image_size, self.patch_size, self.num_frames = config.image_size, config.patch_size, config.num_frames
        self.seq_length, self.num_masks = config.num_patches, config.num_masked_patches

    def get_config(self) -> MVDConfig:
        return MVDConfig(
            image_size=8,
            patch_size=2,
            num_frames=4,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=37,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            drop_path_rate=0.1,
            decoder_num_hidden_layers=2,
            decoder_intermediate_size=37,
            teacher_dims={"image": 24, "video": 16},
            mask_ratio=0.75,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        shape = [self.batch_size, config.num_frames, config.num_channels, *config.frame_size]
        return config, {"pixel_values": floats_tensor(shape)}


class MVDModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (
        MVDModel,
        MVDForPixelReconstruction,
        MVDForFeatureDistillation,
        MVDForVideoClassification,
        MVDForActionDetection,
    )
    test_resize_embeddings = False
    test_torch_exportable = False  # tests/model/test_modeling_mvd.py exports and runs

    def setUp(self):
        self.model_tester = ModelTester(self)
        self.config_tester = ConfigTester(self, config_class=MVDConfig, has_text_modality=False, hidden_size=32)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        config, batch = self.model_tester.get_config(), len(inputs["pixel_values"])
        if model_class in MASKED:
            row = torch.arange(config.num_patches) < config.num_masked_patches
            inputs["bool_masked_pos"] = row.expand(batch, -1).clone()
        if model_class is MVDForActionDetection:
            inputs["boxes"] = torch.tensor([[0.0, 0.0, 4.0, 8.0], [2.0, 1.0, 7.0, 6.0]]).repeat(batch, 1, 1)
        if return_labels and model_class is MVDForVideoClassification:
            inputs["labels"] = torch.zeros(batch, dtype=torch.long)
        if return_labels and model_class is MVDForActionDetection:
            inputs["labels"] = torch.ones(batch, 2, config.num_labels)
        return inputs

    def loss(self, model_class, outputs):
        """The model's loss; the student, whose loss needs teachers, gets the sum of its predictions."""
        if model_class is MVDForFeatureDistillation:
            return sum(prediction.sum() for prediction in outputs.predictions.values())
        return outputs.loss

    def check_every_parameter_gets_a_gradient(self, checkpointing=None):
        for model_class in self.all_model_classes[1:]:
            with self.subTest(model_class.__name__):
                config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
                config.drop_path_rate = 0.0
                model = model_class(config).train()
                if checkpointing is not None:
                    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
                outputs = model(**self._prepare_for_class(inputs, model_class, return_labels=True))
                self.loss(model_class, outputs).backward()
                without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
                self.assertEqual(without, [])

    def test_training(self):
        self.check_every_parameter_gets_a_gradient()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        self.check_every_parameter_gets_a_gradient(gradient_checkpointing_kwargs or {})

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("MVD has no token embeddings to pass in")
    def test_inputs_embeds(self):
        pass

    def test_model_get_set_embeddings(self):
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Conv3d)

    def run_with(self, model_class, config, **flags):
        _, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = model_class(config).eval()
        with torch.no_grad():
            return model(**self._prepare_for_class(inputs, model_class), **flags)

    def tokens(self, model_class, config) -> int:
        return config.num_patches - config.num_masked_patches if model_class in MASKED else config.num_patches

    def test_attention_outputs(self):
        for model_class in self.all_model_classes:
            config = self.model_tester.get_config()
            config._attn_implementation = "eager"
            tokens = self.tokens(model_class, config)
            outputs = self.run_with(model_class, config, output_attentions=True)
            self.assertEqual(len(outputs.attentions), config.num_hidden_layers)
            shape = (self.model_tester.batch_size, config.num_attention_heads, tokens, tokens)
            self.assertEqual(outputs.attentions[0].shape, shape)
            config.output_attentions = True
            self.assertEqual(len(self.run_with(model_class, config).attentions), config.num_hidden_layers)

    def test_hidden_states_output(self):
        for model_class in self.all_model_classes:
            config = self.model_tester.get_config()
            outputs = self.run_with(model_class, config, output_hidden_states=True)
            self.assertEqual(len(outputs.hidden_states), config.num_hidden_layers + 1)
            shape = (self.model_tester.batch_size, self.tokens(model_class, config), config.hidden_size)
            self.assertEqual(outputs.hidden_states[0].shape, shape)
