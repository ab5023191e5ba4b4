"""Loss scaling: what lets gradients be computed in fp16, whose smallest number is 6e-8 and whose largest is 65504."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST_SKIPPED = 20
"""Steps that may be left out in a row, each of which halves the scale: from the first, 65536, to 1/16."""


class LossScale:
    """Multiplies the loss before backward and divides the gradients after it; where it is off, it does neither.

    The scale is halved by a step whose gradients overflow, and doubled after 2000 that do not, as torch's
    ``GradScaler`` has it. A step that overflows moves no weight and counts for neither optimizer nor average.

    Attributes:
        on: whether it scales.
        skipped: steps that were left out so far,
        in_a_row: and those at the end of them with none between.
    """

    def __init__(self, device: torch.device, on: bool) -> None:
        self.on, self.skipped, self.in_a_row = on, 0, 0
        self._scaler = torch.amp.GradScaler(device.type, enabled=on)

    def scaled(self, loss: Tensor) -> Tensor:
        """Returns the loss to call backward on."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients, in place; once a step, when all parts of the batch have been added up."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, finite: bool) -> dict[str, float]:
        """Moves the weights, where the gradients are ``finite``, and sets the scale of the next step.

        Returns:
            ``loss_scale`` of this step and ``skipped``, 0 or 1, where it is on.
        """
        used = self._scaler.get_scale()
        if finite:
            self._scaler.step(optimizer)
        self._scaler.update()
        if not self.on:
            return {}
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        return {"loss_scale": used, "skipped": float(not finite)}

    def tensors(self) -> dict[str, Tensor]:
        """Returns all that a resumed run needs; nothing where it is off."""
        if not self.on:
            return {}
        state = self._scaler.state_dict()
        counts = {"growth": state["_growth_tracker"], "skipped": self.skipped, "in_a_row": self.in_a_row}
        whole = {name: torch.tensor(count, dtype=torch.int64) for name, count in counts.items()}
        return whole | {"scale": torch.tensor(state["scale"], dtype=torch.float64)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from what ``tensors`` returned."""
        if self.on:
            own = {"scale": tensors["scale"].item(), "_growth_tracker": int(tensors["growth"])}
            self._scaler.load_state_dict(self._scaler.state_dict() | own)
            self.skipped, self.in_a_row = int(tensors["skipped"]), int(tensors["in_a_row"])
