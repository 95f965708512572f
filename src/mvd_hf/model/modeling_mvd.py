"""The MVD network: one video transformer that serves as image teacher, video teacher, student and classifier.

Letters in shapes: B clips, T frames, C channels, H x W pixels; t x h x w the grid of patches, L = t*h*w patches,
of which M are masked and V = L - M visible; N tokens, D their width. Sources: MVD arXiv 2212.04500, VideoMAE
arXiv 2203.12602, MAE arXiv 2111.06377.
"""
# Copyright 2026 The mvd_hf authors. Licensed under the Apache License, Version 2.0.

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torchvision.ops import StochasticDepth
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mvd import MVDConfig
from .distillation_heads_mvd import MVDEncoderHeads, MVDForFeatureDistillationOutput, check_teachers
from .labels_mvd import SINGLE_LABEL, check_labels, cross_entropy, normalize_heads
from .loading_mvd import has_other_labels, loading_problems, refuse_partial_load
from .patches_mvd import (
    count_masked,
    decoded_ids,
    patch_grid,
    pixel_targets,
    position_table,
    select_tokens,
    split_mask,
    split_patches,
)

# the modules that heads add to the encoder
HEAD_PARTS = ("decoder", "decoders", "encoder_heads", "fc_norm", "pooler", "classifier")


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over (B, heads, N, d): the output (B, N, heads, d) and the weights (B, heads, N, N)."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    # in float32, as the fused kernels compute it
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float = 0.0, **kwargs
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention by the implementation that `module.config` names; shapes as in `eager_attention_forward`."""
    attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )
    return attention(
        module, query, key, value, None, scaling=module.scaling, dropout=dropout, is_causal=False, **kwargs
    )


class MVDPositionTable(nn.Module):
    """The fixed position embeddings of a grid of patches, recomputed for other grids."""

    def __init__(self, config: MVDConfig, width: int):
        super().__init__()
        self.kind, self.grid, self.width = config.position_embedding_type, config.grid, width
        # computed on the CPU, as not every device has float64, then moved to the default device; that is "meta" while
        # `from_pretrained` builds the model, so `_init_weights` computes the table again
        table = self.compute(self.grid).to(torch.get_default_device())
        self.register_buffer("table", table, persistent=False)

    def compute(self, grid: tuple[int, int, int]) -> torch.Tensor:
        return position_table(self.kind, grid, self.width)

    def forward(self, grid: tuple[int, int, int], interpolate: bool = False) -> torch.Tensor:
        """Embeddings (L, width) of a grid (t, h, w): of its integer positions, or the configured h x w resized."""
        if grid == self.grid:
            return self.table
        if not interpolate or grid[1:] == self.grid[1:]:
            return self.compute(grid).to(self.table.device)
        table = self.compute((grid[0], *self.grid[1:])).to(self.table.device)
        table = table.view(grid[0], *self.grid[1:], self.width).permute(0, 3, 1, 2)
        table = nn.functional.interpolate(table, size=grid[1:], mode="bicubic", align_corners=False)
        return table.permute(0, 2, 3, 1).flatten(0, 2)


class MVDPatchProjection(nn.Conv3d):
    """The tubelet embedding: a convolution without overlap, computed as a matrix product, of all or some patches."""

    def __init__(self, config: MVDConfig):
        kernel = (config.tubelet_size, config.patch_size, config.patch_size)
        super().__init__(config.num_channels, config.hidden_size, kernel, stride=kernel)
        self.image_mean, self.image_std = config.image_mean, config.image_std
        for name, value in self.byte_normalization().items():
            self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def byte_normalization(self) -> dict[str, torch.Tensor]:
        """Factor and offset, each (C or 1, 1, 1), that normalise uint8 pixels: (x / 255 - mean) / std."""
        mean, std = (
            torch.tensor(value, dtype=torch.float64, device="cpu").view(-1, 1, 1)
            for value in (self.image_mean, self.image_std)
        )
        return {"byte_scale": (1 / (255 * std)).float(), "byte_offset": (-mean / std).float()}

    def forward(self, pixel_values: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        """Clips (B, T, C, H, W) to tokens (B, L, D), or (B, n, D) for the patches `ids` (B, n)."""
        patches = split_patches(pixel_values, self.kernel_size[0], self.kernel_size[1])
        # tokens are in (time, row, column) order; masked patches are left out before the product, not after it
        if ids is not None:
            rows, columns = patches.shape[2:4]
            clip = torch.arange(ids.shape[0], device=ids.device)[:, None]
            patches = patches[clip, ids // (rows * columns), ids // columns % rows, ids % columns]
        else:
            patches = patches.flatten(1, 3)
        if not patches.is_floating_point():
            patches = patches * self.byte_scale + self.byte_offset
        patches = patches.transpose(2, 3).flatten(2)  # channels before frames, as in the weight
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class MVDEmbeddings(nn.Module):
    """Patches to tokens with position embeddings, behind the class token if there is one."""

    def __init__(self, config: MVDConfig):
        super().__init__()
        self.config = config
        self.projection = MVDPatchProjection(config)
        self.positions = MVDPositionTable(config, config.hidden_size)
        class_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_class_token else None
        self.register_parameter("class_token", class_token)

    def forward(
        self,
        pixel_values: torch.Tensor,
        visible_ids: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> torch.Tensor:
        positions = self.positions(patch_grid(pixel_values, self.config), interpolate_pos_encoding)
        tokens = self.projection(pixel_values, visible_ids)
        positions = positions.to(tokens.dtype)
        tokens = tokens + (positions if visible_ids is None else positions[visible_ids])
        if self.class_token is not None:  # it has no position
            class_token = self.class_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([class_token, tokens], dim=1)
        return tokens


class MVDQueryKeyValue(nn.Linear):
    """Queries, keys and values in one matrix product."""

    def __init__(self, width: int, key_bias: bool):
        super().__init__(width, 3 * width, bias=False)
        # softmax ignores what is added to all keys alike, so only MAE's checkpoints have a key bias
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.register_parameter("k_bias", nn.Parameter(torch.zeros(width)) if key_bias else None)
        self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        key_bias = torch.zeros_like(self.q_bias) if self.k_bias is None else self.k_bias
        bias = torch.cat([self.q_bias, key_bias, self.v_bias])
        return nn.functional.linear(hidden_states, self.weight, bias)


class MVDAttention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: MVDConfig, width: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = MVDQueryKeyValue(width, config.key_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        query, key, value = self.qkv(hidden_states).view(*shape, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        output, weights = attend(self, query, key, value, self.dropout if self.training else 0.0, **kwargs)
        return self.proj(output.reshape(*shape, -1)), weights


class MVDMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: MVDConfig, width: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(width, intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class MVDLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: x + attention(norm1(x)), then x + mlp(norm2(x)), each with stochastic depth."""

    def __init__(self, config: MVDConfig, width: int, num_heads: int, intermediate_size: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = MVDAttention(config, width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MVDMLP(config, width, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attended))
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.norm2(hidden_states))))


