"""Makes the model in model.py, beside this file, one of transformers' models. It needs torch and
transformers 5 alone.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

`export.py --to=hf_code` copies this file and model.py, as they stand, into FOLDER, and there
transformers imports them; bonsai never imports either from a folder. Everything is computed by
model.py, edited or not. Here is what transformers asks of a model besides: the loss of labels, rows
that are padded, and its own cache of keys and values.

Copyright (c) 2026 The bonsai authors. This file and model.py are under the MIT license:
https://opensource.org/license/mit
"""

from dataclasses import fields
from typing import ClassVar

import torch
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .model import GPT, GPTConfig


class BonsaiConfig(PreTrainedConfig):
    """The fields of GPTConfig, beside those that every model of transformers has."""

    model_type = "bonsai_gpt"
    attribute_map: ClassVar = {
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
        "tie_word_embeddings": "tie_head",
    }

    def __init__(self, **settings):
        own = {f.name: settings.pop(f.name, f.default) for f in fields(GPTConfig)}
        super().__init__(**settings)
        for name, value in own.items():
            setattr(self, name, value)

    def to_gpt(self) -> GPTConfig:
        return GPTConfig(**{f.name: getattr(self, f.name) for f in fields(GPTConfig)})


class Context:
    """What model.py asks of a cache, made of transformers' cache and of a mask of padded rows.

    idx (B, T): the tokens that come now; kept: transformers' cache of those before. present: None,
    or (B, S), where of all S tokens so far, idx included, there is one and not padding. Padding has
    no position, and no token sees it.
    """

    def __init__(self, config: GPTConfig, idx: torch.Tensor, kept, present: torch.Tensor | None):
        self.n_layer, self.length, self.kept = config.n_layer, config.block_size, kept
        self.T, self.S = idx.size(1), kept.get_seq_length() + idx.size(1)
        self.present = None if present is None or present.all() else present.bool()
        self.masks = {}
        if self.present is None:
            self.pos = torch.arange(self.S, device=idx.device)  # (S,)
            self.used = self.S - self.T
        else:
            self.pos = (self.present.cumsum(1) - 1).clamp(min=0)  # (B, S)
            self.used = max(0, int(self.pos.max()) + 1 - self.T)

    def place(self, T: int) -> torch.Tensor:
        """Positions of idx: (T,), or (B, 1, T) where rows are padded."""
        return self.pos[-T:] if self.present is None else self.pos[:, None, -T:]

    def before(self, idx: torch.Tensor) -> torch.Tensor:
        """The token before each of idx (B, T), 0 before the first.

        The cache keeps tokens as the keys of one more layer, so that they follow what beam search
        does with its rows.
        """
        ids = idx[:, None, :, None]
        ids = self.kept.update(ids, ids, self.n_layer)[0][:, 0, :, 0]  # (B, S)
        return F.pad(ids[:, :-1], (1, 0))[:, -self.T :] * (self.pos[..., -self.T :] > 0)

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor, window: int = 0):
        """Append k, v (B, nkv, T, hs) -> keys and values of all tokens, and a mask for them."""
        k, v = self.kept.update(k, v, layer)
        if self.present is None and self.T == self.S:
            return k, v, None  # a whole text: the attention knows what it sees
        if self.present is None and self.T == 1:
            return k[:, :, -window:], v[:, :, -window:], None  # a window of 0 is all
        if window not in self.masks:
            self.masks[window] = self.mask(window)
        return k, v, self.masks[window]

    def mask(self, window: int) -> torch.Tensor:
        """(T, S), or (B, 1, T, S) where rows are padded: which tokens those of idx see."""
        T, S, pos = self.T, self.S, self.pos
        seen = torch.ones(T, S, dtype=torch.bool, device=pos.device).tril(S - T)
        if window:
            seen = seen & (pos[..., None, :] > pos[..., -T:, None] - window)
        if self.present is None:
            return seen
        # padding sees padding, as a softmax over nothing would be nan, also for those who see it
        padding = ~self.present[:, -T:, None]
        return (seen & (self.present[:, None, :] | padding))[:, None]

    def advance(self, T: int) -> None:
        """transformers' cache counts by itself."""


class BonsaiForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = BonsaiConfig
    _no_split_modules: ClassVar = ["Block"]
    _supports_sdpa = True  # model.py calls torch's
    supports_gradient_checkpointing = True

    def __init__(self, config: BonsaiConfig):
        super().__init__(config)
        if torch.get_default_device().type == "meta":
            # in from_pretrained. There would be nothing in what model.py may compute for itself:
            # buffers that are in no file, or plain tensors
            with torch.device("cpu"), no_init_weights():
                self.gpt = GPT(config.to_gpt())
        else:
            self.gpt = GPT(config.to_gpt())
        first = {}  # each parameter's first name
        named = self.named_parameters(remove_duplicate=False)
        shared = {name: first.setdefault(p, name) for name, p in named}
        self._tied_weights_keys = {name: known for name, known in shared.items() if name != known}
        config.tie_word_embeddings = bool(self._tied_weights_keys)
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Not as other models of transformers: model.py has done it."""

    def _move_missing_keys_from_meta_to_device(self, *args, **kwargs) -> None:
        """Leave in buffers that are in no file what model.py has computed."""
        computed = dict(self.named_non_persistent_buffers())
        super()._move_missing_keys_from_meta_to_device(*args, **kwargs)
        for name, buffer in self.named_non_persistent_buffers():
            buffer.copy_(computed[name])

    def _set_gradient_checkpointing(self, enable: bool = True, **_) -> None:
        self.gpt.config.activation_checkpointing = enable

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.gpt.transformer.wte

    def set_input_embeddings(self, module: torch.nn.Module) -> None:
        self.gpt.transformer.wte = module

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.gpt.lm_head

    def set_output_embeddings(self, module: torch.nn.Module) -> None:
        self.gpt.lm_head = module

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **others,
    ) -> CausalLMOutputWithPast:
        """input_ids (B, T) -> logits (B, T, V), and the loss if there are labels.

        labels (B, T): mostly input_ids; the logits at t are compared with the label at t + 1, and
        labels of -100 are ignored. attention_mask (B, S): 0 at padding, of the tokens in
        past_key_values and of input_ids. logits_to_keep: only of the last so many tokens, or only
        of these; 0: all. Raises ValueError for arguments that model.py has no use for.
        """
        of_loss = {"num_items_in_batch": others.pop("num_items_in_batch", None)}
        for name, value in others.items():
            if value is not None and value is not False:
                raise ValueError(f"model.py takes no {name}")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        context = self.context(input_ids, attention_mask, past_key_values)
        if labels is None and type(logits_to_keep) is int and logits_to_keep == 1:
            logits, _ = self.gpt(input_ids, cache=context)  # (B, 1, V)
        else:  # with targets there are logits of all tokens; the loss of these targets is not used
            logits = self.gpt(input_ids, input_ids, context)[0]
            some = slice(-logits_to_keep, None) if type(logits_to_keep) is int else logits_to_keep
            logits = logits[:, some]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, logits.size(-1), **of_loss)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)

    def context(self, idx: torch.Tensor, mask: torch.Tensor | None, kept) -> Context | None:
        """The cache for a forward pass; None if model.py needs none, as no token would see
        padding, and there is nothing to keep."""
        S = idx.size(1) + (0 if kept is None else kept.get_seq_length())
        if mask is not None and mask.shape != (len(idx), S):
            raise ValueError(f"attention_mask must be {(len(idx), S)}, not {tuple(mask.shape)}")
        if kept is None and (mask is None or not (mask[:, 1:] > mask[:, :-1]).any()):
            return None
        if self.training and self.gpt.config.activation_checkpointing:
            raise ValueError("activation checkpointing needs rows that are padded on the right")
        return Context(self.gpt.config, idx, DynamicCache() if kept is None else kept, mask)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Whether generate makes the cache; `forward` does, with room for the tokens, too."""
        return False

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **kwargs) -> dict:
        """A full context moves on, token by token, as in model.py's generate: without a cache, as
        every position changes."""
        limit = self.config.block_size
        if input_ids.size(1) <= limit:
            prepared = super().prepare_inputs_for_generation(
                input_ids, attention_mask=attention_mask, **kwargs
            )
            return {k: v for k, v in prepared.items() if k != "cache_position"}  # of 5.0 alone
        mask = None if attention_mask is None else attention_mask[:, -limit:]
        return {"input_ids": input_ids[:, -limit:], "attention_mask": mask, "logits_to_keep": 1}
