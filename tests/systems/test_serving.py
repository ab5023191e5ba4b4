"""Every folder that can be served, from its files to actions or frames: the answers, batches, prefixes, video."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ideomotor import cli
from ideomotor.layers.sampling import Sampling
from ideomotor.policies.actor_critic import ActorCritic, ActorCriticConfig
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy
from ideomotor.policies.edm_transformer import EDMTransformer
from ideomotor.policies.gpt_diffusion import GPTDiffusionPolicy
from ideomotor.policies.own_robots import own_robot
from ideomotor.policies.published_actions import ActionBins
from ideomotor.policies.robot_actions import RobotActions
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor
from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.predictors.perceiver_diffusion import PerceiverDiffusionPredictor
from ideomotor.serving.backend import Backend
from ideomotor.serving.limits import Refused
from ideomotor.systems import ivideogpt, vpdd_published_config, vpp_presets
from ideomotor.systems.acting import SamplingChange
from ideomotor.systems.serving import Serving, open_backend
from ideomotor.systems.stages import FAST_FILE, IMPORT_FILE, PUBLISHED_FILE, VPP_FILE, WORLD_FILE
from ideomotor.systems.vpdd import tiny, view_names
from ideomotor.systems.vpp import VPP, Looking
from ideomotor.systems.vpp_agent import in_bf16
from ideomotor.systems.vpp_stages import load_agent
from ideomotor.systems.world import World
from ideomotor.tokenizers.axial_vqvae import AxialVQVAE
from ideomotor.tokenizers.context_vqgan import ContextVQGAN
from ideomotor.tokenizers.patch_pca import PatchPCA, PatchPCAConfig
from ideomotor.tokenizers.svd_vae import SVDVAE
from ideomotor.tokenizers.vqvae3d import VQVAE3D
from ideomotor.training.checkpoint import save_model, write_json
from ideomotor.training.config import config_to_json
from ideomotor.types import Clip

SENTENCES = ("push the disc", "pull the disc", "leave it")


def lively(module: nn.Module, seed: int = 0, std: float = 0.1) -> Any:
    """Weights with which everything that is looked at shows; at their start many heads are zeros."""
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        if weight.ndim > 1:
            nn.init.normal_(weight, std=std, generator=generator)
    return module


def actions(width: int) -> torch.Tensor:
    return torch.randn(400, width, generator=torch.Generator().manual_seed(1))


def vpdd(folder: Path, views: int = 1) -> None:
    config = tiny()
    places = {"grid": (4 * views, 4), "views": views}
    config = replace(
        config, views=views, predictor=replace(config.predictor, **places),
        policy=replace(config.policy, action_width=2, state_width=3, views=views, features=(4 * views, 32)),
    )  # fmt: skip
    policy = lively(DiscreteDiffusionPolicy(config.policy), std=0.3)
    policy.bins.fit(actions(2))
    write_json(folder / FAST_FILE, config_to_json(config))
    save_model(folder / "tokenizer", lively(VQVAE3D(config.tokenizer)), config.tokenizer)
    save_model(folder / "predictor", lively(DiscreteDiffusionPredictor(config.predictor)), config.predictor)
    save_model(folder / "policy", policy, config.policy)


def published(folder: Path) -> None:
    config = vpdd_published_config.PRESETS["published-tiny"]()
    assert not hasattr(config.policy, "views")
    config = replace(config, policy=replace(config.policy, action_width=2))
    write_json(folder / PUBLISHED_FILE, config_to_json(config))
    save_model(folder / "tokenizer", lively(AxialVQVAE(config.tokenizer)), config.tokenizer)
    save_model(folder / "predictor", lively(PerceiverDiffusionPredictor(config.predictor)), config.predictor)
    save_model(folder / "policy", lively(GPTDiffusionPolicy(config.policy)), config.policy)
    save_model(folder / "bins", ActionBins(config.action_bins).fit(actions(2)), config.action_bins)


def vpp(folder: Path, config: VPP) -> None:
    write_json(folder / VPP_FILE, config_to_json(config))
    save_model(folder / "looking", lively(Looking(config)), config)
    save_model(folder / "policy", lively(EDMTransformer(config.head), std=0.3), config.head)
    if config.robot:
        robot = own_robot(config.robot)
        states = actions(robot.command_width)
        states[:, 3:7] = torch.nn.functional.normalize(states[:, 3:7], dim=-1)
        fitted = RobotActions(robot).fit([("one", states, states)], config.window.chunk)
        save_model(folder / "robot", fitted, robot)
    if config.eyes != "pixels":
        vae = lively(SVDVAE(replace(config.vae, scale=1.0)))
        save_model(folder / "vae", vae, vae.config)
    if config.eyes == "foresight":
        save_model(folder / "predictor", lively(LatentDiffusion(config.video)), config.video)


def drawn_anew() -> VPP:
    config = vpp_presets.tiny()
    return replace(config, foresight=replace(config.foresight, seed=None))


def dream(folder: Path) -> None:
    config = ActorCriticConfig(stack=2, size=32, actions=2, filters=4, features=8, hidden=16)
    save_model(folder / "agent", lively(ActorCritic(config)), config)
    world(folder)


def world(folder: Path) -> None:
    config = ivideogpt.tiny()
    write_json(folder / WORLD_FILE, config_to_json(config))
    save_model(folder / "tokenizer", lively(ContextVQGAN(config.tokenizer)), config.tokenizer)
    save_model(folder / "world", lively(AutoregressivePredictor(config.world)), config.world)


POLICIES: dict[str, Callable[[Path], None]] = {
    "vpdd": vpdd,
    "two views": lambda folder: vpdd(folder, views=2),
    "published": published,
    "vpp": lambda folder: vpp(folder, vpp_presets.tiny()),
    "vpp, noise drawn anew": lambda folder: vpp(folder, drawn_anew()),
    "vpp, pixels": lambda folder: vpp(folder, vpp_presets.looking_with(vpp_presets.tiny(), "pixels")),
    "vpp, own robot": lambda folder: vpp(folder, replace(vpp_presets.tiny(), robot="xarm_xhand")),
    "dream": dream,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name.replace(", ", "-").replace(" ", "-"))
            {**POLICIES, "world": world}[name](made[name])
        return made[name]

    return folder


def observed(backend: Backend, seed: int, **asked: Any) -> dict[str, Any]:
    """A client's message, made after what the server says it wants."""
    wanted, rng = backend.metadata["ideomotor"]["observation"], np.random.default_rng(seed)
    images = {
        name: rng.integers(0, 256, (frame["height"], frame["width"], 3), np.uint8)
        for name, frame in wanted["images"].items()
    }
    state = rng.normal(size=wanted["state"]).astype(np.float32)
    if wanted["state"] == 19:
        state[3:7] /= np.linalg.norm(state[3:7])
    return {"images": images, "state": state, "prompt": SENTENCES[seed % 3], "ideomotor": asked}


