"""The policy: a vision-language model that gives log-probs of packed rows.

One pass runs the vision tower once per clip and the language model once over the row; the head runs
only where a completion token is predicted, in chunks, so that no logits of a prompt ever exist.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from grpo.codec.allowed_tokens import AllowedTokens
from grpo.config.model import LoraConfig, Part
from grpo.media.clip import Clip
from grpo.packing import PackedRow
from grpo.policy.adapters import add_adapters
from grpo.policy.attention import VISION_CHUNKS, implementation
from grpo.policy.families.family import ModelFamily
from grpo.policy.sequence_split import ALONE, SequenceSplit
from grpo.policy.uploads import Uploads
from grpo.policy.vision_features import FeatureCache
from grpo.policy.weights import flat, weight_buckets

HEAD_CHUNK_TOKENS = 1024
"""The tokens of one chunk of the output head: with a vocabulary of 152k, 0.6 GiB of fp32 logits."""

SUPPRESSED_BIAS = -100.0
"""The bias on the logits of tokens that are never sampled; the engines add the same."""


class TokenScores(NamedTuple):
    """The policy's log-probs and entropies at the completion tokens of a row."""

    logps_T: Tensor
    entropy_T: Tensor
    """The entropy of the whole next-token distribution, in nats; it has a gradient only if that was asked for."""


