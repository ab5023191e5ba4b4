"""The video predictor: shapes, no leak, learns, and decodes what it learned."""

from dataclasses import replace

import pytest
import torch

from ideomotor.layers.transformer import TransformerConfig
from ideomotor.predictors.discrete_diffusion import DiscreteDiffusionPredictor, DiscreteDiffusionPredictorConfig
from ideomotor.types import DOMAINS, domain_id

CONFIG = DiscreteDiffusionPredictorConfig(
    vocab=11, grid=(4, 6), text_width=8, text_dropout=0.0, trunk=TransformerConfig(width=32, layers=2, heads=2)
)


@pytest.fixture
def predictor() -> DiscreteDiffusionPredictor:
    torch.manual_seed(0)
    model = DiscreteDiffusionPredictor(CONFIG)
    torch.nn.init.normal_(model.future.head.weight, std=0.1)
    return model


def test_tokens_keep_their_places_through_patches(predictor: DiscreteDiffusionPredictor) -> None:
    """Logits come out at the position whose token went in: a one-hot read-out of the embedding finds each token
    again.
    """
    tokens = torch.arange(24)[None, None] % 11
    patches = predictor._patches(tokens)
    assert patches.shape == (1, 6, 4)
    assert patches[0, 0].tolist() == [0, 1, 6, 7]  # rows 0-1, columns 0-1 of the 4 x 6 grid, ids 0..23 modulo 11
    wide = torch.randn(1, 6, 4 * 11)
    predictor.future.logits = lambda features: wide.view(1, 6, 4, 11)  # type: ignore[method-assign]
    cache, seen = predictor.observe(tokens, torch.zeros(1, 8))
    logits = predictor.logits(tokens[:, 0], seen, cache)
    for row in range(4):
        for column in range(6):
            patch, inside = (row // 2) * 3 + column // 2, (row % 2) * 2 + column % 2
            assert torch.equal(logits[0, row * 6 + column], wide.view(6, 4, 11)[patch, inside])


def test_the_past_never_sees_the_future(predictor: DiscreteDiffusionPredictor) -> None:
    context, text = torch.randint(0, 11, (2, 1, 24)), torch.randn(2, 8)
    cache, _ = predictor.observe(context, text)
    for entry in cache:
        assert entry.key.shape[2] == 1 + 6  # text and the observed patches only
    features = predictor.features(context, text)
    assert features.shape == (2, *predictor.feature_shape)


def test_it_learns_a_rule_and_samples_it(predictor: DiscreteDiffusionPredictor, generator: torch.Generator) -> None:
    """future = context + shift(text): learned from random context, decoded right in 1 and in 4 passes."""
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)

    def batch(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        context = torch.randint(0, 11, (n, 1, 24), generator=generator)
        shift = torch.randint(0, 2, (n,), generator=generator)
        return context, (context + 1 + 2 * shift[:, None, None]) % 11, torch.nn.functional.one_hot(shift, 8).float()

    for _ in range(300):
        losses = predictor.loss(*batch(32), generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    context, future, text = batch(16)
    for steps in (1, 4):
        assert (predictor.sample(context, text, steps) == future).float().mean() > 0.95


def test_wrong_tokens_are_refused(predictor: DiscreteDiffusionPredictor) -> None:
    with pytest.raises(ValueError, match="1 observed latent frames of 24 tokens and got 2 of 24"):
        predictor.features(torch.zeros(1, 2, 24, dtype=torch.long), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="does not divide into patches"):
        DiscreteDiffusionPredictorConfig(grid=(5, 4))


def test_features_tell_of_what_is_known_of_the_future(predictor: DiscreteDiffusionPredictor) -> None:
    context, text = torch.randint(0, 11, (2, 1, 24)), torch.randn(2, 8)
    future = torch.randint(0, 11, (2, 1, 24))
    unknown = predictor.features(context, text)
    nothing = predictor.noised(future, torch.ones(2))
    assert (nothing == predictor.future.mask_id).all()
    assert torch.equal(predictor.features(context, text, nothing), unknown)
    half = predictor.noised(future, torch.tensor([0.5, 1.0]))
    assert (half == predictor.future.mask_id).sum((1, 2)).tolist() == [12, 24]
    told = predictor.features(context, text, half)
    assert not torch.allclose(told[0], unknown[0], atol=1e-3) and torch.equal(told[1], unknown[1])


def test_known_tokens_stay_and_each_pass_can_be_watched(predictor: DiscreteDiffusionPredictor) -> None:
    context, text = torch.randint(0, 11, (2, 1, 24)), torch.randn(2, 8)
    known = torch.full((2, 1, 24), predictor.future.mask_id)
    known[:, :, :10] = torch.randint(0, 11, (2, 1, 10))
    seen: list[torch.Tensor] = []
    tokens = predictor.sample(context, text, steps=4, known=known, watch=lambda xt: seen.append(xt.clone()))
    assert torch.equal(tokens[:, :, :10], known[:, :, :10]) and (tokens < 11).all()
    left = [int((xt == predictor.future.mask_id).sum()) for xt in seen]
    assert left[0] == 28 and left == sorted(left, reverse=True) and len(left) == 4


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
def test_orders_and_remasking(predictor: DiscreteDiffusionPredictor, order: str) -> None:
    context, text = torch.randint(0, 11, (2, 1, 24)), torch.randn(2, 8)
    for steps in (1, 3, 16, 100):
        generator = torch.Generator().manual_seed(0)
        tokens = predictor.sample(context, text, steps, 1.0, generator, order=order, remask=0.2)  # type: ignore[arg-type]
        assert tokens.shape == (2, 1, 24) and (tokens < 11).all()


def test_guidance_sharpens_what_the_sentence_says(
    predictor: DiscreteDiffusionPredictor, generator: torch.Generator
) -> None:
    """Without guidance what is foretold of a wrong reading of the sentence keeps some probability; guidance removes
    it. At 1 it is none, at 0 the sentence does not matter.
    """
    context, text = torch.randint(0, 11, (64, 1, 24)), torch.randn(64, 8)
    plain = predictor.sample(context, text, 2)
    assert torch.equal(predictor.sample(context, text, 2, guidance=1.0), plain)
    untold = predictor.sample(context, torch.zeros_like(text), 2)
    assert torch.equal(predictor.sample(context, text, 2, guidance=0.0), untold)
    assert not torch.equal(plain, untold)
    assert not torch.equal(predictor.sample(context, text, 2, guidance=3.0), plain)


# --- domains ----------------------------------------------------------------------------------------------------------

HUMAN, ROBOT = domain_id("human"), domain_id("robot")
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def two_dynamics(n: int, generator: torch.Generator) -> Batch:
    """Nothing but the domain tells which of two rules holds: human tokens go up by 1, a robot's by 5."""
    context = torch.randint(0, 11, (n, 1, 24), generator=generator)
    domain = torch.where(torch.rand(n, generator=generator) < 0.5, HUMAN, ROBOT)
    return context, (context + 1 + 4 * (domain == ROBOT)[:, None, None]) % 11, torch.zeros(n, 8), domain


def trained(domains: int, generator: torch.Generator) -> DiscreteDiffusionPredictor:
    torch.manual_seed(0)
    predictor = DiscreteDiffusionPredictor(replace(CONFIG, domains=domains, text_dropout=0.2))
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-3)
    for _ in range(300):
        losses = predictor.loss(*two_dynamics(32, generator), generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    return predictor


def test_a_domain_decides_between_two_dynamics(generator: torch.Generator) -> None:
    predictor = trained(len(DOMAINS), generator)
    context, future, text, domain = two_dynamics(32, generator)
    assert (predictor.sample(context, text, 4, domain=domain) == future).float().mean() > 0.95
    other = torch.where(domain == HUMAN, ROBOT, HUMAN)
    assert (predictor.sample(context, text, 4, domain=other) == future).float().mean() < 0.05
    assert torch.equal(  # what guidance pushes away from knows the domain too
        predictor.sample(context, text, 4, domain=domain),
        predictor.sample(context, text, 4, domain=domain, guidance=3.0),
    )
    # Unknown was learned from what was withheld: either rule, not the one of an embedding that nothing ever trained.
    cache, seen = predictor.observe(context, text)
    nothing = torch.full((32, 24), predictor.future.mask_id)
    likely = predictor.logits(nothing, seen, cache).softmax(-1)
    either = [likely.gather(-1, ((context[:, 0] + step) % 11)[..., None]).mean() for step in (1, 5)]
    assert min(either) > 0.2 and sum(either) > 0.9
    assert predictor.domain is not None and not predictor.domain.weight[domain_id("simulated")].any()


def test_without_the_switch_a_domain_changes_nothing(generator: torch.Generator) -> None:
    """The embedding begins at zero and draws nothing: the switch changes what is learned, not the first loss."""
    batch = two_dynamics(8, generator)

    def first(domains: int, *given: torch.Tensor) -> tuple[torch.Tensor, set[str]]:
        torch.manual_seed(0)
        predictor = DiscreteDiffusionPredictor(replace(CONFIG, domains=domains, text_dropout=0.2))
        return predictor.loss(*given).total, set(dict(predictor.named_parameters()))

    loss, names = first(0, *batch)
    assert torch.equal(loss, first(0, *batch[:3])[0]) and torch.equal(loss, first(len(DOMAINS), *batch)[0])
    assert first(len(DOMAINS), *batch)[1] - names == {"domain.weight"}
    with pytest.raises(ValueError, match="domains is 2; wanted 4, for unknown, human, robot, simulated, or 0"):
        replace(CONFIG, domains=2)