def answer(backend: Backend, *messages: dict[str, Any]) -> np.ndarray:
    """The actions that a session of its own gets for the last of its messages, alone in its batch."""
    session = backend.session()
    for message in messages:
        prepared = backend.prepare(session, message)
    return backend.infer([prepared])[0]["actions"]


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_served_and_none_gets_another_ones_answer(name: str, folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders(name))
    about = backend.metadata["ideomotor"]
    assert about["kind"] == "policy" and about["version"] == 1
    shape = (about["actions"]["chunk"], about["actions"]["width"])
    messages = [observed(backend, seed) for seed in range(3)]
    alone = [answer(backend, message) for message in messages]
    assert all(one.shape == shape and one.dtype == np.float32 and np.isfinite(one).all() for one in alone)
    assert len({one.tobytes() for one in alone}) > 1  # it looks; drawn tokens of a policy that knows little may agree
    assert np.array_equal(answer(backend, messages[0]), alone[0])  # and draws the same again
    batch = [backend.prepare(backend.session(), message) for message in messages]
    if backend.max_batch >= 3:
        for together, single in zip(backend.infer(batch), alone, strict=True):
            np.testing.assert_allclose(together["actions"], single, atol=2e-3, rtol=1e-3)
        for together, single in zip(backend.infer(batch[::-1]), alone[::-1], strict=True):
            np.testing.assert_allclose(together["actions"], single, atol=2e-3, rtol=1e-3)
    # A second look at the same session sees what was seen before; drawn tokens may still agree after one or two.
    if about["observation"]["context"] > 1:
        seen = (answer(backend, observed(backend, seed), messages[0]) for seed in range(1, 7))
        assert any(not np.array_equal(actions, alone[0]) for actions in seen)


