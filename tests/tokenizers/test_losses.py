"""What a reconstruction costs: what moved may count more than what stands still."""

from dataclasses import replace

import torch

from ideomotor.tokenizers.context_config import ContextVQGANConfig
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
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


def test_economy_costs_what_the_codes_are_away_from_the_middle() -> None:
    ids, still = torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 3, 4, 4)
    part = Painted(still, still, torch.zeros(()), ids)
    parts = Reconstruction(part, part, None, torch.tensor(0.25))
    plain, thrifty = (price(parts, (8, 8), ReconstructionConfig(economy=weight), None).losses for weight in (0.0, 0.1))
    assert thrifty.total - plain.total == 0.1 * 0.25
    assert "effort" not in plain.terms and thrifty.terms["effort"] == 0.25


def test_effort_is_of_the_codes_and_falls_towards_the_middle_one(generator) -> None:
    config = ContextVQGANConfig(
        size=16, widths=(16, 16), blocks=1, latent=8, patch=2, norm_groups=8, heads=2, codebook="fsq", levels=(5, 5, 5),
        attention_limit=8, dropout=0.0, residual=True,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = ContextVQGAN(config)
    frames = torch.randint(0, 256, (2, 4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    parts = tokenizer.reconstruct(frames)
    codes = tokenizer.dynamics_codebook.lookup(parts.future.ids)
    assert parts.effort is not None and torch.allclose(parts.effort, codes.square().mean())
    vectors = torch.randn(64, 3, generator=generator).requires_grad_()
    for _ in range(200):
        effort = tokenizer.dynamics_codebook(vectors)[0].square().sum()
        (pull,) = torch.autograd.grad(effort, vectors)
        vectors = (vectors - 0.1 * pull).detach().requires_grad_()
    assert (tokenizer.dynamics_codebook(vectors)[1] == (tokenizer.dynamics_codes - 1) // 2).all()