class Policy(nn.Module):
    """A model and a head that turn a packed row into log-probs at the sampling temperature."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: ModelFamily,
        *,
        temperature: float,
        frozen: Collection[Part] = (),
        lora: LoraConfig | None = None,
        new_rows_only: bool = False,
        gradient_checkpointing: bool = False,
        activation_offloading: bool = False,
        attention: str = "auto",
        fp32_head: bool = False,
        sharded: bool = False,
        feature_cache: FeatureCache | None = None,
        uploads: Uploads | None = None,
    ) -> None:
        """Prepare a model for training.

        frozen: parts that keep their weights. lora: adapters to train in place of all weights; None: none.
        new_rows_only: nothing trains but the rows of code tokens; ValueError for a model without.
        attention: the kernel for packed rows. fp32_head: the head's products are kept in fp32.
        sharded: the processes will hold a part of each weight.
        feature_cache: where the features of a frozen vision tower are kept; None: every pass computes them.
        uploads: another policy's patches on the device, to be shared; None: its own.
        """
        super().__init__()
        # Its submodules are typed as "module or tensor" otherwise.
        self.model: Any = model
        self.family = family
        allowed = AllowedTokens(family.vocabulary) if family.vocabulary is not None else None
        self.head = Head(
            model.get_output_embeddings,
            family.suppressed_ids,
            temperature,
            in_fp32=fp32_head,
            allowed=allowed,
        )
        self.sharded = sharded
        # accelerate asks the module that it prepares for the layers that FSDP2 splits one by one.
        self._no_split_modules = model._no_split_modules
        self.activation_offloading = activation_offloading
        self.model.model.language_model.config._attn_implementation = implementation(attention)
        self.model.model.visual.config._attn_implementation = VISION_CHUNKS
        if lora is not None:
            add_adapters(self.model, lora, family.part_of)
        for name, weight in self.model.named_parameters():
            if family.part_of(name) in frozen:
                weight.requires_grad_(False)
        self.new_rows = train_new_rows(self.model, family) if new_rows_only else None
        """The only rows of embedding and head that train; None if other weights do."""
        self.has_adapters = lora is not None
        self.trains_vision = any(weight.requires_grad for weight in self.model.model.visual.parameters())
        # Where weights are split, all processes must run the tower equally often, whatever clips each has seen.
        self.feature_cache = None if self.trains_vision or sharded else feature_cache
        self.uploads = uploads or Uploads(family.patches_of)
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(
        self, row: PackedRow, *, entropy_gradient: bool = False, split: SequenceSplit = ALONE
    ) -> TokenScores:
        """Return log-probs and entropies of the row's completion tokens, (T,).

        entropy_gradient: the entropies have a gradient too, for which a chunk's logits are kept twice.
        split: the processes that compute the row together, all of which must call this with it.
        """
        hidden_TD, own = split.predicting(self._hidden(row, split), row)
        previous_T = row.input_ids_N[row.source_T[own]]
        scores = self.head(hidden_TD, row.target_T[own], previous_T, entropy_gradient)
        return TokenScores(*(split.assembled(each_T, len(row.target_T)) for each_T in scores))

    def hidden(self, row: PackedRow) -> Tensor:
        """Return the last hidden states that the row's completion tokens are predicted from, (T, D)."""
        return self._hidden(row, ALONE)[row.source_T]

    def _hidden(self, row: PackedRow, split: SequenceSplit) -> Tensor:
        """Return the last hidden states at the positions of the row that are this process's, (N, D)."""
        with self._offloading():
            # The layout has the attention mask.
            return self.model.model.language_model(
                **self.inputs(row, split=split),
                position_ids=split.part(row).positions_3N[:, None],
                use_cache=False,
                layout=row.layout,
                split=split,
            ).last_hidden_state[0]

    def _offloading(self) -> AbstractContextManager[Any]:
        """Return a context in which activations are saved in main memory: with checkpointing, the layers' inputs."""
        if not (self.activation_offloading and torch.is_grad_enabled()):
            return nullcontext()
        return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")

    def inputs(self, row: PackedRow, *, num_texts: int = 1, split: SequenceSplit = ALONE) -> dict[str, Any]:
        """Return the language model's inputs: token embeddings with the clips' features in the place of their pads.

        num_texts: the texts of equal length, one after another, that the row is cut into; they become a batch.
        split: the processes that compute the row together, whose inputs are those at their own positions.
        """
        part = split.part(row)
        embeds_ND = self.model.get_input_embeddings()(part.input_ids_N)
        if not row.clips:
            return {"inputs_embeds": (embeds_ND + self._blank_vision_term()).unflatten(0, (num_texts, -1))}
        features_MD = split.features(self._features_of(split.own_clips(row)), row)
        if len(features_MD) != len(part.vision_index_M):
            ids = ", ".join(prompt.sample.id for prompt in row.prompts)
            raise ValueError(
                f"{len(part.vision_index_M)} vision tokens for {len(features_MD)} features in: {ids}"
            )
        first_MD, *deeper = features_MD.to(embeds_ND.dtype).split(embeds_ND.shape[-1], dim=-1)
        embeds_ND = embeds_ND.index_copy(0, part.vision_index_M, first_MD)
        inputs: dict[str, Any] = {"inputs_embeds": embeds_ND.unflatten(0, (num_texts, -1))}
        if deeper:
            # Deepstack (arXiv 2406.04334): the first layers' outputs get features of their own added at the pads.
            is_vision_N = torch.zeros_like(part.input_ids_N, dtype=torch.bool)
            is_vision_N = is_vision_N.index_fill(0, part.vision_index_M, True)
            inputs["visual_pos_masks"] = is_vision_N.unflatten(0, (num_texts, -1))
            inputs["deepstack_visual_embeds"] = deeper
        return inputs

    def _features_of(self, clips: Sequence[Clip]) -> Tensor:
        """Return the clips' features, one clip after another: fresh, or those that a frozen tower gave before.

        Without clips, which other processes of a split have, the tower runs all the same: none of its features.
        """
        if not clips:
            return self._blank_features()[:0]
        if self.feature_cache is not None:
            return torch.cat([self.feature_cache.get(clip, self._features_of_one) for clip in clips])
        # Several questions may be about one clip.
        distinct = list(dict.fromkeys(clips))
        features = self._fresh_features(*distinct)
        features_of = dict(zip(distinct, features, strict=True))
        return torch.cat([features_of[clip] for clip in clips])

    def _features_of_one(self, clip: Clip) -> Tensor:
        return self._fresh_features(clip)[0]

    def _fresh_features(self, *clips: Clip) -> tuple[Tensor, ...]:
        patches = [self.uploads.get(clip, self.device) for clip in clips]
        return self.vision_features(*self.family.pixels(clips, patches))

    def expect(self, rows: Sequence[PackedRow], split: SequenceSplit = ALONE) -> None:
        """Begin to make the patches of clips that passes will see; they stay until `uploads.clear`."""
        self.expect_clips(clip for row in rows for clip in split.own_clips(row))

    def expect_clips(self, clips: Iterable[Clip], step: int = 0) -> None:
        """Begin to make the patches of clips; they stay until `uploads.clear` is told of the step."""
        # A frozen tower sees a clip once in a run, and not once a step.
        if self.feature_cache is None:
            self.uploads.expect(clips, self.device, step)

    def vision_features(self, pixels: Tensor, grid_thw: Tensor) -> tuple[Tensor, ...]:
        """Return the vision tower's output for each clip, (M, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_vision):
            features = self.model.model.get_video_features(pixels.to(self.device), grid_thw.to(self.device))
        return self.family.features(features)

    def _blank_vision_term(self) -> Tensor:
        """Return zero, computed through the tower if that trains or is sharded.

        With several processes, each must run the same modules in a pass, or the exchange of gradients or weights hangs.
        """
        if not self.sharded and not (self.trains_vision and torch.is_grad_enabled()):
            return torch.zeros((), device=self.device)
        return 0.0 * self._blank_features().sum()

    def _blank_features(self) -> Tensor:
        """Return the features of a single vision token of zeros, (1, D)."""
        config = self.family.config.vision_config
        merge = config.spatial_merge_size
        patch_size = config.in_channels * config.temporal_patch_size * config.patch_size**2
        grid = torch.tensor([[1, merge, merge]])
        return self.vision_features(torch.zeros(merge**2, patch_size), grid)[0]

    def logits(self, hidden_TD: Tensor, previous_T: Tensor) -> Tensor:
        """Return the logits that are sampled from, at least in fp32, (T, V): tokens suppressed, temperature applied.

        previous_T: the tokens that they follow, which say whether codes may come next.
        """
        return self.head.logits(hidden_TD, previous_T)

    def named_weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight once as `weight_buckets` does, with adapters merged; a tied head is the embedding.

        Sharded weights are gathered bucket by bucket, so all processes must iterate together.
        """
        return flat(weight_buckets(self.model, dtype=dtype))