PREFIXED = [name for name in POLICIES if name not in ("published", "dream")]


@pytest.mark.parametrize("name", PREFIXED)
def test_actions_under_way_come_back_and_the_rest_follows_them(name: str, folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders(name))
    assert "prefix" in backend.metadata["ideomotor"]["extensions"]
    free = answer(backend, observed(backend, 0))
    begun = free[1:3] + np.float32(0.125)
    if free.shape[1] == 19:
        begun[:, 3:7] = free[1:3, 3:7]
    messages = [observed(backend, 0, prefix=begun), observed(backend, 0), observed(backend, 0, prefix=begun[:1])]
    batch = [backend.prepare(backend.session(), message) for message in messages]
    chunks = [reply["actions"] for reply in backend.infer(batch)]
    assert np.array_equal(chunks[0][:2], begun) and np.array_equal(chunks[2][:1], begun[:1])
    np.testing.assert_allclose(chunks[1], free, atol=2e-3, rtol=1e-3)
    assert not np.allclose(chunks[0][2:], free[2:], atol=1e-4)
    np.testing.assert_allclose(answer(backend, messages[0]), chunks[0], atol=2e-3, rtol=1e-3)


def test_a_policy_without_prefixes_says_so(folders: Callable[[str], Path]) -> None:
    for name in ("published", "dream"):
        backend = open_backend(folders(name))
        assert "prefix" not in backend.metadata["ideomotor"]["extensions"]
        with pytest.raises(ValueError, match="cannot begin a chunk with given actions"):
            answer(backend, observed(backend, 0, prefix=np.zeros((1, 2))))


@pytest.mark.parametrize("name", ["vpdd", "two views", "vpp"])
def test_the_future_is_shown_on_request(name: str, folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders(name))
    about = backend.metadata["ideomotor"]
    assert "imagine" in about["extensions"]
    films = []
    for seed in (0, 1, 0):
        prepared = backend.prepare(backend.session(), observed(backend, seed, imagine=True))
        (film,) = backend.imagine(prepared)
        assert set(film) == set(about["observation"]["images"])
        assert all(video.dtype == np.uint8 and video.shape[1:] == (32, 32, 3) and len(video) >= 3
                   for video in film.values())  # fmt: skip
        films.append(film["main"])
    assert np.array_equal(films[0], films[2]) and not np.array_equal(films[0], films[1])


def test_what_vpdd_shows_is_what_it_acts_on_in_full(folders: Callable[[str], Path]) -> None:
    from ideomotor.serving.policy_backend import clip_of
    from ideomotor.systems.vpdd_stages import load_agent

    backend = open_backend(folders("two views"), Serving(dial="full"))
    prepared = backend.prepare(backend.session(), observed(backend, 0))
    agent = load_agent(folders("two views"))
    agent.dial = "full"
    wanted = agent.act(clip_of([prepared.observation]))
    assert np.array_equal(backend.infer([prepared])[0]["actions"], wanted[0].numpy())
    (film,) = backend.imagine(prepared)
    assert agent.imagined is not None
    for name, video in zip(view_names(2), agent.imagined[0].chunk(2, -2), strict=True):
        assert np.array_equal(film[name], video.permute(0, 2, 3, 1).numpy())
    without = open_backend(folders("two views"), Serving(dial="none"))
    assert not np.array_equal(answer(without, observed(without, 0)), wanted[0].numpy())


