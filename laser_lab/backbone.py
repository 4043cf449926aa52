"""The backbone: a causal language model as the thinking loop sees it. Only this file knows model families (embedding
scale, logit soft cap, where the head is)."""

from itertools import repeat
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from laser_lab.base import kernels
from laser_lab.base.kernels import linear, use_fast_linear
from laser_lab.base.numbers import likely_cause

SAME, SAME_HALF = 0.99999, 0.98  # cosine of equal states, in float32 and below
VOCABULARY_BLOCK = 4096  # rows of W and E that fit into the processor's last cache
MKL_BLOCK = 512  # and into a core's own: MKL's calls cost so little that it pays (docs/speed.md)


class Backbone(nn.Module):
    """A causal LM seen as the parts that latent thinking needs: embedding, body, last state, head.

    ``model`` may be a causal LM of `transformers`, a PEFT model around one, or a merged one. Shapes use B (batch),
    T (tokens), D (hidden size), V (vocabulary). For a model with one key-value head, such as Gemma 3 270M, PyTorch's
    memory-efficient attention is switched off in this process: on a GPU it gives wrong states.

    Raises:
        ValueError: The family computes its logits or embeddings in a way this class does not reproduce, or is no
            decoder that can go on from a cache; or an adapter changes the input embeddings or the head.
    """

    processor: ProcessorMixin | None = None
    """What reads images, in a :class:`laser_lab.vision.VisionBackbone`."""
    adapter: str | None = None
    """Folder or hub id of the adapter that was put on top, where it came from one."""

    def __init__(self, model: PreTrainedModel | nn.Module, tokenizer: PreTrainedTokenizerBase, name: str = "") -> None:
        super().__init__()
        self.model = model
        self.name = name
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        self.tokenizer = tokenizer
        use_fast_linear(model)
        if getattr(self.config.get_text_config(), "num_key_value_heads", None) == 1:
            # On a GPU it gives wrong states for 33, 65, 97, ... tokens (pytorch/pytorch#191937).
            torch.backends.cuda.enable_mem_efficient_sdp(False)
        self._check()

    # -- the parts -------------------------------------------------------------------------------------------------

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The causal LM itself, without a PEFT wrapper (injected adapters stay active)."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model

    @property
    def config(self) -> Any:
        return self.causal_lm.config

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.config.get_text_config().hidden_size

    @property
    def max_positions(self) -> int | None:
        """How many positions the backbone has, for input and thoughts together."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def head(self) -> nn.Module:
        return self.causal_lm.get_output_embeddings()

    @property
    def embedding_table(self) -> Tensor:
        """(V, D): row i is what the embedding module returns for token i, up to :attr:`embedding_scale`."""
        return self.causal_lm.get_input_embeddings().weight

    @property
    def embedding_scale(self) -> float | Tensor:
        """What the embedding module multiplies its rows by (Gemma: sqrt(D)); 1 for most families."""
        scale = getattr(self.causal_lm.get_input_embeddings(), "embed_scale", 1.0)
        return scale.to(self.embedding_table.dtype) if isinstance(scale, Tensor) else scale

    def embed(self, input_ids: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, D) embeddings, scaled as the backbone scales them."""
        return self.causal_lm.get_input_embeddings()(input_ids)

    def new_cache(self) -> Cache | None:
        """An empty KV cache, or None where the body cannot use one (gradient checkpointing)."""
        if self.training and any(getattr(m, "gradient_checkpointing", False) for m in self.causal_lm.modules()):
            return None
        return DynamicCache(config=self.config)

    def last_states(self, inputs_embeds: Tensor, attention_mask: Tensor, cache: Cache | None = None) -> Tensor:
        """States after the final norm, (B, T, D), of the (B, T, D) `inputs_embeds`: the positions that are not in the
        cache yet, which is filled in place. `attention_mask` is (B, T_cached + T), 0 for (left) padding."""
        # Explicit positions, so that left padding changes nothing for absolute positions either.
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        # `base_model` is the body without the head: no V x D product.
        return self.causal_lm.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """(..., D) states, on any device, to (..., V) float32 logits of the LM head, soft cap included."""
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        return _finished(linear(states.to(weight), weight, bias), self._logit_multiplier, self._soft_cap)

    def soft_token(self, states: Tensor) -> Tensor:
        """(B, D) states to (B, D) soft tokens, p·E with p = softmax(W h) (LaSER, section 3.2)."""
        return self.read_head(states)[0]

    def read_head(
        self, states: Tensor, *, soft_token: bool = True, normaliser: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """(B, D) states to their (B, D) soft tokens and the (B,) log normalisers of their logits, as asked for.

        A soft token is attention with the states as queries, the head W as keys and the embeddings E as values, its
        softmax in float32. On the CPU, without gradients, it goes by blocks of the vocabulary, each with its own
        softmax, weighed by their total probability in the end: a block of W and E passes through the processor's cache
        once, and the B x V probabilities are never held.
        """
        if not (soft_token or normaliser):
            return None, None
        table = self.embedding_table
        if states.device.type != "cpu" or torch.is_grad_enabled():
            logits = self.logits(states)
            total = logits.logsumexp(-1) if normaliser else None
            mixed = linear(logits.softmax(-1).to(table.dtype), table.T) * self.embedding_scale if soft_token else None
            return mixed, total
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        by_mkl = weight.dtype == torch.float32 and not kernels.PREFERRED
        block = min(MKL_BLOCK, VOCABULARY_BLOCK) if by_mkl else VOCABULARY_BLOCK
        biases = repeat(None) if bias is None else bias.split(block)
        multiplier, cap = self._logit_multiplier, self._soft_cap  # once: a config answers slowly
        states, means, totals = states.to(weight.dtype), [], []
        for keys, values, bias in zip(weight.split(block), table.split(block), biases):
            logits = _finished(linear(states, keys, bias), multiplier, cap)
            if not soft_token:
                totals.append(logits.logsumexp(-1))
                continue
            probabilities = logits.softmax(-1)
            means.append(linear(probabilities.to(table.dtype), values.T))
            # the largest one is exp(its logit - total): cheaper than a second sum
            totals.append(logits.amax(-1) - probabilities.amax(-1).log())
        total = torch.stack(totals)  # (blocks, B)
        mixed = None
        if soft_token:
            mixed = (total.softmax(0)[..., None] * torch.stack(means)).sum(0).to(table.dtype) * self.embedding_scale
        return mixed, total.logsumexp(0)

    def log_probabilities(self, states: Tensor, ids: Tensor, log_normalisers: Tensor) -> Tensor:
        """(..., N) float32 log-probabilities under softmax(W h) of chosen tokens, without reading the rest of W: from
        (..., D) states, (..., N) token ids and the (...,) log normalisers of :meth:`read_head`."""
        weight, bias = self.head.weight, getattr(self.head, "bias", None)
        scores = torch.einsum("...d,...nd->...n", states.to(weight.dtype), weight[ids])
        if bias is not None:
            scores = scores + bias[ids]
        return _finished(scores, self._logit_multiplier, self._soft_cap) - log_normalisers[..., None]

    # -- the families ----------------------------------------------------------------------------------------------

    @property
    def _soft_cap(self) -> float | None:
        return getattr(self.config.get_text_config(), "final_logit_softcapping", None)

    @property
    def _logit_multiplier(self) -> float:
        config = self.config.get_text_config()  # Cohere multiplies its logits, Granite divides them
        return getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    @torch.no_grad()
    def _check(self) -> None:
        """Compare our embedding and logits with the model's own on one token, and two thinking steps with the sequence
        run at once. Families differ in small ways that would silently falsify results, so one that we do not reproduce
        is refused."""
        name, embedding, head = type(self.causal_lm).__name__, self.causal_lm.get_input_embeddings(), self.head
        if self.config.is_encoder_decoder:
            raise ValueError(f"{name} is an encoder-decoder: latent thinking needs a causal LM.")
        if head is None:
            raise ValueError(f"{name} has no LM head: latent thinking needs a causal LM.")
        if isinstance(embedding, BaseTunerLayer) or isinstance(head, BaseTunerLayer):
            raise ValueError("An adapter on the input embeddings or the LM head is not supported: merge it first.")
        training = self.model.training
        self.model.eval()
        ids = torch.ones(1, 1, dtype=torch.long, device=self.embedding_table.device)
        mask, theirs = torch.ones_like(ids), self.embed(ids)
        ours = self.embedding_table[ids] * self.embedding_scale
        expected = self.causal_lm(input_ids=ids, attention_mask=mask).logits.float()
        found = self.logits(self.last_states(theirs, mask))
        self._check_finite(expected)
        exact = theirs.dtype == torch.float32
        tolerance = 1e-4 if exact else 5e-2
        limit = tolerance * max(1.0, float(expected.abs().max()))
        if not (_close(ours.float(), theirs.float(), tolerance) and _close(found, expected, limit)):
            raise ValueError(
                f"{name} scales its embeddings or logits in a way not reproduced here: its soft tokens would be wrong. "
                "Please report it."
            )
        states = self._thinking_states()
        self._check_finite(*states)
        cosine = float(torch.cosine_similarity(*states, dim=-1).min())
        if not cosine >= (SAME if exact else SAME_HALF):
            raise ValueError(
                f"{name} cannot think step by step: behind padding and with its cache it gives other states than "
                f"without (cosine {cosine:.5f} in {theirs.dtype}). Decoders with attention can; recurrent models and "
                "encoder-decoders cannot."
            )
        self.model.train(training)

    def _check_finite(self, *numbers: Tensor) -> None:
        if not all(torch.isfinite(some).all() for some in numbers):
            name = type(self.causal_lm).__name__
            raise ValueError(f"{name}: {likely_cause(self.model)} (its states are not finite)")

    def _thinking_states(self) -> tuple[Tensor, Tensor]:
        """The states of a few tokens and two thinking steps, (3, D), twice: behind left padding with a cache, and of
        the whole sequence at once."""
        ids = torch.arange(1, 4, device=self.embedding_table.device)[None] % len(self.embedding_table)
        mask = torch.ones(1, 5, dtype=torch.long, device=ids.device)
        mask[:, :2] = 0
        found, inputs = [], [self.embed(ids)]
        try:
            cache, last = self.new_cache(), self.embed(nn.functional.pad(ids, (2, 0)))
            for step in range(3):
                if step:
                    mask = nn.functional.pad(mask, (0, 1), value=1)
                    last = self.soft_token(found[-1])[:, None]
                    inputs.append(last)
                found.append(self.last_states(last, mask, cache)[:, -1])
            expected = self.last_states(torch.cat(inputs, dim=1), mask[:, 2:])[0, -3:]
        except Exception as error:  # other families take other arguments, and fail in many ways
            raise ValueError(f"{type(self.causal_lm).__name__} cannot think step by step: {error!r}") from error
        return torch.cat(found).float(), expected.float()

    def merge_adapter(self) -> None:
        """Fold the adapter's weights into the backbone (faster encoding; the adapter cannot be trained further)."""
        if hasattr(self.model, "peft_config"):
            self.model = self.model.merge_and_unload()


def _finished(scores: Tensor, multiplier: float, cap: float | None) -> Tensor:
    """Products of states and head to float32 logits."""
    logits = scores.float() if multiplier == 1 else scores.float() * multiplier
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-5, atol=tolerance)
