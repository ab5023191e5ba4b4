"""How long VPP takes from two pictures and a sentence to a chunk of actions, at full size with random weights.

"as published" does what the released code does, in float16: both text towers asked anew, the network stopped behind the
last block that is read, and the context encoded again for each of the ten denoising steps. "plain" is the same with
diffusers' whole network in float32 and hooks. "agent" is ``VPPAgent`` with weights in bf16, sentences remembered, the
context encoded once; "agent, replayed" records the network's pass as one CUDA graph (left out on a CPU). Milliseconds
are medians of wall-clock time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from ideomotor.layers.text_tokens import ClipTokens
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.svd_unet import joined, way_up
from ideomotor.systems.vpp import VPP, Foreseeing, Looking
from ideomotor.systems.vpp_agent import VPPAgent, in_bf16
from ideomotor.systems.vpp_presets import PRESETS
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.types import Clip
from svd_sized import SENTENCE, filled, ids_of, plain_features, published_sizes, reduced, sized, text_tower

Row = dict[str, Any]


class Replayed:
    """The predictor with its one pass recorded as a CUDA graph at the first look; later looks replay it.

    On a CPU the pass is made anew each time, so that it can be held against the predictor's own.
    """

    def __init__(self, predictor: LatentDiffusion) -> None:
        self.predictor, self.config = predictor, predictor.config
        self.graph: torch.cuda.CUDAGraph | None = None
        self.given: tuple[Tensor, ...] = ()
        self.found = torch.empty(0)

    def features(
        self, first: Tensor, text: Tensor, sigma: float, layers: Sequence[int], *, noise: Tensor, steps: int
    ) -> Tensor:
        """Returns what ``LatentDiffusion.features`` does for one step."""
        assert steps == 1
        if not self.given:
            views = len(first) * first.shape[1]
            level = torch.tensor([sigma], device=first.device).log().div(4).expand(views).contiguous()
            ids = self.predictor.time_ids(self.config.feature_ids or self.config.ids, views)
            self.given = (first.clone(), text.clone(), noise.clone(), level, ids)
            if first.is_cuda:
                self._record(layers)
        for ours, theirs in zip(self.given, (first, text, noise), strict=False):
            ours.copy_(theirs)
        if self.graph is None:
            return self._pass(layers)
        self.graph.replay()
        return self.found.clone()

    def _record(self, layers: Sequence[int]) -> None:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                self._pass(layers)
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.found = self._pass(layers)

    def _pass(self, layers: Sequence[int]) -> Tensor:
        first, text, noise, level, ids = self.given
        b, views = first.shape[:2]
        noise = noise.expand(b, views, *noise.shape[2:]).flatten(0, 1)  # c_in brings it to unit variance at any level
        told = self.predictor.text(text).repeat_interleave(views, 0)
        scaled, told = self.predictor._inputs(noise, first.flatten(0, 1), told)
        found = joined(way_up(self.predictor.unet, scaled, level, told, ids, layers))
        return rearrange(found, "(b view) t d h w -> b t (view h w) d", view=views)


@dataclass(frozen=True)
class Networks:
    """All of one VPP at full size, in float32 on the CPU, and one observation."""

    config: VPP
    predictor: LatentDiffusion
    vae: SVDVAE
    looking: Looking
    policy: EDMTransformer
    tokens: ClipTokens
    clip: Clip


def networks(tiny: bool) -> Networks:
    """Returns them with random weights; ``tiny`` keeps the shape alone."""
    config = PRESETS["svd"]()
    if tiny:
        small = PRESETS["tiny"]()
        video = published_sizes(True, small.window.frames)
        width = 2 * video.unet.widths[2]
        config = replace(
            small, views=2, video=video, text="clip", former=replace(small.former, feature_width=width),
            policy_stage=replace(small.policy_stage, optim=replace(small.policy_stage.optim, bf16=True)),
            policy=replace(small.policy, goal_width=512),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    frames = {
        name: torch.randint(0, 256, (1, 1, 3, config.size, config.size), dtype=torch.uint8, generator=generator)
        for name in ("main", "view1")
    }
    return Networks(
        config, sized(config.video), filled(lambda: SVDVAE(config.vae)), filled(lambda: Looking(config)),
        filled(lambda: EDMTransformer(config.policy)), text_tower(tiny), Clip(frames=frames, text=(SENTENCE,)),
    )  # fmt: skip


class Reference:
    """The published way on one device: in float16 with an early exit, or ``plain``, whole and in float32."""

    def __init__(self, nets: Networks, device: str, plain: bool) -> None:
        self.dtype = torch.float16 if device == "cuda" and not plain else torch.float32
        self.nets, self.device, self.plain = nets, device, plain
        self.predictor = reduced(nets.predictor, self.dtype).to(device)
        self.vae = deepcopy(nets.vae).to(device, self.dtype)
        self.looking, self.policy = (deepcopy(part).to(device) for part in (nets.looking, nets.policy))
        self.tower = deepcopy(nets.tokens.model).to(device)
        self.ids, self.mask = (part.to(device) for part in ids_of(nets.tokens))

    @torch.inference_mode()
    def features(self, clip: Clip, noise: Tensor) -> Tensor:
        """Returns the features of both views' future, joined."""
        config = self.nets.config
        text = self.tower(self.ids, attention_mask=self.mask).last_hidden_state
        frames = torch.cat(list(clip.frames.values()))[:, 0].to(self.device)
        latents = self.vae.net.encode((frames / 127.5 - 1).to(self.dtype)).latent_dist.mode()
        taps, noise = config.foresight.layers, noise.to(latents)
        if self.plain:
            found = plain_features(self.predictor.unet, text, latents, noise, taps, config.foresight.sigma)
        else:
            views = len(latents)
            level = torch.tensor([config.foresight.sigma], device=self.device).log().div(4).expand(views)
            ids = self.predictor.time_ids(self.nets.config.video.ids, views)
            told = self.predictor.text(text).repeat(views, 1, 1)
            x, told = self.predictor._inputs(noise.expand(views, -1, -1, -1, -1), latents, told)
            maps = joined(way_up(self.predictor.unet, x, level, told, ids, taps))
            found = rearrange(maps, "view t d h w -> view t (h w) d")
        return rearrange(found.float(), "view t n d -> 1 t (view n) d")

    @torch.inference_mode()
    def act(self, clip: Clip, noise: Tensor) -> Tensor:
        """Returns a chunk; every denoising step encodes its context anew."""
        features = self.features(clip, noise)
        goal = self.tower(self.ids, attention_mask=self.mask).text_embeds
        tokens, config = self.looking.former(features), self.policy.config
        start = torch.randn(1, config.chunk, config.action_width, device=self.device)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return self.policy.denoise(x, sigma, self.policy.context(tokens, goal))

        return config.sampling.run(denoise, start)