def test_a_policy_that_foresees_nothing_shows_nothing(folders: Callable[[str], Path]) -> None:
    for name in ("vpp, pixels", "published", "dream"):
        assert "imagine" not in open_backend(folders(name)).metadata["ideomotor"]["extensions"]


def test_an_own_robot_tells_which_numbers_are_rotations(folders: Callable[[str], Path]) -> None:
    parts = own_robot("xarm_xhand").parts
    starts = [sum(part.width for part in parts[:at]) for at, part in enumerate(parts) if part.kind == "quaternion"]
    about = open_backend(folders("vpp, own robot")).metadata["ideomotor"]["actions"]
    assert starts and about["quaternions"] == starts and "angles" not in about
    assert "quaternions" not in open_backend(folders("vpp")).metadata["ideomotor"]["actions"]


def test_who_drives_a_dream_is_told_how_long_its_steps_are(tmp_path: Path) -> None:
    dream(tmp_path)
    said = {part: open_backend(tmp_path, Serving(part=part)).metadata["ideomotor"] for part in ("policy", "world")}
    assert (
        "notes" not in said["world"] and said["policy"]["notes"] == "pictures of Meta-World are mirrored left to right"
    )
    write_json(tmp_path / "run.json", {"config": {"dream": {"repeat": 8}}})
    for part in ("policy", "world"):
        assert "8 steps of the simulator" in open_backend(tmp_path, Serving(part=part)).metadata["ideomotor"]["notes"]


def test_a_world_of_pooled_frames_tells_what_its_actions_are(tmp_path: Path) -> None:
    world(tmp_path)
    config = replace(ivideogpt.tiny(), window=replace(ivideogpt.tiny().window, stride=4, pooled=True))
    write_json(tmp_path / WORLD_FILE, config_to_json(config))
    about = open_backend(tmp_path).metadata["ideomotor"]
    assert about["notes"].startswith("an action is the mean of the 4") and about["observation"]["stride"] == 4


def test_an_own_robot_refuses_what_is_no_pose(folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders("vpp, own robot"))
    message = observed(backend, 0)
    with pytest.raises(ValueError, match="wanted unit quaternions"):
        backend.prepare(backend.session(), message | {"state": 2 * message["state"]})
    with pytest.raises(ValueError, match="wanted unit quaternions"):
        backend.prepare(backend.session(), observed(backend, 0, prefix=np.zeros((1, 19))))


# --- worlds -----------------------------------------------------------------------------------------------------------


def moved(backend: Backend, session: Any, op: str, **content: Any) -> dict[str, Any]:
    return dict(backend.infer([backend.prepare(session, content | {"ideomotor": {"op": op}})])[0])


@pytest.mark.parametrize("name", ["world", "dream"])
def test_a_world_is_stepped_by_each_session_for_itself(name: str, folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders(name), Serving(part="world"))
    about = backend.metadata["ideomotor"]
    assert about["kind"] == "world" and about["observation"]["context"] == 2
    width, rng = about["actions"]["width"], np.random.default_rng(0)
    starts = rng.integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    told = rng.uniform(-1, 1, (5, width)).astype(np.float32)

    def film(session: Any, start: np.ndarray) -> list[np.ndarray]:
        assert moved(backend, session, "reset", images={"main": start}) == {}
        return [moved(backend, session, "step", actions=one)["frames"]["main"] for one in told]

    alone = [film(backend.session(), start) for start in starts]
    assert alone[0][0].shape == (32, 32, 3) and alone[0][0].dtype == np.uint8
    assert not np.array_equal(alone[0], alone[1])
    sessions = [backend.session(), backend.session()]
    for session, start in zip(sessions, starts, strict=True):
        moved(backend, session, "reset", images={"main": start})
    for step, one in enumerate(told):  # in turn
        for session, wanted in zip(sessions, alone, strict=True):
            reply = moved(backend, session, "step", actions=one)
            assert np.array_equal(reply["frames"]["main"], wanted[step])
            assert (reply["reward"] is not None) == about["observation"]["reward"]


