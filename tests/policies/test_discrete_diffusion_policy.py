"""The action model: overfits a batch, ignores what it must, refuses what does not fit."""

import itertools
from dataclasses import replace

import pytest
import torch

from ideomotor.layers.conv import PixelStemConfig
from ideomotor.layers.transformer import TransformerConfig
from ideomotor.policies.discrete_diffusion import DiscreteDiffusionPolicy, DiscreteDiffusionPolicyConfig
from ideomotor.types import Losses, Prefix

CONFIG = DiscreteDiffusionPolicyConfig(
    action_width=2, chunk=3, bins=8, features=(4, 6), text_width=5, state_width=2, pixels=16, squeeze=4, read_tokens=2,
    noisings=2, stem=PixelStemConfig(patch=2, widths=(8, 16)), trunk=TransformerConfig(width=32, layers=2, heads=2),
)  # fmt: skip


@pytest.fixture
def policy() -> DiscreteDiffusionPolicy:
    torch.manual_seed(0)
    model = DiscreteDiffusionPolicy(CONFIG)
    model.bins.fit(torch.randn(500, 2, generator=torch.Generator().manual_seed(1)))
    return model


def batch(n: int = 8) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    return {
        "frames": torch.randint(0, 256, (n, 1, 3, 16, 16), dtype=torch.uint8, generator=g),
        "features": torch.randn(n, 4, 6, generator=g),
        "text": torch.randn(n, 5, generator=g),
        "state": torch.randn(n, 2, generator=g),
    }


def test_it_overfits_one_batch_and_decodes_it(policy: DiscreteDiffusionPolicy, generator: torch.Generator) -> None:
    seen, actions = batch(), torch.randn(8, 3, 2, generator=generator)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(200):
        losses = policy.loss(**seen, actions=actions, generator=generator)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
    assert losses.terms["cross_entropy"] < 0.1
    wanted = policy.bins.decode(policy.bins.encode(actions))
    for steps in (1, 2, 6):
        assert torch.equal(policy.sample(**seen, steps=steps), wanted)


