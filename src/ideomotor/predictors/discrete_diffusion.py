"""Foretells video tokens by masked discrete diffusion: what was seen and a sentence in, future tokens and features out.

The sequence is [text | observed latent frame] as a fixed prefix and then the future latent frame, whose unknown tokens
are [MASK]. The prefix never looks at the future (blocks of the trunk), so it is computed once for any number of steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ideomotor.diffusion.discrete import cosine_ratio, mask_tokens, masked_cross_entropy
from ideomotor.diffusion.samplers import Order, parallel_decode
from ideomotor.layers.token_groups import TokenGroups
from ideomotor.layers.transformer import Cache, Transformer, TransformerConfig
from ideomotor.types import DOMAINS, Losses


@dataclass(frozen=True, kw_only=True)
class DiscreteDiffusionPredictorConfig:
    """Sizes of the video predictor.

    Attributes:
        vocab: codes of the tokenizer.
        grid: rows and columns of a latent frame, of all views one above the other: every place of every view has an
            embedding of its own, and attends to the other views.
        patch: ``patch`` x ``patch`` neighbouring tokens share one position of the trunk.
        latents: latent frames foretold; as many are observed as ``context_latents``.
        views: cameras that share the grid.
        text_width: width of the sentence vectors.
        text_dropout: share of training samples whose text is withheld, so that guidance and captionless video work;
            of as many, drawn apart, the domain is withheld, so that video of an unknown domain works.
        domains: embedded are that many domains of ``types.DOMAINS``, all of them; 0 for none.
    """

    vocab: int = 1000
    grid: tuple[int, int] = (12, 12)
    patch: int = 2
    context_latents: int = 1
    latents: int = 1
    views: int = 1
    text_width: int = 384
    text_dropout: float = 0.1
    domains: int = 0
    trunk: TransformerConfig = field(default_factory=TransformerConfig)

    def __post_init__(self) -> None:
        if self.grid[0] % self.patch or self.grid[1] % self.patch:
            raise ValueError(
                f"a grid of {self.grid[0]}x{self.grid[1]} tokens does not divide into patches of {self.patch}"
            )
        if self.views < 1 or self.grid[0] % (self.views * self.patch):
            raise ValueError(
                f"a grid of {self.grid[0]} rows in patches of {self.patch} is not that of {self.views} views"
            )
        if min(self.context_latents, self.latents) < 1 or not 0 <= self.text_dropout < 1:
            raise ValueError(
                f"context_latents {self.context_latents} and latents {self.latents} must be at least 1, text_dropout "
                f"{self.text_dropout} in [0, 1)"
            )
        if self.domains not in (0, len(DOMAINS)):
            raise ValueError(
                f"domains is {self.domains}; wanted {len(DOMAINS)}, for {', '.join(DOMAINS)}, or 0 to embed none"
            )

    @property
    def positions(self) -> int:
        """Positions of the trunk that one latent frame takes."""
        return (self.grid[0] // self.patch) * (self.grid[1] // self.patch)


class DiscreteDiffusionPredictor(nn.Module):
    """Source: VPDD (2402.14407), by modern means: absorbing (mask) noise, cross-entropy on masked tokens (MD4,
    2406.04329).
    """

    def __init__(self, config: DiscreteDiffusionPredictorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.trunk.width
        self.seen = TokenGroups(config.patch**2, config.vocab, width)
        self.future = TokenGroups(config.patch**2, config.vocab, width)
        self.text = nn.Linear(config.text_width, width)
        self.place = nn.Parameter(0.02 * torch.randn(config.positions, width))
        self.seen_time = nn.Parameter(0.02 * torch.randn(config.context_latents, 1, width))
        self.future_time = nn.Parameter(0.02 * torch.randn(config.latents, 1, width))
        self.trunk = Transformer(config.trunk)
        del self.seen.head  # the past is read, never foretold
        self.domain: nn.Embedding | None = None
        if config.domains:  # zeros: it begins as a predictor without, and a domain never met stays as good as none
            self.domain = nn.Embedding.from_pretrained(torch.zeros(config.domains, width), freeze=False)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Number and width of the features that ``features`` returns."""
        return self.config.latents * self.config.positions, self.config.trunk.width

    def loss(
        self,
        context: Int[Tensor, "b latent n"],
        future: Int[Tensor, "b latent n"],
        text: Float[Tensor, "b d"],
        domain: Int[Tensor, " b"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Returns the cross-entropy of masked future tokens; the mask ratio is drawn per sample on a cosine."""
        batch = len(text)
        if self.config.text_dropout > 0:
            text = text * (torch.rand(batch, 1, generator=generator) >= self.config.text_dropout).to(text)
        x0 = rearrange(future, "b latent n -> b (latent n)")
        ratio = cosine_ratio(torch.rand(batch, generator=generator)).to(x0.device)
        xt, masked = mask_tokens(x0, self.future.mask_id, ratio, generator)
        if domain is not None and self.domain is not None:
            told = torch.rand(batch, generator=generator) >= self.config.text_dropout
            domain = domain * told.to(domain)
        cache, seen = self.observe(context, text, domain)
        logits = self.logits(xt, seen, cache)
        total = masked_cross_entropy(logits, x0, masked)
        right = (logits.detach().argmax(-1) == x0)[masked].float().mean()
        return Losses(total=total, terms={"cross_entropy": total.detach(), "accuracy": right})

    def observe(
        self, context: Int[Tensor, "b latent n"], text: Float[Tensor, "b d"], domain: Int[Tensor, " b"] | None = None
    ) -> tuple[Cache, Float[Tensor, "b n d"]]:
        """Returns the prefix's cache, and the embedded last latent frame (future positions are told what stood
        there). ``domain`` is what the video is of, one id a sample; None for unknown.
        """
        config = self.config
        wanted = (config.context_latents, config.grid[0] * config.grid[1])
        if tuple(context.shape[1:]) != wanted:
            raise ValueError(
                f"the predictor was built for {wanted[0]} observed latent frames of {wanted[1]} tokens and got "
                f"{context.shape[1]} of {context.shape[2]}: use its tokenizer, window and frame size"
            )
        seen = self.seen.embed(self._patches(context))  # b (latent positions) d
        placed = (
            rearrange(seen, "b (latent n) d -> b latent n d", latent=config.context_latents)
            + self.place
            + self.seen_time
        )
        told = self.text(text).to(seen)
        if self.domain is not None:
            ids = torch.zeros(len(text), dtype=torch.long) if domain is None else domain
            told = told + self.domain(ids.to(seen.device)).to(seen)
        prefix = torch.cat([told[:, None], placed.flatten(1, 2)], 1)
        _, cache = self.trunk(prefix)
        return cache, seen[:, -config.positions :]

    def logits(self, xt: Int[Tensor, "b n"], seen: Float[Tensor, "b p d"], cache: Cache) -> Float[Tensor, "b n vocab"]:
        """Returns logits for every future token, given some of them."""
        groups = self.future.logits(self._future(xt, seen, cache))
        rows, columns = (side // self.config.patch for side in self.config.grid)
        return rearrange(
            groups,
            "b (latent h w) (p q) k -> b (latent h p w q) k",
            h=rows,
            w=columns,
            p=self.config.patch,
            q=self.config.patch,
        )

    def features(
        self,
        context: Int[Tensor, "b latent n"],
        text: Float[Tensor, "b d"],
        future: Int[Tensor, "b latent n"] | None = None,
        domain: Int[Tensor, " b"] | None = None,
    ) -> Float[Tensor, "b m d"]:
        """Returns what one pass over the future says, a foresight for every place.

        By default nothing of the future is known; otherwise ``future`` holds its tokens, [MASK] where unknown.
        """
        cache, seen = self.observe(context, text, domain)
        if future is None:
            xt = self._unknown(len(text), context.device)
        else:
            xt = rearrange(future, "b latent n -> b (latent n)")
        return self._future(xt, seen, cache)

    def noised(
        self, future: Int[Tensor, "b latent n"], ratio: Float[Tensor, " b"], generator: torch.Generator | None = None
    ) -> Int[Tensor, "b latent n"]:
        """Returns the future with that share of its tokens masked, a sample's own."""
        xt, _ = mask_tokens(rearrange(future, "b latent n -> b (latent n)"), self.future.mask_id, ratio, generator)
        return rearrange(xt, "b (latent n) -> b latent n", latent=self.config.latents)

    @torch.no_grad()
    def sample(
        self,
        context: Int[Tensor, "b latent n"],
        text: Float[Tensor, "b d"],
        steps: int = 8,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        *,
        domain: Int[Tensor, " b"] | None = None,
        order: Order = "confidence",
        remask: float = 0.0,
        guidance: float = 1.0,
        known: Int[Tensor, "b latent n"] | None = None,
        watch: Callable[[Int[Tensor, "b latent n"]], None] | None = None,
    ) -> Int[Tensor, "b latent n"]:
        """Returns foretold tokens, decoded in parallel over ``steps`` passes; temperature 0 takes the likeliest.

        Args:
            context: what was seen.
            text: what shall happen.
            steps: passes at most.
            temperature: of the draws.
            generator: of the draws.
            domain: what the video is of, one id a sample; None for unknown.
            order: in which tokens are set; see ``parallel_decode``.
            remask: share of the tokens set that each pass takes back; see ``parallel_decode``.
            guidance: 1 is none; more pushes what is foretold away from what would be foretold without the sentence
                (twice the cost).
            known: tokens of the future that are given, [MASK] for the others: in-painting.
            watch: shown the tokens before each pass, for a film of the denoising.
        """
        cache, seen = self.observe(context, text, domain)
        free = self.observe(context, torch.zeros_like(text), domain) if guidance != 1.0 else None
        latents = self.config.latents

        def logits(xt: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
            if watch is not None:
                watch(rearrange(xt, "b (latent n) -> b latent n", latent=latents))
            told = self.logits(xt, seen, cache)
            if free is None:
                return told
            untold = self.logits(xt, free[1], free[0])
            return untold + guidance * (told - untold)

        start = self._unknown(len(text), context.device) if known is None else known.flatten(1)
        rows, columns = self.config.grid
        tokens = parallel_decode(
            logits, start, self.future.mask_id, steps,
            order=order, temperature=temperature, generator=generator, grid=(latents, rows, columns), remask=remask,
        )  # fmt: skip
        return rearrange(tokens, "b (latent n) -> b latent n", latent=latents)

    def _unknown(self, batch: int, device: torch.device) -> Int[Tensor, "b n"]:
        count = self.config.latents * self.config.grid[0] * self.config.grid[1]
        return torch.full((batch, count), self.future.mask_id, device=device)

    def _future(self, xt: Int[Tensor, "b n"], seen: Float[Tensor, "b p d"], cache: Cache) -> Float[Tensor, "b m d"]:
        config = self.config
        x = self.future.embed(self._patches(rearrange(xt, "b (latent n) -> b latent n", latent=config.latents)))
        x = rearrange(x, "b (latent n) d -> b latent n d", latent=config.latents) + self.place + self.future_time
        out, _ = self.trunk((x + seen[:, None]).flatten(1, 2), cache)
        return out

    def _patches(self, tokens: Int[Tensor, "b latent n"]) -> Int[Tensor, "b m group"]:
        rows, columns = (side // self.config.patch for side in self.config.grid)
        return rearrange(
            tokens,
            "b latent (h p w q) -> b (latent h w) (p q)",
            h=rows,
            w=columns,
            p=self.config.patch,
            q=self.config.patch,
        )
