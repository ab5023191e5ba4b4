"""The settings of VPDD as published, and its presets.

Where the published code does another thing than the paper says, the preset ``published`` does what the code does, and
``paper`` what the paper says:

| | ``published`` | ``paper`` |
|---|---|---|
| noise | masks; a mass of 1e-6 is replaced | masks, and replaces a tenth of all tokens halfway (our figure) |
| replacements | of every group reach every position, kept out only in sampling | stay in their group |
| pre-training | 16 action positions of class 0, a constant in loss and time sampling | video alone |
| dropout of the action model while acting | on: the code never switches it off | off |

In both, differing from the code: a tokenizer's codebook is not wiped when training resumes (its flag is saved); times
drawn twice in a batch enter the time sampler's memory with their mean, not with whichever is written last; guidance,
which the code holds and never calls, is not offered; bins fit their heads (the documented command trains heads of
256 classes on 48 bins); windows never straddle two recordings, and before the first frame that one is repeated (the
code: black); averaged weights follow every step with the tenth root of 0.995 (the code: 0.995 every tenth step from the
2,000th on) and take in buffers; a batch is drawn from all windows alike (the code: from human and robot in turn, and in
fine-tuning the same place in one demonstration of every task).

Source: VPDD (2402.14407) and the code of its release.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ideomotor.data.distant_windows import DistantWindow
from ideomotor.data.windows import WindowConfig
from ideomotor.diffusion.discrete import MaskReplace
from ideomotor.diffusion.schedule import Vocabulary, hybrid_schedule, linear_schedule
from ideomotor.layers.gpt import GPTConfig
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicyConfig
from ideomotor.policies.gpt_multiview import MultiviewGPTPolicyConfig
from ideomotor.policies.published_actions import ActionBinsConfig
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictorConfig
from ideomotor.systems.vpdd import Stage
from ideomotor.tokenizers.axial_vqvae import AxialVQVAEConfig
from ideomotor.training.optim import OptimConfig


def plain_adam(lr: float, ema: float | None = None, accumulate: int = 1) -> OptimConfig:
    """Returns the release's optimizer: Adam at a constant rate, without decay, warm-up or clipping."""
    return OptimConfig(
        lr=lr, weight_decay=0.0, betas=(0.9, 0.999), warmup=0, schedule="constant", clip_norm=None, ema=ema,
        accumulate=accumulate,
    )  # fmt: skip


_AVERAGED = 0.9995  # 0.995 ** 0.1