def test_actions_past_the_end_are_neither_learned_nor_seen(policy: DiscreteDiffusionPolicy) -> None:
    """Fails if the padding of a chunk, which repeats its last action, is shown as a known token."""
    torch.nn.init.normal_(policy.actions.head.weight, std=0.1)  # it begins at zero, where nothing would matter
    seen, actions = batch(), torch.zeros(8, 3, 2)
    mask = torch.tensor([True, True, False]).expand(8, 3)
    other = actions.clone()
    other[:, 2] = 2.0  # nonsense after the end

    def loss(given: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return policy.loss(**seen, actions=given, mask=real, generator=torch.Generator().manual_seed(0)).total

    assert torch.equal(loss(actions, mask), loss(other, mask))
    assert not torch.equal(loss(actions, mask), loss(other, torch.ones_like(mask)))


def test_an_outlook_learns_from_what_lies_behind_the_chunk_and_leaves_the_rest_alone() -> None:
    torch.manual_seed(0)
    far = DiscreteDiffusionPolicy(replace(CONFIG, outlook=2.0))
    seen, actions = batch(), torch.randn(8, 7, 2, generator=torch.Generator().manual_seed(3))
    mask = torch.tensor([True] * 6 + [False]).expand(8, 7)

    def losses(given: torch.Tensor) -> Losses:
        return far.loss(**seen, actions=given, mask=mask, generator=torch.Generator().manual_seed(0))

    one, other, past = actions.clone(), actions.clone(), actions.clone()
    other[:, 5], past[:, 6] = 9.0, 9.0  # behind the chunk of three; past the episode's end
    assert torch.equal(losses(one).terms["cross_entropy"], losses(other).terms["cross_entropy"])
    assert losses(one).terms["outlook"] < losses(other).terms["outlook"]
    assert torch.equal(losses(one).total, losses(past).total)
    losses(one).total.backward()
    assert far.stem.body[0].linear.weight.grad is not None and far.way[-1].weight.grad.abs().sum() > 0
    assert not hasattr(DiscreteDiffusionPolicy(CONFIG), "way")


def test_a_batch_of_nothing_but_padding_is_no_catastrophe(policy: DiscreteDiffusionPolicy) -> None:
    losses = policy.loss(**batch(), actions=torch.zeros(8, 3, 2), mask=torch.zeros(8, 3, dtype=torch.bool))
    assert losses.total == 0 and losses.terms["accuracy"] == 0


def test_what_does_not_fit_is_refused(policy: DiscreteDiffusionPolicy) -> None:
    seen = batch()
    with pytest.raises(ValueError, match="8 actions of width 2 came; this policy foretells 3"):
        policy.loss(**seen, actions=torch.zeros(8, 8, 2))
    with pytest.raises(ValueError, match="frames of 8x8 came; this policy was trained on 16x16"):
        policy.sample(**seen | {"frames": seen["frames"][..., :8, :8]})
    with pytest.raises(ValueError, match="foresight features none came"):
        policy.sample(**seen | {"features": None})
    with pytest.raises(ValueError, match="state of width 2 and got None"):
        policy.sample(**seen | {"state": None})


def test_images_only_policies_have_no_state_and_no_foresight() -> None:
    policy = DiscreteDiffusionPolicy(replace(CONFIG, features=(0, 0), state_width=0))
    names = [name for name, _ in policy.named_parameters()]
    assert not any(name.startswith(("state", "foresight")) for name in names)
    seen = batch(2)
    assert policy.sample(seen["frames"], None, seen["text"]).shape == (2, 3, 2)


def test_foresight_may_be_withheld_where_that_was_trained() -> None:
    torch.manual_seed(0)
    policy = DiscreteDiffusionPolicy(replace(CONFIG, foresight_dropout=0.5))
    policy.bins.fit(torch.randn(500, 2))
    torch.nn.init.normal_(policy.actions.head.weight, std=0.5)
    torch.nn.init.normal_(policy.no_foresight, std=1.0)
    seen = batch(64)
    without = policy.eval().sample(**seen | {"features": None})
    assert without.shape == (64, 3, 2) and not torch.equal(without, policy.sample(**seen))
    # In training about half of the samples are blind to their features; in acting none is.
    features = seen["features"].requires_grad_()
    for training, low, high in ((True, 16, 48), (False, 64, 64)):
        policy.train(training)
        (slope,) = torch.autograd.grad(policy._foresight(features, 64).sum(), features)
        assert low <= int((slope.abs().sum((1, 2)) > 0).sum()) <= high


# --- how likely actions are -------------------------------------------------------------------------------------------


def test_the_bound_is_the_mean_over_all_orders() -> None:
    """Against every order in which 3 tokens can be told, by the chain rule."""
    torch.manual_seed(0)
    policy = DiscreteDiffusionPolicy(replace(CONFIG, action_width=1)).eval()
    policy.bins.fit(torch.randn(500, 1))
    seen, actions = batch(4), torch.randn(4, 3, 1)
    minded = torch.randn(3, 3, CONFIG.bins + 1, CONFIG.bins)  # a place, another place and what stands there -> logits
    policy.logits = lambda xt, cache: sum(minded[:, place, xt[:, place]].transpose(0, 1) for place in range(3))
    x0 = policy.bins.encode(actions).flatten(1)
    cache, orders = policy.observe(**seen), []
    for order in itertools.permutations(range(3)):
        xt, total = torch.full_like(x0, policy.actions.mask_id), torch.zeros(4)
        for place in order:
            log_p = policy.logits(xt, cache)[:, place].log_softmax(-1)
            total = total + log_p.gather(1, x0[:, place, None])[:, 0]
            xt[:, place] = x0[:, place]
        orders.append(total)
    told = torch.stack(orders)
    wanted = told.mean(0)
    assert told.std(0).mean() > 0.05  # or the test would show nothing
    assert (wanted - told_at_once(policy, x0)).abs().min() > 0.05  # it is not the product of one pass
    got = policy.log_likelihood(**seen, actions=actions, maskings=3000, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(got, wanted, atol=0.1)


def told_at_once(policy: DiscreteDiffusionPolicy, x0: torch.Tensor) -> torch.Tensor:
    log_p = policy.logits(torch.full_like(x0, policy.actions.mask_id), ()).log_softmax(-1)
    return log_p.gather(2, x0[..., None]).sum((1, 2))


def test_likelihood_tells_which_foresight_the_actions_came_from(
    policy: DiscreteDiffusionPolicy, generator: torch.Generator
) -> None:
    """Only the foresight differs between the samples, so only it can tell their actions apart."""
    seen, actions = batch(), torch.randn(8, 3, 2, generator=generator)
    seen = {name: value if name == "features" else value[:1].expand_as(value) for name, value in seen.items()}
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        policy.loss(**seen, actions=actions, generator=generator).total.backward()
        optimizer.step()
    policy.eval()
    table = torch.stack(
        [policy.log_likelihood(**seen, actions=one.expand(8, -1, -1), generator=generator) for one in actions]
    )
    assert torch.equal(table.argmax(1), torch.arange(8)) and (table <= 0).all()


def test_a_chunk_begins_with_the_actions_under_way_and_goes_on_from_them(policy: DiscreteDiffusionPolicy) -> None:
    """Rows know one action, two and none; each comes back as it was given, not as its bin's centre."""
    torch.nn.init.normal_(policy.actions.head.weight, std=0.5)
    seen, free = batch(3), policy.eval().sample(**batch(3), steps=4)
    under_way = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(5))
    prefix = Prefix(under_way, torch.tensor([1, 2, 0]))
    chunk = policy.sample(**seen, steps=4, prefix=prefix)
    assert torch.equal(chunk[0, :1], under_way[0, :1]) and torch.equal(chunk[1, :2], under_way[1, :2])
    assert torch.equal(chunk[2], free[2])
    other = policy.sample(**seen, steps=4, prefix=Prefix(-under_way, prefix.known))
    assert not torch.equal(other[0, 1:], chunk[0, 1:]) or not torch.equal(other[1, 2:], chunk[1, 2:])
    # What lies behind the known actions has no meaning.
    beyond = under_way.clone()
    beyond[0, 1:], beyond[1, 2:], beyond[2] = 9.0, 9.0, 9.0
    assert torch.equal(policy.sample(**seen, steps=4, prefix=Prefix(beyond, prefix.known)), chunk)
    alone = {name: value[:1] for name, value in seen.items()}
    assert torch.equal(policy.sample(**alone, steps=4, prefix=Prefix(under_way[:1], prefix.known[:1])), chunk[:1])
    with pytest.raises(ValueError, match="foretells 3 of width 2"):
        policy.sample(**seen, prefix=Prefix(under_way[:, :2], prefix.known))
