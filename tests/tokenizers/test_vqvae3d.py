"""The contract of a tokenizer, held by every codebook, and what is particular to this one."""

import pytest
import torch

from ideomotor.tokenizers.vqvae3d import VQVAE3D, VQVAE3DConfig
from ideomotor.types import Clip, Tokenizer

SMALL = {
    "fsq": VQVAE3DConfig(widths=(16, 16), blocks=1, levels=(5, 5, 5)),
    "ema": VQVAE3DConfig(widths=(16, 16), blocks=1, codebook="ema", codes=32, code_width=8),
    "unpatched": VQVAE3DConfig(strides=(2, 4, 4), patch=(1, 1, 1), widths=(16, 16, 16), blocks=1, levels=(4, 4)),
    "flat": VQVAE3DConfig(strides=(1, 8, 8), patch=(1, 4, 4), widths=(16, 16), blocks=1, levels=(4, 4)),
}


@pytest.fixture(params=SMALL)
def tokenizer(request: pytest.FixtureRequest) -> VQVAE3D:
    torch.manual_seed(0)
    return VQVAE3D(SMALL[request.param])


def test_contract(tokenizer: VQVAE3D) -> None:
    assert isinstance(tokenizer, Tokenizer)
    frames = torch.randint(0, 256, (2, 8, 3, 32, 48), dtype=torch.uint8)
    tokenizer.loss(frames)  # a learned codebook begins with its first batch
    tokenizer.eval()
    tokens = tokenizer.encode(frames)
    rows, columns = tokenizer.grid(32, 48)
    assert tokens.shape == (2, 8 // tokenizer.frames_per_latent, rows * columns)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab
    again = tokenizer.decode(tokens, (rows, columns))
    assert again.shape == frames.shape and again.dtype == torch.uint8
    assert torch.equal(tokens, tokenizer.encode(frames))


def test_it_overfits_one_batch(tokenizer: VQVAE3D) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (4, 1, 3, 4, 4), dtype=torch.uint8, generator=generator)
    clip = Clip(
        frames={"main": coarse.repeat_interleave(8, 3).repeat_interleave(8, 4).repeat(1, 4, 1, 1, 1)}, text=("",) * 4
    )
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    first = None
    for _ in range(200):
        losses = tokenizer(clip)
        first = losses.terms["reconstruction"] if first is None else first
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.terms["reconstruction"] < first / 5


def test_motion_counts_more() -> None:
    """The same error costs more where the clip moves."""
    tokenizer = VQVAE3D(SMALL["fsq"])
    still = torch.full((1, 4, 3, 32, 32), 128, dtype=torch.uint8)
    moving = still.clone()
    moving[:, 2:, :, :8, :8] = 255
    tokenizer._paint = lambda codes: torch.zeros(1, 4, 3, 32, 32)  # type: ignore[method-assign]  # paints mid-grey
    plain = VQVAE3D(VQVAE3DConfig(widths=(16, 16), blocks=1, levels=(5, 5, 5), motion_weight=0.0))
    plain._paint = tokenizer._paint  # type: ignore[method-assign]
    weighted = tokenizer.loss(moving).terms["reconstruction"] / plain.loss(moving).terms["reconstruction"]
    assert weighted > 2
    torch.testing.assert_close(tokenizer.loss(still).terms["reconstruction"], plain.loss(still).terms["reconstruction"])


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 6, 3, 32, 32), "6 frames do not divide"), ((1, 4, 3, 30, 32), "30x32 do not divide into cells of 8x8")],
)
def test_wrong_clips_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VQVAE3D(SMALL["fsq"]).encode(torch.zeros(shape, dtype=torch.uint8))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="powers of two"):
        VQVAE3DConfig(strides=(4, 6, 8))
    with pytest.raises(ValueError, match="2 widths; 3 were given"):
        VQVAE3DConfig(widths=(8, 8, 8))
