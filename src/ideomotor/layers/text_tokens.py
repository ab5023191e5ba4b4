"""Sentences to sequences of vectors, for networks that attend to words and not to one vector a sentence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.clip_folders import clip_text_tower, clip_tokenizer


class ClipTokens:
    """The last hidden states of a CLIP text tower, ``tokens`` of them a sentence; answers are remembered.

    Frozen, and no ``nn.Module``. A longer sentence is cut; a shorter one is filled with end tokens, which no token
    attends to but whose own states, further readings of the sentence, are kept, as published. "" is encoded as any
    other sentence. Source: the text of VPP's video model (2412.14803), CLIP ViT-B/32 and 20 tokens.
    """

    def __init__(self, tokenizer: Callable[..., Any], model: nn.Module, end: int, tokens: int = 20) -> None:
        """``tokenizer`` and ``model`` are transformers' CLIPTokenizer and CLIPTextModelWithProjection, see
        ``clip_tokens``; ``end`` is the id of the end token, 49407 in every published CLIP.
        """
        if tokens < 2:
            raise ValueError(f"tokens is {tokens}; wanted 2 or more, as each sentence has a start and an end token")
        self.tokenizer, self.model, self.end, self.tokens = tokenizer, model.eval().requires_grad_(False), end, tokens
        self.known: dict[str, Float[Tensor, "n d"]] = {}

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Returns a vector a token."""
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.known:
                self.known[sentence] = self._encode(sentence)
        return torch.stack([self.known[sentence] for sentence in sentences])

    def ids(self, sentence: str) -> list[int]:
        """Returns the ids that the tower reads, without those that fill up."""
        return list(self.tokenizer(sentence, truncation=True, max_length=self.tokens)["input_ids"])

    def _encode(self, sentence: str) -> Float[Tensor, "n d"]:
        ids = self.ids(sentence)
        filled = self.tokens - len(ids)
        mask = torch.tensor([[1] * len(ids) + [0] * filled])
        with torch.autocast("cpu", enabled=False):
            states = self.model(torch.tensor([ids + [self.end] * filled]), attention_mask=mask).last_hidden_state
        return states[0]


def clip_tokens(folder: str | Path, tokens: int = 20) -> ClipTokens:
    """Returns the encoder of a transformers CLIP folder (config, weights, tokenizer) on this machine.

    Raises:
        ValueError: there is no such model in the folder, or not all of it.
    """
    model, tokenizer = clip_text_tower(folder), clip_tokenizer(folder)
    return ClipTokens(tokenizer, model, tokenizer.eos_token_id, tokens)


class OneToken:
    """An encoder of one vector a sentence (``SentenceEncoder``, ``HashedWords``) as one of sequences of length 1."""

    def __init__(self, encoder: Callable[[Sequence[str]], Float[Tensor, "b d"]]) -> None:
        self.encoder = encoder

    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "b 1 d"]:
        """Returns a sequence of one vector a sentence."""
        return self.encoder(sentences)[:, None]


@dataclass(frozen=True, kw_only=True)
class TextTokensConfig:
    """How text vectors become what a network attends to.

    Attributes:
        width: of a text vector.
        out: width of what the network attends to.
        join: "plain" as they are, "doubled" each vector beside itself (published), "projected" by a learned map.
        positions: adds sine-cosine positions first; whoever samples needs the switch of the training.
    """

    width: int = 512
    out: int = 1024
    join: Literal["plain", "doubled", "projected"] = "doubled"
    positions: bool = False

    def __post_init__(self) -> None:
        given = {"plain": self.width, "doubled": 2 * self.width, "projected": self.out}[self.join]
        if min(self.width, self.out) < 1 or given != self.out:
            raise ValueError(
                f"text of width {self.width}, {self.join}, gives width {given}; the network attends to {self.out}: "
                "take join='projected' or another width"
            )
        if self.positions and self.width % 2:
            raise ValueError(f"positions are sine-cosine pairs; text of width {self.width} is odd")


class TextTokens(nn.Module):
    """Text vectors -> what a network's cross-attention reads; text of zeros without positions stays zeros."""

    def __init__(self, config: TextTokensConfig) -> None:
        super().__init__()
        self.config = config
        self.map = nn.Linear(config.width, config.out, bias=False) if config.join == "projected" else None

    def forward(self, text: Float[Tensor, "b n width"]) -> Float[Tensor, "b n out"]:
        """Returns one vector a token."""
        if text.ndim != 3 or text.shape[-1] != self.config.width:
            raise ValueError(
                f"text of shape {tuple(text.shape)} came; wanted (batch, tokens, {self.config.width}): use the encoder "
                "of the training"
            )
        if self.config.positions:
            text = text + sine_cosine(text.shape[1], text.shape[2]).to(text)
        if self.config.join == "doubled":
            return torch.cat([text, text], -1)
        if self.map is None:
            return text
        # Vectors of unit length would enter the attention about 20 times too small to be heard early in training.
        return self.map(F.rms_norm(text, text.shape[-1:]).to(self.map.weight.dtype))


def sine_cosine(length: int, width: int) -> Float[Tensor, "length width"]:
    """Returns the table of positions of base 10000, the sines in the first half of the channels.

    Source: Vaswani et al. 2017, section 3.5, with halves in place of pairs.
    """
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) * 2 / width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], -1).float()
