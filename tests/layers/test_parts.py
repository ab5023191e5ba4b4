"""Stem, readout, token groups, text."""

import json
from pathlib import Path

import pytest
import torch

from ideomotor.layers.conv import PixelStem, PixelStemConfig
from ideomotor.layers.resampler import SpatialReadout
from ideomotor.layers.text import ClipText, HashedWords, SentenceEncoder
from ideomotor.layers.token_groups import TokenGroups


def test_the_stem_gives_its_grid_of_tokens() -> None:
    stem = PixelStem(PixelStemConfig(frames=2, widths=(16, 24)))
    frames = torch.randint(0, 256, (3, 4, 3, 32, 32), dtype=torch.uint8)
    assert stem(frames).shape == (3, stem.grid(32) ** 2, 24)
    changed = frames.clone()
    changed[:, :2] = 0  # only the two newest frames count
    assert torch.equal(stem(frames), stem(changed))
    with pytest.raises(ValueError, match="looks at 2 frames and got 1"):
        stem(frames[:, :1])


def test_a_readout_tells_where_things_are() -> None:
    torch.manual_seed(0)
    readout = SpatialReadout(count=9, width=8, squeeze=4, tokens=2, out=5)
    x = torch.randn(1, 9, 8)
    assert readout(x).shape == (1, 2, 5)
    assert not torch.allclose(readout(x), readout(x.flip(1)))


def test_token_groups_know_their_places() -> None:
    groups = TokenGroups(group=3, vocab=5, width=16)
    tokens = torch.tensor([[[0, 1, 2]], [[2, 1, 0]]])
    embedded = groups.embed(tokens)
    assert not torch.allclose(embedded[0], embedded[1])  # same ids, other places
    logits = groups.logits(embedded)
    assert logits.shape == (2, 1, 3, 5) and torch.equal(logits, torch.zeros_like(logits))  # starts uniform
    assert groups.embed(torch.full((1, 2, 3), groups.mask_id)).shape == (1, 2, 16)


@pytest.mark.parametrize("make", [SentenceEncoder, HashedWords])
def test_text_encoders(make: type) -> None:
    if make is SentenceEncoder:
        pytest.importorskip("transformers", reason="the text extra is not installed")
    encode = make()
    vectors = encode(["open the drawer", "press the button", "", "open the drawer"])
    assert vectors.shape == (4, encode.width)
    torch.testing.assert_close(vectors[[0, 1]].norm(dim=1), torch.ones(2))
    assert vectors[2].abs().max() == 0
    assert torch.equal(vectors[0], vectors[3]) and torch.equal(vectors[0], make()(["open the drawer"])[0])
    assert vectors[0] @ vectors[1] < 0.9


def test_a_clip_of_the_users_own_is_read_from_its_folder(tmp_path: Path) -> None:
    """A tiny CLIP with random weights, saved as transformers saves them; real ones differ in size only."""
    transformers = pytest.importorskip("transformers", reason="the text extra is not installed")
    config = transformers.CLIPTextConfig(
        vocab_size=600, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=12, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(tmp_path)
    letters = {letter: 4 + i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1} | letters | {f"{k}</w>": v + 26 for k, v in letters.items()}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    encode = ClipText(tmp_path)
    vectors = encode(["open the drawer", "", "open the drawer", "x " * 200])
    assert vectors.shape == (4, 12) and encode.width == 12
    torch.testing.assert_close(vectors[[0, 3]].norm(dim=1), torch.ones(2))
    assert vectors[1].abs().max() == 0 and torch.equal(vectors[0], vectors[2])
    raw = ClipText(tmp_path, unit=False)(["open the drawer"])
    torch.testing.assert_close(raw / raw.norm(), vectors[:1])
    assert (raw.norm() - 1).abs() > 1e-3  # it keeps its length
    with pytest.raises(ValueError, match="holds no CLIP model"):
        ClipText(tmp_path / "nothing")
