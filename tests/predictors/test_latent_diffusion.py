"""The latent video predictor: what is read of it, what it learns, and how its weights come and go."""

import json
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers", reason="the svd extra is not installed")

from ideomotor.layers.lora import add_lora, merge_lora
from ideomotor.layers.text import HashedWords
from ideomotor.layers.text_tokens import OneToken, TextTokensConfig
from ideomotor.predictors.latent_diffusion import LatentDiffusion, Noising, VideoDenoising
from ideomotor.predictors.latent_diffusion_config import LatentDiffusionConfig, TimeIds, published, small, svd
from ideomotor.predictors.svd_unet import SVDUNetConfig, config_of
from ideomotor.training.config import config_from_json, config_to_json
from ideomotor.training.learner import Learner
from ideomotor.training.optim import OptimConfig
from ideomotor.types import Borrowed, Clip

UNET = SVDUNetConfig(widths=(32, 32, 64, 64), heads=(1, 1, 2, 2), layers=1, text_width=16, time_width=8)
CONFIG = LatentDiffusionConfig(
    unet=UNET, text=TextTokensConfig(width=12, out=16, join="projected"), frames=3, latent_scale=0.5
)
WORDS = OneToken(HashedWords(12))


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return LatentDiffusion(CONFIG).eval()


def clip(generator, cameras=("front",), frames=3):
    films = {camera: 2 * torch.randn(2, frames, 4, 12, 12, generator=generator) for camera in cameras}
    return Clip(text=("open the drawer", "push"), latents=films)


def inputs(generator, views=1):
    return torch.randn(2, views, 4, 12, 12, generator=generator), WORDS(["open the drawer", "push"])


# --- features ---------------------------------------------------------------------------------------------------------

TAPS = (0, 1, 2, 3, (0, 1), (1, 0), (3, 1))


def test_features_are_what_hooks_see_on_the_whole_way(predictor, generator):
    """Latents of 12 x 12 halve to 6, 3 and 2, so the way up does not simply double."""
    first, text = inputs(generator)
    noise = torch.randn(2, 1, 3, 4, 12, 12, generator=generator)
    seen = {}

    def watch(tap):
        return lambda module, given, got: seen.update({tap: got[0] if isinstance(got, tuple) else got})

    hooks = []
    for number, block in enumerate(predictor.unet.up_blocks):
        hooks.append(block.register_forward_hook(watch(number)))
        for layer, part in enumerate(block.attentions if number else block.resnets):
            hooks.append(part.register_forward_hook(watch((number, layer))))
    with torch.no_grad():
        sigma = torch.full((2,), 20.0)
        level = (noise * (20.0**2 + 1) ** 0.5).flatten(0, 1)
        told = predictor.text(text)
        predictor.denoise(level, sigma, first[:, 0], told, predictor.time_ids(CONFIG.ids, 2))
        for hook in hooks:
            hook.remove()
        for tap in TAPS:
            read = predictor.features(first, text, 20.0, (tap,), noise=noise)
            channels, rows, columns = UNET.shape(tap, 12, 12)
            assert seen[tap].shape == (6, channels, rows, columns)
            assert predictor.feature_shape(12, 12, (tap,)) == (rows * columns, channels) == read.shape[2:]
            torch.testing.assert_close(read, seen[tap].flatten(2).mT.unflatten(0, (2, 3)), atol=1e-5, rtol=1e-5)
        both = predictor.features(first, text, 20.0, ((0, 1), 1), noise=noise)
    coarse, fine = both.split([64, 64], -1)
    alone = predictor.features(first, text, 20.0, ((0, 1),), noise=noise)  # 2 x 2, where 1 gives 6 x 6
    assert fine.shape[2] == 36 and torch.allclose(coarse.unflatten(2, (6, 6))[:, :, ::3, ::3].flatten(2, 3), alone)


