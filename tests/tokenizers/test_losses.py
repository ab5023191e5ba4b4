"""What a reconstruction costs: what moved may count more than what stands still."""

from dataclasses import replace

import torch

from ideomotor.tokenizers.losses import Painted, Reconstruction, ReconstructionConfig, price


def test_what_moved_counts_more() -> None:
    nothing, ids = torch.zeros(()), torch.zeros(1, 4, dtype=torch.long)
    still = torch.zeros(1, 3, 4, 4)
    moved = torch.zeros(1, 1, 4, 4)
    moved[..., 0, 0] = 0.5
    config = ReconstructionConfig(pixels="l2", motion_weight=10.0)

    def future(row: int, settings: ReconstructionConfig) -> float:
        wrong = still.clone()
        wrong[..., row, 0] = 1.0
        parts = Reconstruction(Painted(still, still, nothing, ids), Painted(still, wrong, nothing, ids), moved)
        return price(parts, (8, 8), settings, None).losses.terms["future"].item()

    assert abs(future(0, config) - (1 + 10 * 0.5) / 16) < 1e-6
    assert abs(future(1, config) - 1 / 16) < 1e-6
    plain = replace(config, motion_weight=0.0)
    assert future(0, plain) == future(1, plain)
