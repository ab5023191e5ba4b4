"""VPP acting: the newest frames and a sentence in, a chunk of actions out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ideomotor.data.windows import refuse_other_context
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.systems.vpdd import TextEncoder, seen_frames
from ideomotor.systems.vpp import VPP, Looking, Seeing, read_state
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