@dataclass(frozen=True, kw_only=True)
class PublishedVPDD:
    """Everything about one VPDD of the published kind: what it looks at, its noise, its networks, and its stages.

    Attributes:
        size: frames are squares of that many pixels, scaled without smoothing.
        window: what is seen, what is foretold a while later, and the chunk of actions; past a recording's end actions
            are zeros, and they are trained on.
        clip_frames: successive frames that the tokenizer learns from together.
        execute: actions of a chunk that are carried out before looking again.
        steps: of the diffusion, each a call of both networks.
        replace: share of tokens that hold a drawn class halfway; None is the code's schedule, which hardly replaces.
        top_p: clean classes beyond the likeliest that reach this probability are never drawn.
        auxiliary: weight of the cross-entropy of the clean tokens.
        as_coded: computes the noise as the code does, replacements across groups included.
        idle_actions: pre-training has action positions too, which hold class 0 and are foretold by nothing.
        dropout_acting: the action model's dropout stays on while it acts.
        first_weight: weight of the first four action positions in the logged (never trained) action loss.
        text: a folder with CLIP RN50 in the transformers layout (its vectors keep their length), or "sentence" (the
            packaged MiniLM) or "hashed" (no weights; for tests), both 384 wide: then set both text widths to 384.
        bins: "release" knows Meta-World's actions alone, "quantile" those of any robot.
        save_every: training steps after which a stage's state is saved.
    """

    size: int = 96
    window: DistantWindow = field(default_factory=DistantWindow)
    clip_frames: int = 8
    execute: int = 1
    steps: int = 100
    replace: float | None = None
    top_p: float = 0.88
    auxiliary: float = 5e-4
    as_coded: bool = True
    idle_actions: bool = True
    dropout_acting: bool = True
    first_weight: float = 5.0
    text: str = "sentence"
    bins: Literal["release", "quantile"] = "release"
    save_every: int = 1000
    tokenizer: AxialVQVAEConfig = field(default_factory=AxialVQVAEConfig)
    predictor: PerceiverDiffusionPredictorConfig = field(default_factory=PerceiverDiffusionPredictorConfig)
    policy: GPTDiffusionPolicyConfig | MultiviewGPTPolicyConfig = field(default_factory=GPTDiffusionPolicyConfig)
    # Four devices of 32 clips in the release, for ten epochs of a mixture whose size is not known: the steps are ours.
    tokenizer_stage: Stage = field(default_factory=lambda: Stage(steps=100_000, batch=128, optim=plain_adam(3e-4)))
    # Ten pairs of robot and human, twice a step; fine-tuning took the weights after so many steps.
    pretrain_stage: Stage = field(
        default_factory=lambda: Stage(steps=600_000, batch=40, optim=plain_adam(2e-4, ema=_AVERAGED, accumulate=2))
    )
    # One window of each of fifty tasks, twice a step.
    finetune_stage: Stage = field(
        default_factory=lambda: Stage(steps=1_000_000, batch=100, optim=plain_adam(2e-4, ema=_AVERAGED, accumulate=2))
    )

    @property
    def views(self) -> int:
        """Cameras of a clip: the published form has one (its RLBench head reads pictures of its own)."""
        return 1

    def __post_init__(self) -> None:
        strides = self.tokenizer.strides
        if self.window.frames != strides[0] or self.clip_frames % strides[0]:
            raise ValueError(
                f"window.frames is {self.window.frames} and clip_frames {self.clip_frames}; a latent frame stands for "
                f"{strides[0]} frames: wanted that number, and a multiple of it"
            )
        codes, grid = (self.tokenizer.codes, self.tokenizer.code_width), (
            self.size // strides[1], self.size // strides[2])  # fmt: skip
        if (self.predictor.codes, self.predictor.code_width) != codes or self.predictor.grid != grid:
            raise ValueError(
                f"frames of {self.size} px give a grid of {grid} with {codes[0]} codes of width {codes[1]}; the "
                f"predictor has {self.predictor.grid} with {self.predictor.codes} of width "
                f"{self.predictor.code_width}: set all of them"
            )
        if not 1 <= self.execute <= self.window.chunk or self.policy.chunk != self.window.chunk:
            raise ValueError(
                f"chunk is {self.window.chunk} in the window and {self.policy.chunk} in the policy (they must agree), "
                f"and execute {self.execute} must lie in 1..chunk"
            )
        if isinstance(self.policy, GPTDiffusionPolicyConfig):
            if self.policy.trunk.width != self.predictor.width:
                raise ValueError(
                    f"the policy is {self.policy.trunk.width} wide and reads features of width {self.predictor.width}: "
                    f"set --policy.trunk.width {self.predictor.width}"
                )
            places = 2 + self.predictor.tokens + self.policy.tokens
            if self.predictor.places < 2 + 2 * self.predictor.tokens or self.policy.places < places:
                raise ValueError(
                    f"the predictor has {self.predictor.places} places and needs {2 + 2 * self.predictor.tokens}, the "
                    f"policy {self.policy.places} and needs {places}: set --predictor.places and --policy.places"
                )

    @property
    def vocabulary(self) -> Vocabulary:
        """Video codes, action classes, and one mask."""
        return Vocabulary((self.predictor.codes, self.policy.classes))

    @property
    def clip_window(self) -> WindowConfig:
        """The windows that the tokenizer learns from."""
        return WindowConfig(context=self.clip_frames, horizon=0, stride=self.window.stride, chunk=1)

    @property
    def action_bins(self) -> ActionBinsConfig:
        """The bins that actions become."""
        return ActionBinsConfig(kind=self.bins, classes=self.policy.classes, width=self.policy.action_width)

    def process(self, *, actions: bool = True) -> MaskReplace:
        """Returns the noise over a latent frame and, with ``actions``, a chunk after it."""
        vocabulary = self.vocabulary
        schedule = (
            linear_schedule(vocabulary, self.steps)
            if self.replace is None
            else hybrid_schedule(vocabulary, self.steps, self.replace)
        )
        layout = vocabulary.layout((self.predictor.tokens, self.policy.tokens if actions else 0))
        return MaskReplace(vocabulary, schedule, layout, published=self.as_coded)


def published() -> PublishedVPDD:
    """What the published code does, for Meta-World."""
    return PublishedVPDD()


def paper() -> PublishedVPDD:
    """What the paper says, for Meta-World, with the published networks."""
    return PublishedVPDD(replace=0.1, as_coded=False, idle_actions=False, dropout_acting=False)


def published_tiny() -> PublishedVPDD:
    """Seconds on one core; for tests and for trying a pipeline out. It learns next to nothing."""
    stage = Stage(steps=20, batch=8, optim=plain_adam(1e-3, ema=0.9, accumulate=2), every=4)
    tokenizer = AxialVQVAEConfig(strides=(4, 8, 8), width=16, blocks=1, codes=32, code_width=16)
    predictor = PerceiverDiffusionPredictorConfig(
        codes=32, code_width=16, grid=(4, 4), width=32, head_width=16, latents=16, blocks=1, text_width=384, places=34
    )
    policy = GPTDiffusionPolicyConfig(
        classes=16, text_width=384, places=34, trunk=GPTConfig(width=32, layers=2, heads=2, inner=64)
    )
    return PublishedVPDD(
        size=32, window=DistantWindow(ahead=8), steps=4, text="hashed", bins="quantile", save_every=5,
        tokenizer=tokenizer, predictor=predictor, policy=policy,
        tokenizer_stage=stage, pretrain_stage=stage, finetune_stage=stage,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], PublishedVPDD]] = {
    "published": published,
    "paper": paper,
    "published-tiny": published_tiny,
}
