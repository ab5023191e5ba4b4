"""Published VPP policies joined with a video model, and video models alone: folders that act, foretell, train on."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("av", reason="the video extra is not installed")
pytest.importorskip("diffusers", reason="the svd extra is not installed")
pytest.importorskip("transformers", reason="the text extra is not installed")

import transformers
from test_bad_pairs import ideomotor, recording, said
from test_vpp_import import SMALL, SMALL_TEXT, made_up

from ideomotor.data.synthetic import synthetic_disc
from ideomotor.data.video import write_video
from ideomotor.layers.video_former import VideoFormer, VideoFormerConfig
from ideomotor.policies.edm_transformer import EDMTransformer, EDMTransformerConfig
from ideomotor.predictors.latent_diffusion_config import TimeIds
from ideomotor.predictors.svd_unet import SVDUNetConfig, svd_unet
from ideomotor.systems.serving import open_backend
from ideomotor.systems.sources import DataOptions
from ideomotor.systems.stages import read_config
from ideomotor.systems.vpp import VPP
from ideomotor.systems.vpp_joining import layers_of
from ideomotor.systems.vpp_presets import tiny
from ideomotor.systems.vpp_shards import pack
from ideomotor.systems.vpp_stages import load_agent, load_models, run_policy
from ideomotor.systems.vpp_videos import VideoModel
from ideomotor.tokenizers.svd_vae import SVDVAE, small
from ideomotor.training.checkpoint import load_model
from ideomotor.types import Clip

LETTERS = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
WORDS = {word: number for number, word in enumerate([*LETTERS, "<|startoftext|>", "<|endoftext|>"])}
SIZES = {**SMALL, 2560: 64, 1280: 32}
TEXT = {**SMALL_TEXT, 49408: len(WORDS), 77: 77}
SENTENCE = "open the drawer"


def clip_folder(folder: Path, width: int = 16, projection: int = 16, words: dict[str, int] = WORDS) -> Path:
    """A CLIP text tower of one layer that knows letters."""
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=len(WORDS), hidden_size=width, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        projection_dim=projection, bos_token_id=len(WORDS) - 2, eos_token_id=len(WORDS) - 1, pad_token_id=0,
    )  # fmt: skip
    transformers.CLIPTextModelWithProjection(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``svd``, a pipeline as diffusers saves it, and ``clip``; what real ones have beside is of no use here."""
    home = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    unet = SVDUNetConfig(widths=(32, 32, 32, 32), heads=(1, 1, 1, 1), layers=1, text_width=32, time_width=8)
    svd_unet(unet).save_pretrained(home / "svd/unet")
    SVDVAE(small()).net.save_pretrained(home / "svd/vae")
    clip_folder(home / "clip")
    video = synthetic_disc(0, 1).render(np.arange(12, dtype=float), (64, 64))
    write_video(home / "films/a.mp4", video, fps=10)
    return home


def checkpoint(shared: Path, files: Path, name: str) -> dict[str, Tensor]:
    layouts = json.loads((shared / "golden" / "vpp" / "checkpoint_layouts_policy.json").read_text())
    state = made_up(layouts, name, SIZES, TEXT)
    torch.save({"model": state, "args": {}}, files / f"{name}.pt")
    return state


def imported(files: Path, source: str, out: Path, *more: object) -> int:
    joined = () if source == "svd" else ("--video", files / "svd")
    words = ("--text", files / "clip", "--size", 64, *joined)
    return ideomotor("import", "vpp", files / source, "--out", out, *words, *more)


@pytest.fixture(scope="module")
def calvin(shared: Path, files: Path) -> Path:
    """A joined CALVIN policy."""
    checkpoint(shared, files, "calvin_policy")
    assert imported(files, "calvin_policy.pt", files / "calvin") == 0
    return files / "calvin"


@pytest.fixture(scope="module")
def alone(files: Path) -> Path:
    """A video model by itself."""
    assert imported(files, "svd", files / "alone") == 0
    return files / "alone"


def seen(views: int, state: Tensor | None = None) -> Clip:
    generator = torch.Generator().manual_seed(0)
    names = ("main", "view1", "view2")[:views]
    frames = {n: torch.randint(0, 256, (1, 1, 3, 64, 64), dtype=torch.uint8, generator=generator) for n in names}
    return Clip(frames=frames, text=(SENTENCE,), proprio=state)


