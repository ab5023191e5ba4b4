"""Text sequences: what is remembered, what is refused, and vectors as short sequences."""

from types import SimpleNamespace

import pytest
import torch

from ideomotor.layers.text import HashedWords
from ideomotor.layers.text_tokens import ClipTokens, OneToken, TextTokens, TextTokensConfig, clip_tokens


class Tower(torch.nn.Module):
    calls = 0

    def forward(self, ids, attention_mask):
        self.calls += 1
        assert attention_mask.sum() == (ids != 2).sum() + 1
        return SimpleNamespace(last_hidden_state=ids[..., None].float().expand(-1, -1, 6))


def letters(sentence, truncation, max_length):
    return {"input_ids": [1, *(ord(letter) for letter in sentence), 2][:max_length]}


def test_a_sentence_is_encoded_once():
    encoder = ClipTokens(letters, Tower(), end=2, tokens=5)
    first = encoder(["ab", "c", "ab"])
    assert first[:, :, 0].tolist() == [[1, 97, 98, 2, 2], [1, 99, 2, 2, 2], [1, 97, 98, 2, 2]]
    assert encoder(["c", "ab"])[0].equal(first[1]) and encoder.model.calls == 2


def test_a_vector_is_a_short_sequence_that_can_be_projected():
    text = OneToken(HashedWords(12))(["open the drawer", ""])
    assert text.shape == (2, 1, 12)
    torch.manual_seed(0)
    read = TextTokens(TextTokensConfig(width=12, out=8, join="projected"))(text)
    assert read.shape == (2, 1, 8) and read[0].std() > 0.3 and not read[1].any()  # nothing known stays nothing


def test_wrong_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="text of width 384, doubled, gives width 768; the network attends to 1024"):
        TextTokensConfig(width=384)
    with pytest.raises(ValueError, match=r"text of shape \(2, 512\) came; wanted \(batch, tokens, 512\)"):
        TextTokens(TextTokensConfig())(torch.zeros(2, 512))
    with pytest.raises(ValueError, match="tokens is 1"):
        ClipTokens(letters, Tower(), end=2, tokens=1)
    with pytest.raises(ValueError, match="holds no CLIP model"):
        clip_tokens(tmp_path)