def test_a_served_world_is_the_world_itself(folders: Callable[[str], Path]) -> None:
    greedy = World.load(folders("world"), sampling=Sampling(temperature=0))
    backend = open_backend(folders("world"))
    backend.served.world.sampling = Sampling(temperature=0)  # type: ignore[attr-defined]
    start = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    action, session = np.zeros(backend.metadata["ideomotor"]["actions"]["width"], np.float32), backend.session()
    state = greedy.reset(torch.from_numpy(start).permute(0, 3, 1, 2)[None].contiguous())
    moved(backend, session, "reset", images={"main": start})
    for _ in range(3):
        imagined = greedy.step(state, torch.from_numpy(action)[None])
        state = imagined.state
        frame = moved(backend, session, "step", actions=action)["frames"]["main"]
        assert np.array_equal(frame, imagined.frames[0].permute(1, 2, 0).numpy())


def test_a_step_after_a_reset_that_was_not_computed_is_told(folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders("world"))
    session, frames = backend.session(), np.zeros((2, 32, 32, 3), np.uint8)
    backend.prepare(session, {"ideomotor": {"op": "reset"}, "images": {"main": frames}})  # its deadline passed
    action = np.zeros(backend.metadata["ideomotor"]["actions"]["width"], np.float32)
    with pytest.raises(Refused, match=r"no imagination to go on from.* reset it"):
        moved(backend, session, "step", actions=action)