def drawn(seed: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed)]


# --- a policy and its video model -------------------------------------------------------------------------------------


@pytest.mark.golden
def test_a_joined_policy_acts_wherever_its_folder_lies(calvin: Path, files: Path, tmp_path: Path) -> None:
    agent = load_agent(calvin)
    config = agent.config
    assert (config.views, config.size, config.foresight.layers, config.foresight.seed) == (2, 64, (0, 1), None)
    assert (config.window.chunk, config.execute, config.window.horizon, config.text) == (10, 10, 15, "own")
    assert config.video.text.join == "doubled" and not config.video.text.positions
    assert not config.policy_stage.optim.bf16 and config.policy.trunk.causal_context
    chunk = agent.act(seen(2), drawn())
    assert chunk.shape == (1, 10, 7) and chunk.isfinite().all()
    assert not chunk.equal(agent.act(seen(2), drawn(4)))  # of other noise the future is another
    moved = shutil.copytree(calvin, tmp_path / "elsewhere")
    hidden = files.rename(files.with_name("hidden"))  # nothing that was imported is read again
    try:
        assert load_agent(moved).act(seen(2), drawn()).equal(chunk)
    finally:
        hidden.rename(files)


@pytest.mark.golden
def test_joining_changes_no_number(calvin: Path, files: Path, tmp_path: Path) -> None:
    """What is left out has no part in what is done, and sentences are told in the lengths that they were learned."""
    agent = load_agent(calvin)
    assert ideomotor("import", "vpp", files / "calvin_policy.pt", "--out", tmp_path / "parts") == 0
    former = load_model(tmp_path / "parts/former", VideoFormer, VideoFormerConfig)
    policy = load_model(tmp_path / "parts/policy", EDMTransformer, EDMTransformerConfig)
    features, noise = torch.randn(1, 16, 5, 64), torch.randn(1, 10, 7)
    goal = agent.goal([SENTENCE])
    whole = policy.act(former(features), goal, noise=noise)
    assert agent.policy.act(agent.looking(None, features), goal, noise=noise).equal(whole)
    left_out = json.loads((calvin / "import.json").read_text())["left_out"]
    assert {name.split(".")[1] for name in left_out if name.startswith("policy.")} == {
        "proprio", "unused_goal", "unused_positions",
    }  # fmt: skip
    words = "<|startoftext|> o p e n</w> t h e</w> d r a w e r</w> <|endoftext|>"
    ids = [WORDS[word] for word in words.split()]
    for name, encoder in (("goal_text", agent.goal), ("video_text", agent.foreseeing.text)):
        tower = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path / "parts" / name).eval()
        assert encoder.tokenizer(SENTENCE)["input_ids"] == ids
        told = tower(torch.tensor([ids]))
        if name == "goal_text":
            torch.testing.assert_close(encoder([SENTENCE]), told.text_embeds)
        else:
            assert encoder([SENTENCE]).shape == (1, 20, 16)
            torch.testing.assert_close(encoder([SENTENCE])[0, : len(ids)], told.last_hidden_state[0])


