"""The whole of VPDD on one page: from video without actions to a policy, at toy size, in seconds.

    python examples/train_vpdd.py [OUT]

You see three losses fall (pixels to tokens, tokens to foretold tokens, foresight and pixels to actions), and then what
the policy does on a clip it has never seen, beside what was recorded. Stop it at any time: the same command goes on.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from ideomotor.data.loader import ClipLoader
from ideomotor.data.mixture import Source
from ideomotor.data.synthetic import synthetic_dataset
from ideomotor.layers.text import HashedWords
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.systems.recorded import recorded_actions
from ideomotor.systems.vpdd import ActionDenoising, VideoDenoising, tiny
from ideomotor.systems.vpdd_agent import VPDDAgent
from ideomotor.systems.vpdd_stages import open_run
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training import OptimConfig

out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/vpdd")
config = replace(tiny(), policy=replace(tiny().policy, action_width=2))
steps, optim, text = 120, OptimConfig(lr=3e-3, warmup=10), HashedWords()

# A disc moves and bounces; its action is its way to the next frame. Much video without actions, little with.
video = Source(dataset=synthetic_dataset(40, actions=False, seed=0), window=config.window)
shown = Source(dataset=synthetic_dataset(8, actions=True, seed=1), window=config.window)
clips = partial(ClipLoader, [video], 8, 0, actions=False)  # clips(start=step): a stopped run goes on at its step

with open_run(out / "tokenizer", config, seed=0) as run:  # frames -> tokens -> the frames again
    tokenizer = VQVAE3D(config.tokenizer)
    run.fit(lambda step: clips(start=step), run.learner(tokenizer, optim, steps), steps=steps)
    run.save(tokenizer, config.tokenizer, "tokenizer")

with open_run(out / "pretrain", config, seed=0) as run:  # tokens seen, and a sentence -> the masked tokens to come
    predictor = DiscreteDiffusionPredictor(config.predictor)
    objective = VideoDenoising(predictor, tokenizer, text)  # owns the predictor and borrows the tokenizer
    run.fit(lambda step: clips(start=step), run.learner(objective, optim, steps), steps=steps)
    run.save(tokenizer, config.tokenizer, "tokenizer")
    run.save(predictor, config.predictor, "predictor")

with open_run(out / "finetune", config, seed=0) as run:  # what is foreseen, and pixels -> a chunk of actions
    policy = DiscreteDiffusionPolicy(config.policy)
    policy.bins.fit(recorded_actions([shown]))
    objective = ActionDenoising(policy, predictor, tokenizer, text, config.window.context, shift=0, jitter=0.0)
    run.fit(lambda step: ClipLoader([shown], 8, 0, start=step), run.learner(objective, optim, steps), steps=steps)
    run.save(policy, config.policy, "policy")

new = Source(dataset=synthetic_dataset(4, seed=2), window=config.window)
context, future = ClipLoader([new], 4, 0).batch(0).split(config.window.context)
actions = VPDDAgent(config, policy, predictor, tokenizer, text).act(context)  # four frames in, eight actions out
for acted, recorded in zip(actions[:, 0].tolist(), future.actions[:, 0].tolist(), strict=True):
    print(f"acted x {acted[0]:+.2f} y {acted[1]:+.2f}   recorded x {recorded[0]:+.2f} y {recorded[1]:+.2f}")