def layer_stack(config: MVDConfig, depth: int, width: int, num_heads: int, intermediate_size: int) -> nn.ModuleList:
    """`depth` layers whose stochastic depth grows linearly from 0 to `config.drop_path_rate`."""
    rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
    return nn.ModuleList([MVDLayer(config, width, num_heads, intermediate_size, rate) for rate in rates])


class MVDDecoder(nn.Module):
    """A small transformer that predicts one vector for each masked patch from the encoded visible patches."""

    def __init__(self, config: MVDConfig, output_dim: int, predicts_visible: bool = False):
        super().__init__()
        config.check_decoder()
        self.predicts_visible = predicts_visible
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width, bias=config.decoder_embed_bias)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = MVDPositionTable(config, width)
        self.layers = layer_stack(
            config,
            config.decoder_num_hidden_layers,
            width,
            config.decoder_num_attention_heads,
            config.decoder_intermediate_size,
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = nn.Linear(width, output_dim)

    def forward(
        self,
        encoded: torch.Tensor,
        visible_ids: torch.Tensor,
        masked_ids: torch.Tensor,
        grid: tuple[int, int, int],
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Encoder output (B, [1 +] V, D) to predictions (B, [V +] M, output_dim), in ascending order each."""
        visible = self.embed(encoded)
        positions = self.positions(grid, interpolate_pos_encoding).to(visible.dtype)
        # the class token, if there is one, stays first and has no position
        class_token = visible[:, : visible.shape[1] - visible_ids.shape[1]]
        visible = visible[:, class_token.shape[1] :] + positions[visible_ids]
        masked = self.mask_token.to(visible.dtype) + positions[masked_ids]
        # masked tokens come last, not in their places in the clip: only position embeddings tell where a token belongs
        hidden_states = torch.cat([class_token, visible, masked], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        first = class_token.shape[1] if self.predicts_visible else -masked_ids.shape[1]
        return self.head(self.norm(hidden_states[:, first:]))


def is_reentrant(layer: GradientCheckpointingLayer) -> bool:
    """Whether a layer uses activation checkpointing of torch's reentrant kind, which needs inputs with gradients."""
    options = getattr(getattr(layer, "_gradient_checkpointing_func", None), "keywords", {})
    return layer.gradient_checkpointing and options.get("use_reentrant", False)


class MVDPreTrainedModel(PreTrainedModel):
    """What all MVD models share: initialisation, masked prediction, and loading that is complete or refused."""

    config: MVDConfig
    base_model_prefix = "mvd"
    main_input_name = "pixel_values"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means over the batch: Trainer must not pass `num_items_in_batch`
    _no_split_modules = ["MVDEmbeddings", "MVDLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _input_embed_layer = "projection"  # what `get_input_embeddings` returns
    _can_record_outputs = {"hidden_states": MVDLayer, "attentions": MVDAttention}
    # the modules of this class's head, which `from_pretrained` may initialise anew
    _head_parts: tuple[str, ...] = ()
    # how weights are initialised: "pretrain" (MVD, VideoMAE), "mae" or "finetune"
    weight_init: str = "pretrain"

    def __init__(self, config: MVDConfig, *args, **kwargs):
        config.check_encoder()
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Initialise a module as the official code does (`weight_init`), and recompute its buffers."""
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init_std = getattr(module, "init_std", None)
            if init_std is not None or self.weight_init == "finetune":
                init.trunc_normal_(module.weight, std=init_std or std)
            else:
                init.xavier_uniform_(module.weight)
            for name, parameter in module.named_parameters(recurse=False):
                if name != "weight":  # a bias, or those of queries, keys and values
                    init.zeros_(parameter)
        elif isinstance(module, MVDPatchProjection):
            if self.weight_init == "mae":
                # Xavier of the flattened kernel, written out: `init` cannot see that a view's weights were loaded
                limit = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5
                init.uniform_(module.weight, -limit, limit)
            else:
                init.kaiming_uniform_(module.weight, a=5**0.5)
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.bias, -bound, bound)
            for name, value in module.byte_normalization().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, MVDPositionTable):
            init.copy_(module.table, module.compute(module.grid))
        elif isinstance(module, MVDDecoder):
            if self.weight_init == "mae":
                init.normal_(module.mask_token, std=std)
            else:
                init.trunc_normal_(module.mask_token, std=std, a=-std, b=std)
        elif isinstance(module, MVDEmbeddings) and module.class_token is not None:
            init.normal_(module.class_token, std=1e-6 if self.weight_init == "pretrain" else std)

    def predict_masked(
        self,
        decoders: Mapping[str, MVDDecoder],
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None,
        num_masked: int | None,
        bool_decoded_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        heads: MVDEncoderHeads | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[MVDForFeatureDistillationOutput, torch.Tensor]:
        """Encode the visible patches and let each decoder predict the masked ones, or a part of them.

        Returns:
            The predictions (B, M, output_dim) by name of the decoder or head, with the encoder's output, and the ids
            (B, M) of the predicted masked patches.
        """
        visible_ids, masked_ids = self.mvd.split_mask(pixel_values, bool_masked_pos, num_masked)
        if bool_decoded_pos is not None:
            masked_ids = decoded_ids(bool_masked_pos, bool_decoded_pos, self.config.num_decoded_patches)
        encoded = self.mvd(
            pixel_values, visible_ids=visible_ids, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        patches = visible_ids, masked_ids, patch_grid(pixel_values, self.config)
        predictions = {
            name: decoder(encoded.last_hidden_state, *patches, interpolate_pos_encoding, **kwargs)
            for name, decoder in decoders.items()
        }
        visible, summaries = ({}, None) if heads is None else heads(encoded.last_hidden_state)
        output = MVDForFeatureDistillationOutput(
            last_hidden_state=encoded.last_hidden_state,
            predictions=predictions | visible,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            summaries=summaries or None,
        )
        return output, masked_ids

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **kwargs) -> str:
        """Upload weights and configuration; see [`~transformers.PreTrainedModel.push_to_hub`].

        Args:
            repo_id: name of the repository.
            private: whether a new repository is private; `None` is the default.

        Raises:
            ValueError: if it would be public: no license is known here.
        """
        if private is False:
            raise ValueError(
                "private=False would publish weights without a license; push them with private=True, or use "
                "mvd_hf.publish, which writes a card with the license."
            )
        return super().push_to_hub(repo_id, private=True, **kwargs)

    def post_init(self):
        """Finish construction; `from_pretrained` skips other models' heads without a warning."""
        super().post_init()
        patterns = {rf"^{part}\." for part in HEAD_PARTS if part not in self._head_parts}
        if self.base_model.layernorm is None:
            patterns.add(r"^(mvd\.)?layernorm\.")
        self._keys_to_ignore_on_load_unexpected = patterns

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load weights completely or not at all; see [`~transformers.PreTrainedModel.from_pretrained`].

        A missing head is initialised if the call gives labels: `num_labels`, `id2label`, `label2id`, or a `config`
        whose labels differ from the checkpoint's. A head of another size is replaced with
        `ignore_mismatched_sizes=True`. Heads of other model classes are skipped. With `output_loading_info=True` the
        caller gets the report and nothing is checked.

        Raises:
            CheckpointMismatchError: (a ValueError) naming weights that are missing, unexpected or of another shape.
        """
        if kwargs.get("output_loading_info", False) or pretrained_model_name_or_path is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        replace_head = kwargs.pop("ignore_mismatched_sizes", False)
        new_head = replace_head or not kwargs.keys().isdisjoint(("num_labels", "id2label", "label2id"))
        model, report = super().from_pretrained(
            pretrained_model_name_or_path,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, by name
            **kwargs,
        )
        problems = loading_problems(report)
        if any(problems.values()):
            new_head = new_head or has_other_labels(model.config, pretrained_model_name_or_path, kwargs)
            refuse_partial_load(model, pretrained_model_name_or_path, problems, new_head, replace_head)
        return model


class MVDModel(MVDPreTrainedModel):
    """The encoder: patches to features.

    Args:
        config: the configuration.
        add_final_norm: whether the features pass a final layer norm. Teachers give the features before it, and the
            mean-pooling classifier has none.
        weight_init: how weights are initialised: `"pretrain"`, `"mae"` or `"finetune"`.
    """

    def __init__(self, config: MVDConfig, add_final_norm: bool = True, weight_init: str = "pretrain"):
        super().__init__(config)
        self.weight_init = weight_init
        self.embeddings = MVDEmbeddings(config)
        self.layers = layer_stack(
            config, config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.intermediate_size
        )
        for part in self.layers.modules():
            if isinstance(part, nn.Linear):
                part.init_std = config.encoder_init_std  # read by `_init_weights`; decoders have none
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if add_final_norm else None
        self.post_init()

    def split_mask(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, num_masked: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the visible patches (B, V) and of the masked ones (B, M), ascending; arguments as in `forward`.

        `num_masked` avoids a synchronisation with the device. Without it the mask is read, or, while compiling or
        exporting, the number is `config.num_masked_patches`, and an assertion in the graph checks it.
        """
        grid = patch_grid(pixel_values, self.config)
        if num_masked is None and torch.compiler.is_compiling():
            num_masked = self.config.num_masked_patches
        return split_mask(bool_masked_pos, count_masked(bool_masked_pos, pixel_values.shape[0], grid, num_masked))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        visible_ids: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        r"""
        Args:
            pixel_values (`(B, T, C, H, W)`): frames, uint8 as decoded or float as normalised by the processor, of the
                configured size or of any other that the patches divide.
            bool_masked_pos (`(B, L)` bool, *optional*): True for masked patches, equally many in each row.
            visible_ids (`(B, V)` int64, *optional*): the visible patches, instead of `bool_masked_pos`.
            interpolate_pos_encoding: whether other heights and widths get the configured position embeddings resized
                (bicubic), not those of their integer positions.

        Returns:
            `last_hidden_state` (`(B, [1 +] V, D)`, V = L without a mask), behind the class token if there is one;
            on request `hidden_states` (the input of the first layer and the output of each, before the final norm)
            and `attentions` (with `attn_implementation="eager"`).

        Raises:
            ValueError: if the clip does not fit the patches or the mask does not fit the clip.
        """
        if bool_masked_pos is not None:
            if visible_ids is not None:
                raise ValueError("Give bool_masked_pos or visible_ids, not both.")
            visible_ids, _ = self.split_mask(pixel_values, bool_masked_pos)
        elif visible_ids is not None and (visible_ids.dim() != 2 or visible_ids.shape[0] != pixel_values.shape[0]):
            raise ValueError(
                f"visible_ids must be ({pixel_values.shape[0]}, visible patches), got {tuple(visible_ids.shape)}."
            )
        hidden_states = self.embeddings(pixel_values, visible_ids, interpolate_pos_encoding)
        if self.training and torch.is_grad_enabled() and is_reentrant(self.layers[0]):
            hidden_states.requires_grad_()  # without it, adapters behind frozen embeddings get no gradients
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if self.layernorm is not None:
            hidden_states = self.layernorm(hidden_states)
        return BaseModelOutput(last_hidden_state=hidden_states)


@dataclass
class MVDForPixelReconstructionOutput(ModelOutput):
    """Output of [`MVDForPixelReconstruction`].

    Args:
        loss (`()`): mean squared error over the masked patches.
        logits (`(B, M, tubelet * patch * patch * C)`): predicted pixels of the masked patches, in ascending order.
        hidden_states, attentions: of the encoder, on request.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MVDForPixelReconstruction(MVDPreTrainedModel):
    """Stage 1, masked autoencoding of images (MAE) or clips (VideoMAE). Its encoder becomes a teacher."""

    _head_parts = ("decoder",)

    def __init__(self, config: MVDConfig):
        super().__init__(config)
        self.weight_init = "mae" if config.pixel_target == "mae" else "pretrain"
        self.mvd = MVDModel(config, weight_init=self.weight_init)
        self.decoder = MVDDecoder(config, config.tubelet_size * config.patch_size**2 * config.num_channels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        num_masked: int | None = None,
        bool_decoded_pos: torch.Tensor | None = None,
        return_loss: bool = True,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MVDForPixelReconstructionOutput:
        r"""
        Args:
            pixel_values (`(B, T, C, H, W)`): frames, uint8 or normalised floats.
            bool_masked_pos (`(B, L)` bool): True for masked patches, equally many in each row.
            num_masked: the number of masked patches in each row; avoids a synchronisation with the device.
            bool_decoded_pos (`(B, L)` bool, *optional*): the masked patches to decode, `config.num_decoded_patches`
                in each row; by default all.
            return_loss: whether to compute the loss against the pixels (see `pixel_targets`).
            interpolate_pos_encoding: as in [`MVDModel`].

        Raises:
            ValueError: if the mask is missing, does not fit the clip, or masks all or nothing.
        """
        masks = bool_masked_pos, num_masked, bool_decoded_pos
        output, masked_ids = self.predict_masked(
            {"pixels": self.decoder}, pixel_values, *masks, interpolate_pos_encoding, **kwargs
        )
        logits = output.predictions["pixels"]
        loss = None
        if return_loss:
            targets = select_tokens(pixel_targets(pixel_values, self.config), masked_ids)
            loss = nn.functional.mse_loss(logits.float(), targets)
        return MVDForPixelReconstructionOutput(
            loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions
        )


class MVDForFeatureDistillation(MVDPreTrainedModel):
    """Stage 2, the student (paper, Fig. 2 and Alg. 1): predicts each teacher's features at the masked patches.

    Each entry of `config.teacher_dims` has a small decoder, or a linear head if `config.teacher_tokens` compares it on
    visible patches; each of `config.summary_dims` a head for summaries. The loss needs the teachers, which are no part
    of the model: see `mvd_hf.distillation_losses` and `mvd_hf.DistillationTrainer`.
    """

    _head_parts = ("decoders", "encoder_heads")

    def __init__(self, config: MVDConfig):
        super().__init__(config)
        check_teachers(config)
        self.mvd = MVDModel(config)
        on = {name: config.teacher_tokens.get(name, "masked") for name in config.teacher_dims}
        decoded = {name: width for name, width in config.teacher_dims.items() if on[name] != "visible"}
        self.decoders = nn.ModuleDict(
            {name: MVDDecoder(config, width, on[name] == "all") for name, width in decoded.items()}
        )
        has_heads = "visible" in on.values() or config.summary_dims
        self.encoder_heads = MVDEncoderHeads(config) if has_heads else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        num_masked: int | None = None,
        bool_decoded_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MVDForFeatureDistillationOutput:
        """Predict the teachers' features; arguments and errors as in [`MVDForPixelReconstruction`], without a loss."""
        masks = bool_masked_pos, num_masked, bool_decoded_pos
        output, _ = self.predict_masked(
            self.decoders, pixel_values, *masks, interpolate_pos_encoding, self.encoder_heads, **kwargs
        )
        return output


class MVDAttentivePooler(nn.Module):
    """Tokens to one vector: a learned query attends to all tokens, then an MLP (V-JEPA, arXiv 2404.08471, 3.3)."""

    def __init__(self, config: MVDConfig):
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.key_value = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MVDMLP(config, width, config.intermediate_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, N, D) to (B, D)."""
        batch, count, _ = tokens.shape
        key, value = (
            self.key_value(self.norm1(tokens)).view(batch, count, 2, -1, self.head_dim).transpose(1, 3).unbind(2)
        )
        query = self.query.to(key.dtype).view(1, 1, -1, self.head_dim).transpose(1, 2).expand(batch, -1, -1, -1)
        output, _ = attend(self, query, key, value)
        pooled = self.query[:, 0].to(key.dtype) + self.proj(output.reshape(batch, -1))
        return pooled + self.mlp(self.norm2(pooled))


class MVDForVideoClassification(MVDPreTrainedModel):
    """Stage 3, the classifier.

    A linear layer on the mean of the patch tokens after a layer norm of its own; with `use_mean_pooling=False`, on the
    first token after the encoder's final norm; with `use_attentive_pooling=True`, on what an attentive pooler reads
    from all tokens after that norm.
    """

    _head_parts = ("fc_norm", "pooler", "classifier")
    weight_init = "finetune"

    def __init__(self, config: MVDConfig):
        if config.label_heads:  # `from_pretrained` sets its keyword arguments after the configuration has sorted them
            config.label_heads = dict(sorted(config.label_heads.items()))
        super().__init__(config)
        check_labels(config)
        self.num_labels = config.num_labels
        is_mean = config.use_mean_pooling and not config.use_attentive_pooling
        self.mvd = MVDModel(config, add_final_norm=not is_mean, weight_init=self.weight_init)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if is_mean else None
        self.pooler = MVDAttentivePooler(config) if config.use_attentive_pooling else None
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self.classifier:
            init.trunc_normal_(module.weight, std=self.config.initializer_range * self.config.head_init_scale)
        elif isinstance(module, MVDAttentivePooler):
            init.trunc_normal_(module.query, std=self.config.initializer_range)
            # nothing in the pooler is pre-trained, so its weights are larger than those that fine-tuning starts from
            for linear in (module.key_value, module.proj, module.mlp.fc1, module.mlp.fc2):
                init.xavier_uniform_(linear.weight)

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Encoder output (B, N, D) to one vector per clip (B, D)."""
        if self.pooler is not None:
            return self.pooler(tokens)
        if self.fc_norm is None:
            return tokens[:, 0]
        return self.fc_norm(tokens[:, int(self.config.use_class_token) :].mean(dim=1))

    def loss(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The loss by `config.problem_type`, which is never written here, unlike in transformers' own models."""
        if self.config.problem_type in (None, SINGLE_LABEL):
            return cross_entropy(logits.float(), labels, self.config.label_heads)
        return self.loss_function(labels, logits.float(), self.config)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        Args:
            pixel_values (`(B, T, C, H, W)`): frames, uint8 or normalised floats.
            labels (`(B,)` int64 or `(B, classes)` float, *optional*): class indices or soft targets; multi-hot for
                several classes; indices `(B, heads)` with `config.label_heads`; numbers `(B,)` for regression.
            interpolate_pos_encoding: as in [`MVDModel`].

        Returns:
            `loss` (if labels are given), `logits` (`(B, classes)`; log-probabilities of each of several heads), and
            the encoder's `hidden_states` and `attentions` on request.
        """
        encoded = self.mvd(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(self.dropout(self.pool(encoded.last_hidden_state)))
        logits = normalize_heads(logits, self.config.label_heads)
        return ImageClassifierOutput(
            loss=None if labels is None else self.loss(labels, logits),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )


__all__ = [
    "MVDPreTrainedModel",
    "MVDModel",
    "MVDForPixelReconstruction",
    "MVDForPixelReconstructionOutput",
    "MVDForFeatureDistillation",
    "MVDForFeatureDistillationOutput",
    "MVDForVideoClassification",
]