def test_what_a_world_does_not_understand_is_told(folders: Callable[[str], Path]) -> None:
    backend = open_backend(folders("world"))
    session, frames = backend.session(), np.zeros((2, 32, 32, 3), np.uint8)
    for content, says in (
        ({"ideomotor": {"op": "step"}, "actions": [0, 0]}, 'a step came before a reset; send "op": "reset"'),
        ({"ideomotor": {}, "images": {"main": frames}}, "op is 'infer'; this is a world"),
        ({"ideomotor": {"op": "reset"}}, r'no images came; .*"main": uint8 \(2, 32, 32, 3\)'),
        ({"ideomotor": {"op": "reset"}, "images": {"top": frames}}, "top images came"),
        ({"ideomotor": {"op": "reset"}, "images": {"main": frames[:1]}}, "1 frames came"),
        ({"ideomotor": {"op": "reset"}, "images": {"main": frames[:, :8]}}, r"uint8 \(2, 8, 32, 3\) came"),
    ):
        with pytest.raises(ValueError, match=says):
            backend.prepare(session, content)
    backend.infer([backend.prepare(session, {"ideomotor": {"op": "reset"}, "images": {"main": frames}})])
    width = backend.metadata["ideomotor"]["actions"]["width"]
    for sent, says in (
        (None, "no action came"), (np.zeros(width + 1), "an action of shape"), (np.full(width, np.nan), "is nan")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            backend.prepare(session, {"ideomotor": {"op": "step"}, "actions": sent})
    policy = open_backend(folders("vpdd"))
    assert policy.prepare(policy.session(), {"ideomotor": {"op": "reset"}}) is None
    with pytest.raises(ValueError, match="op is 'step'; this is a policy"):
        policy.prepare(policy.session(), observed(policy, 0, op="step"))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_folders_that_have_nothing_to_serve_say_what_to_give(tmp_path: Path, folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        open_backend(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no policy or world to serve: give the --out folder of"):
        open_backend(tmp_path)
    with pytest.raises(ValueError, match="holds no world to serve"):
        open_backend(folders("vpdd"), Serving(part="world"))
    for name in ("half", "import"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "half" / FAST_FILE, config_to_json(tiny()))
    with pytest.raises(ValueError, match="has not finished"):
        open_backend(tmp_path / "half")
    config = tiny()
    save_model(tmp_path / "half" / "tokenizer", VQVAE3D(config.tokenizer), config.tokenizer)
    with pytest.raises(ValueError, match="holds no policy: give the --out folder of `ideomotor vpdd finetune`"):
        open_backend(tmp_path / "half")
    write_json(tmp_path / "import" / IMPORT_FILE, {})
    (tmp_path / "import" / "former").mkdir()
    with pytest.raises(ValueError, match="the action head of a published VPP"):
        open_backend(tmp_path / "import")


def test_vpp_foresees_in_bf16_and_acts_nearly_alike(folders: Callable[[str], Path]) -> None:
    plain, light = open_backend(folders("vpp")), open_backend(folders("vpp"), Serving(weights="bf16"))
    for seed in range(3):
        wanted, found = (answer(backend, observed(backend, seed)) for backend in (plain, light))
        assert found.shape == wanted.shape and found.dtype == wanted.dtype and not np.array_equal(found, wanted)
        np.testing.assert_allclose(found, wanted, atol=0.02 * wanted.std())
    films = []
    for backend in (plain, light):
        (film,) = backend.imagine(backend.prepare(backend.session(), observed(backend, 0, imagine=True)))
        films.append(film["main"].astype(float))
    assert films[0].shape == films[1].shape and np.abs(films[0] - films[1]).mean() < 3  # of 255
    for name in ("vpp, pixels", "vpp, noise drawn anew"):
        agent = load_agent(folders(name))
        if agent.foreseeing is None:
            with pytest.raises(ValueError, match="this policy looks with pixels: leave out --weights"):
                in_bf16(agent)
            continue
        agent.foreseeing.vae = patches = PatchPCA(PatchPCAConfig(patch=2, channels=4))  # type: ignore[attr-defined]
        patches.fit([torch.randint(0, 256, (1, 4, 3, 32, 32), dtype=torch.uint8)])
        vae, video = in_bf16(agent).foreseeing.parts  # type: ignore[union-attr]
        assert vae is patches and patches.into.dtype == torch.float32  # rounded, it would blur
        assert {weight.dtype for weight in video.parameters()} == {torch.bfloat16}
        assert {weight.dtype for weight in agent.policy.parameters()} == {torch.float32}
        context = Clip(frames={"main": torch.zeros(1, 1, 3, 32, 32, dtype=torch.uint8)}, text=("push",))
        assert agent.act(context, [torch.Generator()]).dtype == torch.float32


def test_vpp_denoises_as_it_is_told(folders: Callable[[str], Path]) -> None:
    ways = (Serving(), Serving(temperature=0.0), Serving(sampling=SamplingChange(sigma_min=1.0)))
    chunks = [answer(backend, observed(backend, 0)) for backend in (open_backend(folders("vpp"), how) for how in ways)]
    assert len({chunk.tobytes() for chunk in chunks}) == 3
    with pytest.raises(ValueError, match=r"--temperature is 2\.0"):
        open_backend(folders("vpp"), Serving(temperature=2.0))
    with pytest.raises(ValueError, match="sampling, temperature means nothing to the policy in"):
        open_backend(folders("vpdd"), Serving(temperature=0.0, sampling=SamplingChange(steps=3)))


def test_options_that_mean_nothing_are_refused(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="dial means nothing to the policy in"):
        open_backend(folders("vpp"), Serving(dial="full"))
    with pytest.raises(ValueError, match="execute, rate_hz means nothing to the world in"):
        open_backend(folders("world"), Serving(execute=2, rate_hz=10))
    for name in ("published", "world"):
        with pytest.raises(ValueError, match="max_batch means nothing to the"):
            open_backend(folders(name), Serving(max_batch=4))
    with pytest.raises(ValueError, match="weights means nothing to the policy in"):
        open_backend(folders("dream"), Serving(weights="bf16"))
    with pytest.raises(ValueError, match="weights int8 are of worlds"):
        open_backend(folders("vpp"), Serving(weights="int8"))
    with pytest.raises(ValueError, match="execute is 9; the policy gives chunks of 8 actions"):
        open_backend(folders("vpdd"), Serving(execute=9))
    with pytest.raises(ValueError, match="device is 'cuda:99', and this machine has cpu"):
        open_backend(folders("vpdd"), Serving(device="cuda:99"))
    with pytest.raises(ValueError, match="max_batch is 0"):
        Serving(max_batch=0)
    backend = open_backend(folders("vpdd"), Serving(execute=2, rate_hz=20.0, max_batch=3))
    assert backend.max_batch == 3
    about = backend.metadata["ideomotor"]["actions"]
    assert about == {"chunk": 8, "execute": 2, "width": 2, "rate_hz": 20.0}


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_serves_until_it_is_told_to_stop(folders: Callable[[str], Path]) -> None:
    pytest.importorskip("websockets", reason="the serve extra is not installed")
    pytest.importorskip("prometheus_client", reason="the serve extra is not installed")
    from ideomotor.serving.client import Client, NoServer

    words = [sys.executable, "-m", "ideomotor", "serve", folders("vpdd"), "--port", "0", "--execute", "2"]
    env = os.environ | {"IDEOMOTOR_API_KEY": "secret"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        said = []
        while not said or "ws://" not in said[-1]:
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
        url = re.search(r"ws://[^\"]+", said[-1])
        assert url is not None and "policy of vpdd" in said[0] and "of which 2 are carried out" in "".join(said)
        with pytest.raises(NoServer):
            Client(url[0], api_key="guessed", wait=0.1)
        backend = open_backend(folders("vpdd"))
        message = observed(backend, 0)
        del message["ideomotor"]
        client = Client(url[0], api_key="secret")
        reply = client.infer(message)
        np.testing.assert_allclose(reply.actions, answer(backend, observed(backend, 0)), atol=2e-3, rtol=1e-3)
        assert reply.raw["ideomotor"]["steps"] == [0, 0, 0, 0]
        assert client.infer(message).raw["ideomotor"]["steps"] == [0, 0, 0, 2]
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0 and "stopped" in rest and "secret" not in "".join(said) + rest


def test_the_command_refuses_what_it_cannot_mean(
    folders: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("\n")
    monkeypatch.setenv("IDEOMOTOR_API_KEY", "secret")
    for words, says in (
        (("--api-key-file", key), "both IDEOMOTOR_API_KEY and --api-key-file give a key"),
        (("--threads", 0), "threads is 0; wanted at least 1"),
        (("--part", "world"), "holds no world to serve"),
        (("--limits.connections", 0), "the limit connections is 0"),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(["serve", str(folders("vpdd")), "--port", "0", *map(str, words)])
        told = capsys.readouterr().err
        assert end.value.code == 2 and says in told and "secret" not in told
    monkeypatch.delenv("IDEOMOTOR_API_KEY")
    with pytest.raises(SystemExit):
        cli.main(["serve", str(folders("vpdd")), "--api-key-file", str(key)])
    assert "holds no key" in capsys.readouterr().err
    key.write_bytes(b"\xff\x85")
    with pytest.raises(SystemExit):
        cli.main(["serve", str(folders("vpdd")), "--api-key-file", str(key)])
    assert f"{key} holds no text" in capsys.readouterr().err
