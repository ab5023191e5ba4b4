"""How a diffusion policy denoises its actions, where otherwise than it was trained: options of trial and server."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ideomotor.diffusion.sigma_samplers import Deterministic, Sampling


@dataclass(frozen=True, kw_only=True)
class SamplingChange:
    """What of a policy's sampling is otherwise; None leaves it as trained.

    Attributes:
        sampler: from noise to actions. Those that draw fresh noise on the way are left out: the same observation is to
            give the same chunk.
        steps: noise levels that actions are denoised at; fewer act faster.
        sigma_min: the lowest noise level that the network is asked at, before it goes to 0. Published evaluations end
            at 1.0.
    """

    sampler: Deterministic | None = None
    steps: int | None = None
    sigma_min: float | None = None

    def of(self, trained: Sampling) -> Sampling:
        """Returns the sampling with what is otherwise.

        Raises:
            ValueError: there is no such sampling, or the policy's levels have a range of their own.
        """
        if self.sigma_min is not None and trained.levels == "vp":
            raise ValueError(
                f"--sampling.sigma-min is {self.sigma_min}, and the policy's levels are vp, which have a range of "
                "their own: leave it out"
            )
        given = {name: value for name, value in vars(self).items() if value is not None}
        try:
            changed = replace(trained, **given)
            levels = changed.sigmas()
            if given and not (levels.diff() < 0).all():
                raise ValueError(
                    f"{changed.steps} steps do not fall from {changed.sigma_max:g} to {changed.sigma_min:g}: take "
                    "fewer, or a lower sigma_min"
                )
            return changed
        except ValueError as error:
            options = ", ".join(f"--sampling.{name.replace('_', '-')} {value}" for name, value in given.items())
            raise ValueError(f"{options}, beside what the policy was trained with: {error}") from error
