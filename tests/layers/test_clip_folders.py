"""A CLIP in a folder: what is opened of it, and that no part that is missing is made up."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="the text extra is not installed")

import transformers

from ideomotor.layers.clip_folders import clip_text_tower, clip_tokenizer
from ideomotor.layers.text import ClipText
from ideomotor.layers.text_tokens import clip_tokens

WORDS = {word: number for number, word in enumerate(("a", "a</w>", "b", "b</w>", "<|startoftext|>", "<|endoftext|>"))}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A text tower in bfloat16 that knows two letters, with a bare vocabulary beside it."""
    config = transformers.CLIPTextConfig(
        **SIZES, vocab_size=len(WORDS), projection_dim=8, bos_token_id=4, eos_token_id=5, pad_token_id=0
    )
    transformers.CLIPTextModelWithProjection(config).bfloat16().save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps(WORDS))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path


def test_a_folder_is_opened_whole_and_in_float32(clip: Path) -> None:
    assert clip_tokenizer(clip)("a b")["input_ids"] == [4, 1, 3, 5]
    tower = clip_text_tower(clip)
    assert {weight.dtype for weight in tower.parameters()} == {torch.float32} and not tower.training
    vector, states = ClipText(clip, unit=False)(["a b"]), clip_tokens(clip, tokens=4)(["a b"])
    told = tower(torch.tensor([[4, 1, 3, 5]]))
    torch.testing.assert_close(vector, told.text_embeds)
    torch.testing.assert_close(states, told.last_hidden_state)


@pytest.mark.parametrize("open_one", [ClipText, clip_tokens])
def test_a_part_that_is_missing_is_named_and_not_made_up(clip: Path, open_one) -> None:
    merges = (clip / "merges.txt").read_text()
    (clip / "merges.txt").unlink()
    with pytest.raises(
        ValueError, match=r"holds no tokenizer of CLIP \(vocab.json and merges.txt, or tokenizer.json\)"
    ):
        open_one(clip)
    (clip / "merges.txt").write_text(merges)
    (clip / "vocab.json").write_text("{")
    with pytest.raises(ValueError, match=r"the tokenizer in .* is damaged"):
        open_one(clip)
    whole = transformers.CLIPTextConfig.from_pretrained(clip)
    transformers.CLIPTextModel(whole).save_pretrained(clip)  # as other video models keep theirs
    with pytest.raises(ValueError, match=r"1 of the weights .* are not in .*, text_projection.weight among them"):
        open_one(clip)
    (clip / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"the text tower of CLIP in .* cannot be read"):
        open_one(clip)
