"""VPP acting: the newest frames and a sentence in, a chunk of actions out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.data.windows import refuse_other_context
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.vpdd import TextEncoder, seen_frames
from ideomotor.systems.vpp import VPP, Foreseeing, Looking, Seeing, read_state
from ideomotor.tokenizers.patch_pca import PatchPCA
from ideomotor.types import Clip, Prefix


class VPPAgent:
    """Acts: the newest frames and a sentence in, a chunk of actions out. The same observation gives the same chunk.

    Attributes:
        sampling: how actions are denoised; by default as the policy's settings say.
        temperature: scale of the noise that a chunk is denoised from. The noise is the same at every look, so a policy
            that is not sure errs to the same side each time; from 0 it begins with what it expects in the mean.
    """

    def __init__(
        self,
        config: VPP,
        looking: Looking,
        policy: EDMTransformer,
        foreseeing: Seeing | None,
        goal: TextEncoder,
        robot: RobotActions | None = None,
    ) -> None:
        self.config, self.looking, self.policy, self.foreseeing, self.goal = config, looking, policy, foreseeing, goal
        self.robot = robot
        self.sampling, self.temperature = policy.config.sampling, 1.0
        for module in (looking, policy, *(() if foreseeing is None else foreseeing.parts)):
            module.eval()

    @torch.inference_mode()
    def act(
        self,
        context: Clip,
        generators: Sequence[torch.Generator] | None = None,
        prefix: Prefix | None = None,
    ) -> Float[Tensor, "b chunk action"]:
        """Returns the next chunk; its first ``config.execute`` actions are to be carried out before looking again.

        Those for an own robot are commands in its units, which are relative to the state in ``context``.

        Args:
            context: the newest frame of each view, and the sentence.
            generators: one a sample, of the noise that the future is foretold from; where that is the same each time
                (``Foresight.seed``), nothing is drawn from them.
            prefix: actions, or commands of an own robot, that the chunk begins with and goes on from.

        Raises:
            ValueError: the context is none that the policy was trained on, or lacks the state that it reads.
        """
        refuse_other_context(context.frames, self.config.window)
        device = next(self.policy.parameters()).device
        context, config = context.to(device), self.policy.config
        with self.config.policy_stage.optim.autocast(device):
            newest = seen_frames(context, self.config.views)[:, -1:]
            features = None if self.foreseeing is None else self.foreseeing(newest, context.text, generators)
            # The same noise for every sample: what one gets depends neither on its neighbours nor on the calls before.
            noise = torch.randn(1, config.chunk, config.action_width, generator=torch.Generator().manual_seed(0))
            actions = self.policy.act(
                self.looking(newest, features),
                self.goal(context.text).to(device),
                read_state(self.robot, config, context.proprio),
                self.sampling,
                noise=self.temperature * noise.to(device).expand(len(context), -1, -1),
                prefix=None if prefix is None else self._told(prefix.to(device), context.proprio),
            ).float()
        actions = actions if self.robot is None else self.robot.decode(actions, context.proprio)
        return actions if prefix is None else prefix.put(actions)

    def _told(self, prefix: Prefix, state: Float[Tensor, "b state"] | None) -> Prefix:
        """The prefix as the policy knows actions; what is not known is no command, and has none."""
        if self.robot is None:
            return prefix
        actions = prefix.actions.new_zeros(*prefix.actions.shape[:2], self.policy.config.action_width)
        for row, known in enumerate(prefix.known.tolist()):
            if known:
                here = None if state is None else state[row : row + 1]
                actions[row, :known] = self.robot.encode(prefix.actions[row : row + 1, :known], here)[0]
        return Prefix(actions, prefix.known)


def acting_by(
    agent: VPPAgent,
    execute: int | None,
    ensemble: float | None,
    temperature: float = 1.0,
    sampling: SamplingChange | None = None,
) -> VPPAgent:
    """Returns the agent, set to execute, average and denoise chunks otherwise than it was trained, where that is given.

    Raises:
        ValueError: the temperature is not in 0..1, or there is no such sampling.
    """
    if not 0 <= temperature <= 1:
        raise ValueError(
            f"--temperature is {temperature}; wanted from 0 (what is expected) to 1 (noise as in training)"
        )
    if sampling is not None:
        agent.sampling = sampling.of(agent.policy.config.sampling)
    config, agent.temperature = agent.config, temperature
    agent.config = replace(
        config, execute=config.execute if execute is None else execute,
        ensemble=config.ensemble if ensemble is None else ensemble,
    )  # fmt: skip
    return agent


def in_bf16(agent: VPPAgent) -> VPPAgent:
    """Returns the agent, what it foresees with turned into bfloat16: half the memory, and less time on a GPU.

    Those are the video model and SVD's autoencoder, whose range bfloat16 holds. A map of patches, which rounding would
    blur and which costs nothing, and the policy itself stay as they are; features come back in the policy's precision.

    Raises:
        ValueError: the policy foresees nothing.
    """
    seeing = agent.foreseeing
    if not isinstance(seeing, Foreseeing) or seeing.predictor is None:
        raise ValueError(
            f"weights in bf16 are those of a video model, and this policy looks with {agent.config.eyes}: leave out "
            "--weights"
        )
    for part in seeing.parts:
        if not isinstance(part, PatchPCA):
            part.to(torch.bfloat16)
    return agent
