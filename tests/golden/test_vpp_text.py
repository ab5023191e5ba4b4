"""Numbers of the published text of VPP's video model: ids, last hidden states, positions and doubling."""

import json

import pytest
import torch
from recipe import weights
from safetensors.torch import load_file

from ideomotor.layers.text_tokens import ClipTokens, TextTokens, TextTokensConfig

pytestmark = pytest.mark.golden
transformers = pytest.importorskip("transformers", reason="the text extra is not installed")


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpp"


def test_hidden_states_and_what_the_network_attends_to(folder):
    """The tower gets recorded ids; of sentences there is nothing to compare in this file."""
    data = load_file(folder / "text_embedding_tiny.safetensors")
    about = json.loads((folder / "text_embedding_tiny.json").read_text())
    settings = transformers.CLIPTextConfig(**about["text_config"], bos_token_id=62, eos_token_id=63, pad_token_id=63)
    model = transformers.CLIPTextModelWithProjection(settings)
    model.load_state_dict(weights(about["weights"]))
    ids = {str(row): list(data["token_ids"][row][data["attention_mask"][row] > 0]) for row in range(2)}
    encoder = ClipTokens(lambda sentence, **_: {"input_ids": ids[sentence]}, model, end=63)
    states = encoder(["0", "1"])
    torch.testing.assert_close(states, data["last_hidden_state"], atol=1e-4, rtol=0.0)
    plain = TextTokens(TextTokensConfig())(states)
    torch.testing.assert_close(plain[..., :520], data["embedding_plain"], atol=1e-4, rtol=0.0)
    placed = TextTokens(TextTokensConfig(positions=True))(states)
    torch.testing.assert_close(placed, data["embedding_with_positions"], atol=1e-4, rtol=0.0)


def word_tokenizer(recorded):
    """A tokenizer that knows, as whole words, those that CLIP's own has as one token, and the words it knows."""
    tokenizers = pytest.importorskip("tokenizers")
    parts = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Punctuation()]
    )
    words = {"<start>": recorded["start_id"], "<end>": recorded["end_id"]}
    for sentence, ids in zip(recorded["sentences"], recorded["token_ids_unpadded"], strict=True):
        split = [word for word, _ in parts.pre_tokenize_str(sentence.lower())]
        if len(split) == len(ids) - 2:
            words |= dict(zip(split, ids[1:-1], strict=True))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<end>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = tokenizers.normalizers.Lowercase(), parts
    ends = [(word, words[word]) for word in ("<start>", "<end>")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<start> $A <end>", special_tokens=ends)
    known = [all(word in words for word, _ in parts.pre_tokenize_str(s.lower())) for s in recorded["sentences"]]
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer), known


def test_ids(folder):
    """Start, end and cutting are compared, not CLIP's byte pairs: its vocabulary is not at hand offline.

    With the real one all 37 recorded sentences agreed when this was written.
    """
    recorded = json.loads((folder / "text_tokens.json").read_text())
    assert recorded["end_id"] == recorded["padding_id_video_branch"] == 49407
    tokenizer, known = word_tokenizer(recorded)
    encoder = ClipTokens(tokenizer, torch.nn.Identity(), recorded["end_id"])
    masks = recorded["attention_mask_20"]
    for sentence, ids, mask, ours in zip(recorded["sentences"], recorded["token_ids_20"], masks, known, strict=True):
        assert not ours or encoder.ids(sentence) == ids[: sum(mask)]
    longest = max(recorded["sentences"], key=len)
    assert sum(known) >= 28 and known[recorded["sentences"].index(longest)] and known[recorded["sentences"].index("")]