def agent_of(nets: Networks, device: str, replayed: bool) -> VPPAgent:
    """Returns the agent as ``ideomotor serve --weights bf16`` has it; ``nets`` stay as they are."""
    parts = (nets.vae, nets.predictor, nets.looking, nets.policy)
    vae, predictor, looking, policy = (deepcopy(part).to(device) for part in parts)
    foreseeing = Foreseeing(nets.config, vae, predictor, nets.tokens)
    goal = torch.randn(1, nets.config.policy.goal_width, generator=torch.Generator().manual_seed(0))
    agent = VPPAgent(nets.config, looking, policy, foreseeing, lambda sentences: goal.expand(len(sentences), -1))
    agent = in_bf16(agent)
    if replayed:
        foreseeing.predictor = Replayed(predictor)  # type: ignore[assignment]
    return agent


def timed(work: Callable[[], object], times: int) -> float:
    """Returns the median of wall-clock milliseconds, after some that do not count."""
    spent = []
    for _ in range(times + max(1, times // 5)):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        spent.append(1e3 * (time.perf_counter() - began))
    return median(spent[-times:])


def speed_rows(tiny: bool) -> list[Row]:
    """Returns a row a way to act: milliseconds of a look (text, autoencoder, network) and of a whole act."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nets, times = networks(tiny), 2 if tiny else 100
    config, side = nets.config, nets.config.size // nets.config.vae.factor
    noise = torch.randn(1, config.video.frames, config.vae.channels, side, side,
                        generator=torch.Generator().manual_seed(config.foresight.seed or 0))  # fmt: skip
    rows: list[Row] = []
    wanted = None
    for name, plain in (("plain", True), ("as published", False)):
        way = Reference(nets, device, plain)
        found = way.features(nets.clip, noise)
        wanted = found if wanted is None else wanted
        looks = timed(lambda way=way: way.features(nets.clip, noise), times)
        rows.append(
            _row(name, way.dtype, looks, timed(lambda way=way: way.act(nets.clip, noise), times), found, wanted)
        )
        del way
    clip = nets.clip.to(device)
    frames = torch.cat(list(clip.frames.values()), -2)
    for name, replayed in (("agent", False), ("agent, replayed", True)):
        if replayed and device == "cpu":
            continue
        agent = agent_of(nets, device, replayed)
        seeing = agent.foreseeing
        assert seeing is not None and wanted is not None
        with torch.inference_mode():
            looks = timed(lambda seeing=seeing: seeing(frames, clip.text), times)
            found = seeing(frames, clip.text)
        acts = timed(lambda agent=agent: agent.act(clip), times)
        rows.append(_row(name, torch.bfloat16, looks, acts, found, wanted))
        del agent, seeing
    published = rows[1]["ms an act"]
    about = {"device": torch.cuda.get_device_name() if device == "cuda" else "CPU", "tiny": tiny}
    return [row | {"published over this": published / row["ms an act"]} | about for row in rows]


def _row(name: str, dtype: torch.dtype, looks: float, acts: float, found: Tensor, wanted: Tensor) -> Row:
    """The error is None where float16 has overflown."""
    error = (found.float() - wanted).square().mean().sqrt() / wanted.std()
    return {
        "what": f"act: {name}", "weights": str(dtype).removeprefix("torch."), "ms a look": looks, "ms an act": acts,
        "features off by": float(error) if error.isfinite() else None,
    }  # fmt: skip
