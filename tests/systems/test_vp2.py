"""A world in the shape that VP2 asks for: which frames come back, for which actions, and what is refused."""

import numpy as np
import pytest
import torch

from ideomotor.layers.sampling import Sampling
from ideomotor.predictors.autoregressive import AutoregressivePredictor
from ideomotor.systems.ivideogpt import tiny
from ideomotor.systems.vp2 import VP2Predictor
from ideomotor.systems.world import World
from ideomotor.tokenizers.context_vqgan import ContextVQGAN


@pytest.fixture(scope="module")
def predictor() -> VP2Predictor:
    torch.manual_seed(0)
    config = tiny()
    network = AutoregressivePredictor(config.world)
    torch.nn.init.normal_(network.action.weight, std=1.0)
    world = World(ContextVQGAN(config.tokenizer).eval(), network, sampling=Sampling(temperature=0))
    return VP2Predictor(world, at_once=2)


def batch(count: int = 3, actions: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (count, 2, 32, 32, 3)).astype(np.float32) / 255
    return {"video": video, "actions": rng.normal(size=(count, actions, 2)).astype(np.float64)}


def test_it_answers_as_vp2_reads_it(predictor: VP2Predictor) -> None:
    given = batch()
    made = predictor(given)["rgb"]
    assert (predictor.num_context, predictor.base_prediction_modality) == (2, "rgb")
    assert made.shape == (3, 5, 32, 32, 3) and made.dtype == np.float32 and made.min() >= 0 and made.max() <= 1
    assert np.allclose(made[:, 0], given["video"][:, 1], atol=1e-6), "the second frame seen comes first"
    frames = torch.from_numpy(np.rint(given["video"] * 255).astype(np.uint8)).permute(0, 1, 4, 2, 3)
    actions = torch.from_numpy(given["actions"][:, 1:].astype(np.float32))  # the first led to a frame that was seen
    wanted = predictor.world.imagine(frames, 4, actions).frames.permute(0, 1, 3, 4, 2).numpy() / 255
    assert np.allclose(made[:, 1:], wanted, atol=1e-6), "also in parts of two"
    predictor.close()


def test_actions_are_heard_from_the_last_seen_frame_on(predictor: VP2Predictor) -> None:
    given = batch()
    plain = predictor(given)["rgb"]
    for row in range(5):
        actions = given["actions"].copy()
        actions[:, row] += 5
        changed = np.abs(predictor(given | {"actions": actions})["rgb"] - plain).max((0, 2, 3, 4)) > 0
        # Action `row` leads to frame `row + 1`, which is entry `row`; the first frames were seen, whatever was done.
        assert not changed[:row].any() and changed.any() == (row > 0), row


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"video": np.full((3, 2, 32, 32, 3), 255.0)}, "divide 8-bit frames by 255"),
        ({"video": np.zeros((3, 1, 32, 32, 3))}, "2 or more, height"),
        ({"video": np.zeros((0, 2, 32, 32, 3)), "actions": np.zeros((0, 5, 2))}, r"shape \(0, 2"),
        ({"actions": np.full((3, 5, 2), np.nan)}, "not finite"),
        ({"actions": np.zeros((3, 5, 4))}, r"wanted \(3, 2 or more, 2\)"),
        ({"actions": np.zeros((3, 1, 2))}, r"wanted \(3, 2 or more, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(predictor: VP2Predictor, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        predictor(batch() | change)