@pytest.mark.golden
def test_a_joined_policy_is_served_and_imagined_with(
    calvin: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    about = open_backend(calvin).metadata["ideomotor"]
    assert about["actions"]["chunk"] == 10 and about["observation"]["state"] == 0
    assert len(about["observation"]["images"]) == 2 and "imagine" in about["extensions"]
    words = ("--input", files / "films/a.mp4", "--text", SENTENCE, "--out", tmp_path / "future.mp4")
    assert ideomotor("vpp", "predict", calvin, *words, "--steps", 2, "--samples", 1, "--frames", 3) == 0
    assert (tmp_path / "future.mp4").stat().st_size > 500
    capsys.readouterr()
    with pytest.raises(ValueError, match="copy the folder itself"):
        pack(calvin, tmp_path / "packed")


@pytest.mark.golden
@pytest.mark.sim
def test_a_joined_policy_is_tried_at_a_table(calvin: Path, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    words = ("--world", "play_table", "--sequences", 1, "--steps", 2, "--films", 0, "--workers", 0)
    assert ideomotor("vpp", "evaluate", calvin, *words, "--out", tmp_path / "trial") == 0
    (row,) = (tmp_path / "trial/sequences.jsonl").read_text().splitlines()
    assert json.loads(row)["steps"] == [2]


@pytest.mark.golden
def test_two_arms_need_their_scales(shared: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = checkpoint(shared, files, "bimanual_policy")
    out, scales = tmp_path / "out", tmp_path / "scales.json"
    rng = np.random.default_rng(0)
    tables = {f"{kind}_01": rng.uniform(-2, -1, 38) for kind in ("state", "action")}
    tables |= {f"{kind}_99": rng.uniform(1, 2, 38) for kind in ("state", "action")}
    for wrong, told in (
        ({"action_99": tables["action_01"] - 1}, "action_99 in .* is below action_01 at 0"),
        ({"state_01": tables["state_01"][:5]}, "state_01 in .* holds 5 numbers; wanted 38"),
        ({"state_01": ["a"]}, "no list of 38 numbers 'state_01'"),
    ):
        scales.write_text(json.dumps({name: list(values) for name, values in {**tables, **wrong}.items()}))
        assert imported(files, "bimanual_policy.pt", out, "--scales", scales) == 2
        assert re.search(told, said(capsys))
    assert imported(files, "bimanual_policy.pt", out) == 2
    assert "percentiles, which its checkpoint does not hold. Give --scales" in said(capsys)
    assert not out.exists()
    scales.write_text(json.dumps({name: list(values) for name, values in tables.items()}))
    assert imported(files, "bimanual_policy.pt", out, "--scales", scales) == 0
    agent = load_agent(out)
    assert (agent.config.views, agent.config.foresight.layers, agent.config.window.chunk) == (3, (1,), 8)
    assert agent.config.video.text.positions and agent.config.robot == "published_bimanual"
    assert agent.policy.proprio[0].weight.equal(state["model.inner_model.proprio_emb.0.weight"])
    here = torch.tensor(rng.uniform(-1, 1, (1, 38)), dtype=torch.float32)
    here[:, [3, 4, 5, 22, 23, 24]], here[:, [6, 25]] = 0.0, 1.0
    commands = agent.act(seen(3, here), drawn())
    agent.robot.actions.high.add_(1.0)
    wider = agent.act(seen(3, here), drawn())
    assert commands.shape == (1, 8, 38) and not commands.equal(wider)
    low, high = (torch.from_numpy(tables[f"action_{which}"]) for which in ("01", "99"))
    assert load_agent(out).robot.actions.low.equal(low) and load_agent(out).robot.actions.high.equal(high)


# --- a video model alone ----------------------------------------------------------------------------------------------


def test_a_video_model_alone_foretells(alone: Path, files: Path) -> None:
    models = load_models(alone)
    assert models.policy is None and models.predictor is not None and models.config.text == "own"
    model = VideoModel.load(alone)
    told, heard = model.heard([SENTENCE, None])
    assert told.shape == (2, 20, 16) and heard.tolist() == [True, False]
    tower = transformers.CLIPTextModelWithProjection.from_pretrained(files / "clip").eval()
    ids = model.text.ids(SENTENCE)
    torch.testing.assert_close(told[0, : len(ids)], tower(torch.tensor([ids])).last_hidden_state[0])
    futures = model.foretell(seen(1).frames["main"][:, 0], [SENTENCE], model.noise(0)[None], steps=1, guidance=1)
    assert futures.shape == (1, 15, 3, 64, 64)


def test_the_published_sizes_tell_what_is_read() -> None:
    assert layers_of(2560, SVDUNetConfig()) == (0, 1) and layers_of(1280, SVDUNetConfig()) == (1,)
    with pytest.raises(
        ValueError, match="width 640; up-blocks 0 and 1 of the video model give 2560, and block 1 alone"
    ):
        layers_of(640, SVDUNetConfig())


def test_time_ids_and_positions_are_as_asked_for(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert imported(files, "svd", tmp_path / "out", "--preset", "svd", "--positions") == 0
    sizes = "--size 64 --policy.goal-width 16"
    assert f"vpp policy --preset svd --video.text.positions {sizes} --video-from" in capsys.readouterr().out
    video = read_config(tmp_path / "out/vpp.json", VPP).video
    assert video.text.positions and video.feature_ids is None
    assert imported(files, "svd", tmp_path / "out") == 0  # over an earlier import
    video = read_config(tmp_path / "out/vpp.json", VPP).video
    assert not video.text.positions and video.feature_ids == TimeIds(fps=4.0)


def test_a_policy_is_trained_with_it(alone: Path, tmp_path: Path) -> None:
    recording(tmp_path / "shown/a.npz")
    there, small = read_config(alone / "vpp.json", VPP), tiny()
    former = replace(small.former, feature_width=64, frames=16)
    config = replace(
        there, views=1, size=64, former=former, policy=replace(small.policy, goal_width=16), execute=2, save_every=2,
        window=replace(there.window, chunk=4), policy_stage=small.policy_stage, text=str(alone / "video_text"),
    )  # fmt: skip
    data = DataOptions(data=(tmp_path / "shown",), cache=tmp_path / "cache", validation=0.0)
    with pytest.raises(ValueError, match="--text IMPORT/video_text"):
        run_policy(data, replace(config, text="own"), alone, tmp_path / "policy", 0, False)
    run_policy(data, config, alone, tmp_path / "policy", 0, False)
    assert load_agent(tmp_path / "policy").act(seen(1), drawn()).shape == (1, 4, 2)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_leaves_nothing(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    broken = shutil.copytree(files / "svd", tmp_path / "broken")
    weights = broken / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    bare = shutil.copytree(files / "svd", tmp_path / "bare")
    shutil.rmtree(bare / "vae")
    wordless = shutil.copytree(files / "clip", tmp_path / "wordless")
    (wordless / "merges.txt").unlink()
    fewer = clip_folder(tmp_path / "fewer", words={word: id for word, id in WORDS.items() if id not in (0, 1)})
    wide = clip_folder(tmp_path / "wide", width=24)
    torn = shutil.copytree(files / "clip", tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"torn")
    clip, size = ("--text", files / "clip"), ("--size", 64)
    cases = [
        ((files / "svd",), "give --text, the folder of CLIP"),
        ((files / "svd", *clip, "--size", 65), "size 65 a multiple of 8"),
        ((files / "svd", *clip, "--video", files / "svd"), "a video model to import alone"),
        ((files / "clip", *clip), "not Stable Video Diffusion's network"),
        ((files / "films", *clip), "holds no unet/config.json"),
        ((files / "svd/unet", *clip), "holds no vae/config.json"),
        ((bare, *clip), "holds no vae/config.json"),
        ((broken, *clip, *size), "damaged or not all there"),
        ((files / "svd", "--text", wordless), "holds no tokenizer of CLIP"),
        ((files / "svd", "--text", fewer), f"knows {len(WORDS) - 2} tokens, the text tower video_text {len(WORDS)}"),
        ((files / "svd", "--text", wide), "words of width 32; the text tower gives 24"),
        ((files / "svd", "--text", torn), "cannot be read"),
        ((files / "films/a.mp4",), "is no checkpoint of torch"),
        ((files / "sdv", *clip), "there is no"),
        ((files / "films/a.mp4", *clip), "give --video too"),
    ]
    for words, told in cases:
        assert ideomotor("import", "vpp", *words, "--out", tmp_path / "out") == 2
        assert told in said(capsys)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.golden
def test_a_video_model_of_another_release_is_refused(
    calvin: Path, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    unet = SVDUNetConfig(widths=(32, 32, 32, 64), heads=(1, 1, 1, 1), layers=1, text_width=32, time_width=8)
    svd_unet(unet).save_pretrained(tmp_path / "other/unet")
    shutil.copytree(files / "svd/vae", tmp_path / "other/vae")
    assert imported(files, "calvin_policy.pt", tmp_path / "out", "--scales", tmp_path / "s.json") == 2
    assert "--scales are of a two-arm policy" in said(capsys)
    words = ("--text", files / "clip", "--size", 64, "--video", tmp_path / "other", "--out", tmp_path / "out")
    assert ideomotor("import", "vpp", files / "calvin_policy.pt", *words) == 2
    assert "reads features of width 64; up-blocks 0 and 1 of the video model give 96" in said(capsys)
    assert imported(files, "calvin_policy.pt", tmp_path / "out", "--preset", "svd") == 2
    assert "leave it out" in said(capsys)
    assert not list(tmp_path.glob("*out*"))
    before = (calvin / "vpp.json").read_bytes()
    assert ideomotor("import", "vpp", files / "films/a.mp4", "--out", calvin) == 2
    assert "no checkpoint" in said(capsys) and (calvin / "vpp.json").read_bytes() == before
