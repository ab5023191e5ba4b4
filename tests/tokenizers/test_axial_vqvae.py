"""The contract of a tokenizer, held by the published one, and what is particular to it."""

import copy

import pytest
import torch

from ideomotor.tokenizers.axial_vqvae import AxialVQVAE, AxialVQVAEConfig
from ideomotor.types import Clip, Tokenizer

SMALL = {
    "cube": AxialVQVAEConfig(width=16, blocks=1, codes=32, code_width=8),
    "pairs": AxialVQVAEConfig(width=16, blocks=1, codes=32, code_width=8, strides=(2, 4, 8), together=2),
}


def video(b=2, t=8, h=16, w=24):
    return torch.randint(0, 256, (b, t, 3, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=SMALL)
def tokenizer(request):
    torch.manual_seed(0)
    return AxialVQVAE(SMALL[request.param])


def test_contract(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    frames = video()
    tokenizer.loss(frames)  # the codebook begins with its first batch
    tokenizer.eval()
    tokens, (rows, columns) = tokenizer.encode(frames), tokenizer.grid(16, 24)
    assert tokens.shape == (2, 8 // tokenizer.frames_per_latent, rows * columns)
    assert tokens.min() >= 0 and tokens.max() < tokenizer.vocab
    again = tokenizer.decode(tokens, (rows, columns))
    assert again.shape == frames.shape and again.dtype == torch.uint8
    piece = tokenizer.frames_per_latent * tokenizer.config.together
    assert tokenizer.encode(frames[:, :piece]).equal(tokens[:, : tokenizer.config.together])  # knows nothing of later


def test_number_of_parameters():
    with torch.device("meta"):
        tokenizer = AxialVQVAE(AxialVQVAEConfig())
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == 30_861_827


def test_it_overfits_one_batch():
    torch.manual_seed(0)
    tokenizer = AxialVQVAE(SMALL["cube"])
    coarse = video(4, 1, 4, 4)
    clip = Clip(
        frames={"main": coarse.repeat_interleave(4, 3).repeat_interleave(4, 4).repeat(1, 4, 1, 1, 1)}, text=("",) * 4
    )
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    losses = [tokenizer(clip)]
    for _ in range(120):
        optimizer.zero_grad()
        losses[-1].total.backward()
        optimizer.step()
        losses.append(tokenizer(clip))
    assert losses[-1].terms["reconstruction"] < losses[0].terms["reconstruction"] / 5
    assert losses[-1].terms["perplexity"] > 4


def test_the_codebook_survives_a_resume(tokenizer):
    tokenizer.loss(video())
    resumed = AxialVQVAE(tokenizer.config)
    resumed.load_state_dict(copy.deepcopy(tokenizer.state_dict()))
    assert tokenizer.loss(video()).total.equal(resumed.loss(video()).total)
    for name, value in tokenizer.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


def test_foreign_ids_are_zero_vectors(tokenizer):
    ids = torch.tensor([[0, 31], [32, 600]])
    vectors = tokenizer.vectors(ids)
    assert vectors[0].equal(tokenizer.codebook.codes[[0, 31]])
    assert not vectors[1].any()


def test_wrong_clips_are_refused():
    tokenizer = AxialVQVAE(SMALL["cube"])
    for call in (tokenizer.encode, tokenizer.loss):
        with pytest.raises(ValueError, match="6 frames do not divide into pieces of 4"):
            call(video(t=6))
        with pytest.raises(ValueError, match="18x24 do not divide into cells of 4x4"):
            call(video(h=18))
    with pytest.raises(ValueError, match="give the grid"):
        tokenizer.decode(torch.zeros(1, 1, 24, dtype=torch.long))
    with pytest.raises(ValueError, match="1 latent frames do not divide into pieces of 2"):
        AxialVQVAE(SMALL["pairs"]).decode(torch.zeros(1, 1, 16, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": (4, 6, 4)}, "powers of two"),
        ({"strides": (1, 1, 1)}, "above 1"),
        ({"width": 18, "heads": 4}, "4 heads"),
        ({"together": 0}, "at least 1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AxialVQVAEConfig(**settings)