def test_nothing_behind_the_last_layer_is_computed(predictor, generator):
    first, text = inputs(generator)
    ran = []
    for number, block in enumerate(predictor.unet.up_blocks):
        for layer, part in enumerate(block.resnets):
            part.register_forward_hook(lambda *_, place=(number, layer): ran.append(place))
    predictor.unet.conv_out.register_forward_hook(lambda *_: ran.append("out"))
    predictor.features(first, text, layers=(0, 1))
    assert ran == [(0, 0), (0, 1), (1, 0), (1, 1)]
    del ran[:]
    predictor.features(first, text, layers=((1, 0),))
    assert ran == [(0, 0), (0, 1), (1, 0)]


@torch.no_grad()
def test_views_go_in_one_batch(predictor, generator):
    first, text = inputs(generator, views=2)
    noise = torch.randn(1, 2, 3, 4, 12, 12, generator=generator)
    both = predictor.features(first, text, noise=noise)
    assert both.shape == (2, 3, *predictor.feature_shape(12, 12, views=2))
    each = [predictor.features(first[:, [view]], text, noise=noise[:, [view]]) for view in range(2)]
    torch.testing.assert_close(both, torch.cat(each, 2), atol=1e-5, rtol=1e-5)
    seeded = [predictor.features(first, text, generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert seeded[0].equal(seeded[1]) and not seeded[0].equal(seeded[2])
    assert not torch.allclose(predictor.features(first, text, 5.0, noise=noise), both, atol=1e-4)


def test_wrong_wishes_are_refused(predictor, generator):
    first, text = inputs(generator)
    with pytest.raises(ValueError, match=r"there is no 4 on the way up: wanted an up-block 0\.\.3"):
        predictor.features(first, text, layers=(4,))
    with pytest.raises(ValueError, match="steps is 21; wanted 1 to 20"):
        predictor.features(first, text, steps=21)
    with pytest.raises(ValueError, match=r"text of shape \(2, 1, 13\)"):
        predictor.features(first, torch.zeros(2, 1, 13))
    with pytest.raises(ValueError, match=r"text\.out is 1024; the network attends to width 16"):
        LatentDiffusionConfig(unet=UNET)
    with pytest.raises(ValueError, match="divide by 32"):
        SVDUNetConfig(widths=(30, 32, 64, 64))


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_sampling_repeats_with_its_seed_and_hears_the_sentence(predictor, generator):
    first, text = inputs(generator)

    def sample(seed=0, guidance=1.0, text=text):
        return predictor.sample(first[:, 0], text, 3, guidance, torch.Generator().manual_seed(seed))

    film = sample()
    assert film.shape == (2, 3, 4, 12, 12) and film.equal(sample()) and not film.equal(sample(seed=1))
    guided = sample(guidance=4.0)
    assert not torch.allclose(guided[:, 1:], film[:, 1:], atol=1e-4)
    silent = torch.zeros_like(text)  # with nothing said there is nothing to enlarge
    torch.testing.assert_close(sample(guidance=4.0, text=silent), sample(text=silent), atol=1e-4, rtol=1e-4)
    one = torch.tensor([True, False])  # withheld from the second alone
    part = predictor.sample(first[:, 0], text, 3, 1.0, torch.Generator().manual_seed(0), told=one)
    torch.testing.assert_close(part[0], film[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(part[1], sample(text=silent)[1], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(part[1], film[1], atol=1e-4)


def test_training_and_use_tell_the_same_unless_it_is_asked_for(generator):
    assert {svd().sampling_ids, svd().feature_ids, small().sampling_ids} == {None}
    config = published(positions=True)
    assert (config.ids, config.sampling_ids) == (TimeIds(fps=7.0), TimeIds(fps=4.0, noise=0.02))
    for made in (svd(), config, replace(CONFIG, augmentation=(-3.0, 0.5))):
        assert config_from_json(LatentDiffusionConfig, json.loads(json.dumps(config_to_json(made)))) == made


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foretells", ["v", "change"])
def test_it_overfits_one_batch(generator, foretells):
    torch.manual_seed(0)
    objective = VideoDenoising(LatentDiffusion(replace(CONFIG, foretells=foretells, weight_max=5.0)), WORDS)
    batch = clip(generator)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)

    def loss():
        torch.manual_seed(1)
        return objective(batch).total

    before = loss()
    assert before.dtype == torch.float32 and before.shape == ()
    for _ in range(25):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < 0.1 * before


def of_change(**more):
    torch.manual_seed(0)
    return LatentDiffusion(replace(CONFIG, foretells="change", weight_max=5.0, **more)).eval()


def test_a_network_that_foretells_no_change_leaves_the_first_frame(generator):
    still = of_change()
    torch.nn.init.zeros_(still.unet.conv_out.weight)
    torch.nn.init.zeros_(still.unet.conv_out.bias)
    first, text = inputs(generator)
    film = still.sample(first[:, 0], text, steps=3, guidance=1.0, generator=generator)
    torch.testing.assert_close(film, first.expand(-1, 3, -1, -1, -1), atol=1e-4, rtol=1e-4)
    latents = first.expand(-1, 3, -1, -1, -1).clone()
    latents[:, 1:] += 1
    draws = still.noising(latents, generator)._replace(sigma=torch.tensor([0.01, 100.0]))
    losses = still.film_losses(latents, first[:, 0], text, draws)
    wanted = 2 / 3 * CONFIG.latent_scale**2  # what it missed, and at low noise five times that, not 10,001 times
    torch.testing.assert_close(losses, torch.tensor([5 * wanted, 1.0001 * wanted]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("widths", [(32, 64), (32, 32, 64)])
def test_networks_of_fewer_levels(generator, widths):
    unet = replace(UNET, widths=widths, heads=(1,) * len(widths))
    predictor = LatentDiffusion(replace(CONFIG, unet=unet)).eval()
    assert config_of(json.loads(predictor.unet.to_json_string())) == unet
    first, text = torch.randn(2, 1, 4, 10, 10, generator=generator), WORDS(["open the drawer", "push"])
    for tap in [*range(len(widths)), (0, 0), (len(widths) - 1, 1)]:
        seen = predictor.features(first, text, layers=(tap,), generator=generator)
        channels, rows, columns = unet.shape(tap, 10, 10)
        assert seen.shape == (2, 3, rows * columns, channels)
    with pytest.raises(ValueError, match=f"up-block 0..{len(widths) - 1}"):
        unet.shape(len(widths), 10, 10)


@pytest.mark.parametrize("more", [{"widths": (32,), "heads": (1,)}, {"heads": (1, 1)}])
def test_levels_without_heads_are_refused(more):
    with pytest.raises(ValueError, match="two levels or more, and heads for each"):
        replace(UNET, **more)


def test_small_maps_attend_by_plain_products_and_see_the_same(generator, monkeypatch):
    """On two levels: norms over single places, four levels down, enlarge the last digits."""
    predictor = LatentDiffusion(replace(CONFIG, unet=replace(UNET, widths=(64, 64), heads=(2, 2)))).eval()
    first, text = torch.randn(2, 1, 4, 8, 8, generator=generator), WORDS(["open the drawer", "push"])
    noise = torch.randn(1, 1, 3, 4, 8, 8, generator=generator)
    ours = predictor.features(first, text, noise=noise)
    monkeypatch.setattr("ideomotor.predictors.latent_diffusion.attending", lambda x: nullcontext())
    torch.testing.assert_close(predictor.features(first, text, noise=noise), ours, atol=1e-5, rtol=1e-4)


def test_cameras_are_films_of_their_own(predictor, generator):
    batch = clip(generator, cameras=("front", "wrist"))
    objective = VideoDenoising(predictor, WORDS)
    torch.manual_seed(0)
    both = objective(batch).total
    films = torch.cat([batch.latents["front"], batch.latents["wrist"]])
    torch.manual_seed(0)
    joined = Clip(text=batch.text * 2, latents={"one": films})
    assert both.equal(objective(joined).total)
    with pytest.raises(ValueError, match="a clip without latents came"):
        objective(Clip(text=("",)))
    with pytest.raises(ValueError, match="camera 'front' has 4 latent frames; the predictor foretells 3"):
        objective(clip(generator, frames=4))


def test_dropouts_withhold_sentence_and_frame(generator):
    predictor = LatentDiffusion(replace(CONFIG, text_dropout=0.2, image_dropout=0.4))
    draws = predictor.noising(torch.zeros(4000, 1, 1, 1, 1), generator)
    assert abs(draws.told.float().mean() - 0.8) < 0.03 and abs(draws.seen.float().mean() - 0.6) < 0.03
    assert abs((draws.told & draws.seen).float().mean() - 0.48) < 0.03
    assert abs(draws.sigma.log().mean() - 0.7) < 0.1 and abs(draws.sigma.log().std() - 1.6) < 0.1
    given = []
    predictor.unet.register_forward_pre_hook(lambda _, call: given.append(call))
    batch = clip(generator)
    told = torch.tensor([True, False])
    noising = Noising(torch.ones(2), torch.randn(2, 3, 4, 12, 12, generator=generator), told, ~told)
    predictor.loss(batch.latents["front"], batch.latents["front"][:, 0], WORDS(batch.text), noising)
    x, _, text, _ = given[0]
    assert text.flatten(1).any(1).equal(told) and x[:, :, 4:].flatten(1).any(1).equal(~told)


def test_held_out_losses_are_of_the_same_draws_each_time(predictor, generator):
    batches = [clip(generator), clip(generator)]
    learner = Learner(VideoDenoising(predictor, WORDS), OptimConfig(lr=1e-3, warmup=0), 2)
    first = learner.validate(batches)
    torch.manual_seed(5)
    assert learner.validate(batches) == first
    learner.update(batches[0])
    assert learner.validate(batches) != first


def test_a_loss_is_the_mean_of_its_films(predictor, generator):
    batch = clip(generator)
    film, text = batch.latents["front"], WORDS(batch.text)
    draws = predictor.noising(film, generator)
    losses = predictor.film_losses(film, film[:, 0], text, draws)
    assert losses.shape == (2,) and predictor.loss(film, film[:, 0], text, draws).total == losses.mean()
    alone = draws._replace(sigma=draws.sigma[1:], noise=draws.noise[1:], told=draws.told[1:], seen=draws.seen[1:])
    torch.testing.assert_close(
        predictor.film_losses(film[1:], film[1:, 0], text[1:], alone), losses[1:], atol=1e-4, rtol=1e-4
    )


def test_noise_on_the_first_frame_is_told_in_training_and_sampling(generator):
    torch.manual_seed(0)
    predictor = LatentDiffusion(replace(CONFIG, augmentation=(-1.0, 0.3), ids=TimeIds(noise=0.5)))
    given = []
    predictor.unet.register_forward_pre_hook(lambda _, call: given.append(call))
    films = clip(generator).latents["front"]
    draws = predictor.noising(films, generator)
    predictor.loss(films, films[:, 0], WORDS(("a", "b")), draws)
    x, _, _, ids = given[0]
    assert ids[:, 2].equal(draws.strength) and ids[:, 0].eq(7).all()
    noise = (x[:, 0, 4:] - films[:, 0]) * CONFIG.latent_scale / draws.strength[:, None, None, None]
    torch.testing.assert_close(noise, draws.first, atol=1e-4, rtol=1e-4)
    predictor.sample(films[:, 0], WORDS(("a", "b")), 1, 1.0, generator)
    x, _, _, ids = given[1]
    assert ids[:, 2].eq(0.5).all() and 0.9 < ((x[:, 0, 4:] - films[:, 0]) * CONFIG.latent_scale / 0.5).std() < 1.1


def gradients(predictor, batch, dtype=None, recompute=False):
    objective = VideoDenoising(predictor.train(), WORDS, recompute)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        total = objective(batch).total
    assert total.dtype == torch.float32
    (total * 1024).backward()  # as loss scaling does: fp16 loses what is below 6e-8
    found = {name: weight.grad / 1024 for name, weight in objective.named_parameters() if weight.grad is not None}
    objective.zero_grad()
    return found


def test_recomputing_gives_the_same_gradients(predictor, generator):
    batch = clip(generator)
    kept = gradients(predictor, batch)
    again = gradients(predictor, batch, recompute=True)
    assert predictor.unet.is_gradient_checkpointing and kept.keys() == again.keys() and len(kept) > 100
    for name, value in kept.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "alike"), [(torch.bfloat16, 0.98), (torch.float16, 0.9995)])
def test_gradients_in_half_precision(predictor, generator, dtype, alike):
    batch = clip(generator)
    exact, rough = gradients(predictor, batch), gradients(predictor, batch, dtype)
    a, b = (torch.cat([value.flatten() for value in found.values()]) for found in (exact, rough))
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > alike


def test_half_precision(predictor, generator):
    first, text = inputs(generator)
    noise = torch.randn(2, 1, 3, 4, 12, 12, generator=generator)
    with torch.no_grad():
        full = predictor.features(first, text, noise=noise)
        half = predictor.bfloat16().features(first, text, noise=noise)
    assert half.dtype == torch.bfloat16 and (half - full).std() < 0.05 * full.std()
    assert predictor.sample(first[:, 0], text, 2, generator=generator).isfinite().all()


def test_few_weights_learn_beside_the_others_and_merge(predictor, generator):
    batch, before = clip(generator), {name: value.clone() for name, value in predictor.state_dict().items()}
    add_lora(predictor.unet, rank=2)
    objective = VideoDenoising(predictor, WORDS, recompute=True)
    optimizer = torch.optim.Adam([weight for weight in objective.parameters() if weight.requires_grad], lr=0.01)
    for _ in range(2):
        objective(batch).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    bases = {name.replace(".base.", "."): value for name, value in predictor.state_dict().items()}
    assert all(bases[name].equal(value) for name, value in before.items() if name.startswith("unet."))
    first, text = inputs(generator)
    noise = torch.randn(1, 1, 3, 4, 12, 12, generator=generator)
    with torch.no_grad():
        learned = predictor.features(first, text, noise=noise)
        merge_lora(predictor.unet)
        assert predictor.state_dict().keys() == before.keys()
        torch.testing.assert_close(predictor.features(first, text, noise=noise), learned, atol=1e-4, rtol=1e-3)
        predictor.load_state_dict(before)
        assert not torch.allclose(predictor.features(first, text, noise=noise), learned, atol=1e-2)


def test_a_borrowed_predictor_gives_features(predictor, generator):
    first, text = inputs(generator)
    noise = torch.randn(1, 1, 3, 4, 12, 12, generator=generator)
    first.requires_grad_()
    read = Borrowed(predictor)(first, text, noise=noise, method="features")
    read.square().mean().backward()
    assert first.grad.abs().sum() > 0 and all(weight.grad is None for weight in predictor.parameters())
    assert read.equal(predictor.features(first, text, noise=noise))


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["5GB", "2MB"])
def test_folders_of_diffusers(predictor, tmp_path, shard):
    predictor.unet.save_pretrained(tmp_path / "unet", max_shard_size=shard)
    torch.manual_seed(1)
    other = LatentDiffusion(CONFIG)
    other.load_diffusers(tmp_path)
    assert all(value.equal(predictor.unet.state_dict()[name]) for name, value in other.unet.state_dict().items())
    wider = LatentDiffusion(replace(CONFIG, unet=replace(UNET, layers=2)))
    with pytest.raises(ValueError, match=r"holds a network of .*layers=1.*; this one was built with .*layers=2"):
        wider.load_diffusers(tmp_path)
    for file in (tmp_path / "unet").glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(ValueError, match="save it anew with safetensors"):
        other.load_diffusers(tmp_path)


def test_other_folders_are_refused(predictor, tmp_path):
    with pytest.raises(ValueError, match=r"holds no unet/config.json"):
        predictor.load_diffusers(tmp_path)
    with pytest.raises(ValueError, match="the folder holds a UNet2DConditionModel"):
        config_of({"_class_name": "UNet2DConditionModel"})
    settings = json.loads(predictor.unet.to_json_string())
    assert config_of(settings) == UNET
    with pytest.raises(ValueError, match="missing layers_per_block, of another kind transformer_layers_per_block"):
        config_of({k: v for k, v in settings.items() if k != "layers_per_block"} | {"transformer_layers_per_block": 2})
