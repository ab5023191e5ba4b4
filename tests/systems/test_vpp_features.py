"""Which cached features are taken for a policy's: those of another foresight, size, precision or model never are."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="the svd extra is not installed")

from ideomotor.predictors.latent_diffusion import LatentDiffusion
from ideomotor.systems.vpp import VPP, Foreseeing
from ideomotor.systems.vpp_features import _model_key
from ideomotor.systems.vpp_presets import tiny
from ideomotor.tokenizers.svd_vae import SVDVAE, SVDVAEConfig
from ideomotor.training.config import config_from_json, config_to_json

Networks = tuple[SVDVAE, LatentDiffusion]


@pytest.fixture(scope="module")
def networks() -> Networks:
    config = tiny()
    assert isinstance(config.vae, SVDVAEConfig)
    return SVDVAE(replace(config.vae, scale=1.0)), LatentDiffusion(config.video)


def key(config: VPP, networks: Networks, latents: bool = False) -> str:
    def text(sentences: object) -> Any:
        raise AssertionError("a key asks for no sentence")

    return _model_key(Foreseeing(config, *networks, text), latents)


def foresight(**changed: Any) -> Callable[[VPP], VPP]:
    return lambda config: replace(config, foresight=replace(config.foresight, **changed))


def optim(**changed: Any) -> Callable[[VPP], VPP]:
    def change(config: VPP) -> VPP:
        stage = config.policy_stage
        return replace(config, policy_stage=replace(stage, optim=replace(stage.optim, **changed)))

    return change


CHANGES: dict[str, Callable[[VPP], VPP]] = {
    "sigma": foresight(sigma=28.0),
    "blocks": foresight(layers=(1, 0)),
    "a layer": foresight(layers=((0, 1), 1)),
    "another layer": foresight(layers=((0, 0), 1)),
    "seed": foresight(seed=1),
    "no seed": foresight(seed=None),
    "steps": foresight(steps=2),
    "size": lambda config: replace(config, size=64),
    "text": lambda config: replace(config, text="sentence"),
    "bf16": optim(bf16=True),
    "fp16": optim(fp16=True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_features_of_other_settings_have_another_key(change: Callable[[VPP], VPP], networks: Networks) -> None:
    plain, changed = tiny(), change(tiny())
    assert changed != plain and key(changed, networks) != key(plain, networks)
    again = config_from_json(VPP, config_to_json(changed))  # as a later run reads it
    assert again == changed and key(again, networks) == key(changed, networks)


def test_no_two_of_them_share_one_and_what_they_do_not_see_changes_none(networks: Networks) -> None:
    plain = tiny()
    keys = [key(plain, networks), key(plain, networks, latents=True)]
    keys += [key(change(plain), networks) for change in CHANGES.values()]
    for place in (0, 1):  # other weights of either network
        others = list(networks)
        others[place] = type(networks[place])(networks[place].config)  # type: ignore[arg-type]
        assert not torch.equal(next(others[place].parameters()), next(networks[place].parameters()))
        keys.append(key(plain, tuple(others)))  # type: ignore[arg-type]
    assert len(set(keys)) == len(keys)
    for same in (replace(plain, execute=1), replace(plain, cache_features=True), optim(lr=1.0)(plain)):
        assert same != plain and key(same, networks) == keys[0]
