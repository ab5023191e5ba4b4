"""The published way from latents to actions, through a folder that a checkpoint and a video model were joined to."""

import json
import shutil
from types import SimpleNamespace

import pytest
import recipe
import torch
from einops import rearrange
from safetensors.torch import load_file

from ideomotor.systems.vpp_import import models_of
from ideomotor.systems.vpp_joining import Joining, joined, write_whole
from ideomotor.systems.vpp_stages import load_agent
from ideomotor.tokenizers.svd_vae import SVDVAE, small
from ideomotor.types import Clip

pytestmark = pytest.mark.golden
pytest.importorskip("diffusers", reason="the svd extra is not installed")
transformers = pytest.importorskip("transformers", reason="the text extra is not installed")

CLIP = {"token_embedding.weight": (6, 48), "positional_embedding": (77, 48), "ln_final.weight": (48,),
        "ln_final.bias": (48,), "text_projection": (48, 24)}  # fmt: skip
BLOCK = {"attn.in_proj_weight": (144, 48), "attn.in_proj_bias": (144,), "attn.out_proj.weight": (48, 48),
         "attn.out_proj.bias": (48,), "ln_1.weight": (48,), "ln_1.bias": (48,), "ln_2.weight": (48,),
         "ln_2.bias": (48,), "mlp.c_fc.weight": (192, 48), "mlp.c_fc.bias": (192,), "mlp.c_proj.weight": (48, 192),
         "mlp.c_proj.bias": (48,)}  # fmt: skip


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "vpp"


@pytest.fixture(scope="module")
def about(folder):
    return json.loads((folder / "policy_end_to_end_tiny.json").read_text())


def clip(place):
    """A CLIP that knows four letters; what was recorded begins behind it."""
    words = {"a": 0, "a</w>": 1, "b": 2, "b</w>": 3, "<|startoftext|>": 4, "<|endoftext|>": 5}
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps(words))
    (place / "merges.txt").write_text("#version: 0.2\n")
    return place


def checkpoint(about):
    """The recorded weights, and beside them text towers as a CALVIN checkpoint has them."""
    towers = {f"language_goal.clip_rn50.{name}": torch.ones(shape) for name, shape in CLIP.items()}
    block = "language_goal.clip_rn50.transformer.resblocks.0."
    towers |= {block + name: torch.ones(shape) for name, shape in BLOCK.items()}
    settings = transformers.CLIPTextConfig(
        vocab_size=6, hidden_size=48, intermediate_size=96, num_hidden_layers=1, num_attention_heads=1,
        projection_dim=24, bos_token_id=4, eos_token_id=5, pad_token_id=0,
    )  # fmt: skip
    video = transformers.CLIPTextModelWithProjection(settings).state_dict()
    towers |= {f"TVP_encoder.text_encoder.{name}": value for name, value in video.items()}
    return {"model": recipe.weights(about["weights"]) | towers}


@pytest.fixture(scope="module")
def stage(folder, about, tmp_path_factory):
    home = tmp_path_factory.mktemp("joined")
    (home / "svd/unet").mkdir(parents=True)
    sizes = json.loads((folder / "tvp_unet_tiny.json").read_text())["unet_config"]
    (home / "svd/unet/config.json").write_text(json.dumps(sizes))
    weights = home / "svd/unet/diffusion_pytorch_model.safetensors"
    shutil.copy(folder / "tvp_unet_tiny.safetensors", weights)
    SVDVAE(small()).net.save_pretrained(home / "svd/vae")
    models = models_of(checkpoint(about), heads=4)  # the tiny networks have 4
    joining = Joining(video=home / "svd", text=clip(home / "clip"), size=128)
    whole = joined(models.former, models.policy, models.texts, models.calvin, joining)
    write_whole(whole, home / "stage", {})
    return home / "stage"


def test_a_joined_folder_acts_as_recorded(folder, stage, monkeypatch):
    """Latents, vectors of sentences and noise are the recorded ones; all between is the agent as it is served."""
    data, agent = load_file(folder / "policy_end_to_end_tiny.safetensors"), load_agent(stage)
    assert agent.config.video.text.join == "plain" and agent.config.execute == 6
    latents = torch.cat([data["scaled_latent_static"], data["scaled_latent_gripper"]]) / 0.18215
    each = agent.foreseeing.alone()  # the recorded sentences differ between the views: each is a sample of its own
    each.text = lambda sentences: data["text_embedding"]

    def foresee(frames, sentences, generators):
        views = rearrange(frames, "1 t c (view h) w -> view t c h w", view=2)
        return torch.cat([*each(views, ("static", "gripper"), [torch.Generator()] * 2)], 1)[None]

    agent.foreseeing, agent.goal = foresee, lambda sentences: data["goal"][:, 0]
    frames = {name: torch.zeros(1, 1, 3, 128, 128, dtype=torch.uint8) for name in ("main", "view1")}
    for plan, scale in enumerate((1, 2)):  # the second sees doubled latents
        each.vae = SimpleNamespace(moments=lambda views, scale=scale: (scale * latents, None))
        draws = [noise[None] for noise in data["video_noise"][plan]] + [data["action_noise"][plan]]
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randn", lambda *shape, generator, draws=draws: draws.pop(0))
            (chunk,) = agent.act(Clip(frames=frames, text=("",)))
        assert not draws
        torch.testing.assert_close(chunk, data["action_chunks"][plan], atol=1e-3, rtol=0)