class Head(nn.Module):
    """The output head, which gives log-probs from hidden states in chunks.

    It is a module without weights of its own: where weights are sharded, all processes must run the same modules
    equally often, and the number of chunks depends on the completion tokens of a process's row.
    """

    def __init__(
        self,
        output_embeddings: Callable[[], Any],
        suppressed_ids: tuple[int, ...],
        temperature: float,
        *,
        in_fp32: bool = False,
        allowed: AllowedTokens | None = None,
    ) -> None:
        """Make a head; `output_embeddings` returns the model's layer, which as an attribute would be stored twice.

        allowed: the rules of code tokens; None for a model without codes.
        """
        super().__init__()
        self.output_embeddings = output_embeddings
        self.suppressed_ids, self.temperature = list(suppressed_ids), temperature
        self.in_fp32, self.allowed = in_fp32, allowed

    def forward(
        self, hidden_TD: Tensor, target_T: Tensor, previous_T: Tensor, entropy_gradient: bool
    ) -> TokenScores:
        chunks = (each.split(HEAD_CHUNK_TOKENS) for each in (hidden_TD, target_T, previous_T))
        parts = [
            checkpoint(self._chunk, *chunk, entropy_gradient, use_reentrant=False)
            for chunk in zip(*chunks, strict=True)
        ]
        return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def logits(self, hidden_TD: Tensor, previous_T: Tensor) -> Tensor:
        """Return the logits that `Policy.logits` describes."""
        logits_TV = self._products(hidden_TD, self.output_embeddings().weight)
        logits_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        bias_V = logits_TV.new_zeros(logits_TV.shape[-1])
        bias_V[self.suppressed_ids] = SUPPRESSED_BIAS
        logits_TV = (logits_TV + bias_V) / self.temperature
        return logits_TV if self.allowed is None else self.allowed.forbid(logits_TV, previous_T)

    def _products(self, hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        """Return the head's products: of states and weights in the precision of the pass, kept in fp32 if so set."""
        if not self.in_fp32:
            return F.linear(hidden_TD, weight_VD)
        device = hidden_TD.device.type
        # The engine's states and weights have the pass's precision too, also where ours are trained in fp32.
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
        with torch.autocast(device, enabled=False):
            return F.linear(hidden_TD.to(dtype).float(), weight_VD.to(dtype).float())

    def _chunk(
        self, hidden_TD: Tensor, target_T: Tensor, previous_T: Tensor, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        # T is the chunk's part of the tokens here.
        logps_TV = torch.log_softmax(self.logits(hidden_TD, previous_T), dim=-1)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy_gradient):
            entropy_T = -(logps_TV.exp() * logps_TV).sum(-1)
        return logps_TV.gather(-1, target_T[:, None])[:, 0], entropy_T


def train_new_rows(model: Any, family: ModelFamily) -> Tensor:
    """Leave a gradient to the rows of code tokens in embedding and head alone, and return their numbers.

    The gradient of the other rows is exactly 0. Raises ValueError for a model without code tokens.
    """
    if family.vocabulary is None:
        raise ValueError(
            f"model.new_rows_only: {family.path} has no code tokens (egogrpo codec grow adds them)"
        )
    rows = torch.tensor(family.vocabulary.token_ids)

    def of_rows(gradient: Tensor) -> Tensor:
        own = rows.to(gradient.device)
        return torch.zeros_like(gradient).index_copy_(0, own, gradient[own])

    model.requires_grad_(False)
    # A tied head is the embedding, and has one gradient with it.
    for weight in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
        weight.requires_grad_(True)
        weight.register_hook(of_rows)
    return rows


def store_trained_only(policy: Policy) -> None:
    """Leave the frozen weights, which the model folder has, out of the policy's state dict from now on."""
    named = dict(policy.named_parameters(remove_duplicate=False))
    trained = {name for name, weight in named.items() if weight.requires_grad}
    if len(trained) == len(named):
        return

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: object) -> None:
        for key in [key for key in state if key.startswith(prefix)]:
            if key.removeprefix(prefix) not in trained:
                del state[key]

    def forgive(module: nn.Module, keys: Any) -> None:
        # DDP puts "module." before the names.
        keys.missing_keys[:] = [key for key in keys.missing_keys if key.removeprefix("module.") in trained]

    policy.register_state_dict_post_hook(drop)
    policy.register_load_state_dict_post_hook(forgive)
