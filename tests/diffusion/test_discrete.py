"""Mask-and-replace diffusion against explicit transition matrices over a vocabulary of six."""

import copy
import itertools
import math

import pytest
import torch

from ideomotor.diffusion.discrete import (
    MaskReplace,
    TimeSampler,
    cosine_ratio,
    log_one_hot,
    mask_tokens,
    masked_cross_entropy,
    posterior_loss,
)
from ideomotor.diffusion.schedule import Vocabulary, hybrid_schedule, linear_schedule

VOCABULARY = Vocabulary((3, 2))
GROUP = VOCABULARY.layout((2, 1))  # two positions of the first group, one of the second
MASK, STEPS = VOCABULARY.mask_id, 6
SCHEDULES = {
    "published": linear_schedule(VOCABULARY, STEPS),
    "mask only": hybrid_schedule(VOCABULARY, STEPS),
    "hybrid": hybrid_schedule(VOCABULARY, STEPS, replace=0.2),
}


@pytest.fixture(params=SCHEDULES)
def process(request):
    return MaskReplace(VOCABULARY, SCHEDULES[request.param], GROUP)


def matrix(schedule, step):
    """Returns the one-step transition matrix, from row to column, block-diagonal but for the mask's column."""
    q = torch.zeros(VOCABULARY.size, VOCABULARY.size, dtype=torch.float64)
    for group, (offset, size) in enumerate(zip(VOCABULARY.offsets, VOCABULARY.groups, strict=True)):
        block = slice(offset, offset + size)
        q[block, block] = schedule.log_beta[step, group].exp()
        q[block, block] += schedule.log_alpha[step].exp() * torch.eye(size)
        q[block, MASK] = schedule.log_gamma[step].exp()
    q[MASK, MASK] = 1
    return q


def through(schedule, step):
    """Returns the product of the matrices up to and with ``step``."""
    product = torch.eye(VOCABULARY.size, dtype=torch.float64)
    for index in range(step + 1):
        product = product @ matrix(schedule, index)
    return product


def bayes(schedule, step, x0, xt):
    """Returns q(x_(step-1) | xt, x0) by Bayes' rule on the matrices."""
    joint = through(schedule, step - 1)[x0] * matrix(schedule, step)[:, xt]
    return joint / joint.sum()


def classes(position):
    offset = VOCABULARY.offsets[int(GROUP[position])]
    return range(offset, offset + VOCABULARY.groups[int(GROUP[position])])


def reachable(process, position):
    """Returns all (x0, xt) that can occur at a position."""
    pairs = itertools.product(classes(position), [*classes(position), MASK])
    return [(x0, xt) for x0, xt in pairs if process.schedule.replaces or xt in (x0, MASK)]


def at(position, value):
    """Returns one sample with ``value`` at ``position`` and any legal class elsewhere."""
    x = torch.tensor([[0, 0, VOCABULARY.offsets[1]]])
    x[0, position] = value
    return x


def test_vocabulary():
    assert (VOCABULARY.offsets, VOCABULARY.mask_id, VOCABULARY.size) == ((0, 3), 5, 6)
    assert VOCABULARY.class_groups().tolist() == [0, 0, 0, 1, 1]
    joined = VOCABULARY.join([torch.ones(1, 2, 3), torch.full((1, 1, 2), 2.0)])
    assert joined.isfinite().equal((VOCABULARY.class_groups() == GROUP[:, None])[None])
    with pytest.raises(ValueError, match="groups"):
        Vocabulary((3, 0))


def test_steps_compose_to_the_cumulative_schedule(process):
    for step in range(-1, STEPS):
        product = through(process.schedule, step)
        assert torch.allclose(product.sum(1), torch.ones(6, dtype=torch.float64))
        for position in range(3):
            for x0 in [*classes(position), MASK]:
                got = process.log_marginal(log_one_hot(at(position, x0), 6).double(), torch.tensor([step]))[0, position]
                assert torch.allclose(got.exp(), product[x0], atol=1e-12)
                if step >= 0:
                    got = process.log_one_step(log_one_hot(at(position, x0), 6).double(), torch.tensor([step]))
                    assert torch.allclose(got[0, position].exp(), matrix(process.schedule, step)[x0], atol=1e-12)


def test_posterior_is_bayes_rule(process):
    for step, position in itertools.product(range(STEPS), range(3)):
        for x0, xt in reachable(process, position):
            hot = log_one_hot(at(position, x0), 6)
            got = process.log_posterior(hot, at(position, xt), torch.tensor([step]))[0, position].exp()
            assert torch.allclose(got.double(), bayes(process.schedule, step, x0, xt), atol=2e-6)


def test_foretold_posterior_averages_bayes_rule_over_clean_tokens(process, generator):
    logits = torch.randn(1, 3, MASK, generator=generator)
    for step, position in itertools.product(range(STEPS), range(3)):
        for xt in [*classes(position), MASK]:
            log_x0 = process.log_x0(logits, at(position, xt))
            got = process.log_posterior(log_x0, at(position, xt), torch.tensor([step]))[0, position].exp()
            p = logits[0, position, list(classes(position))].double().softmax(0)
            if process.schedule.replaces or xt == MASK:
                pairs = zip(classes(position), p, strict=True)
                wanted = sum(chance * bayes(process.schedule, step, x0, xt) for x0, chance in pairs)
            else:  # what is not masked is clean
                wanted = torch.eye(6, dtype=torch.float64)[xt]
            assert torch.allclose(got.double(), wanted, atol=5e-5 if step == STEPS - 1 else 2e-6)


def test_loss_is_the_kl_of_explicit_posteriors(process, generator):
    logits = torch.randn(4, 3, MASK, generator=generator)
    x0 = torch.tensor([[0, 1, 3], [2, 2, 4], [1, 0, 3], [2, 1, 4]])
    xt = torch.tensor([[5, 1, 5], [2, 5, 5], [5, 0, 5], [5, 5, 4]])
    step = torch.tensor([0, 1, 3, STEPS - 1])
    probability = torch.tensor([0.1, 0.2, 0.3, 0.4])
    total = torch.tensor(0.0, dtype=torch.float64)
    for b, n in itertools.product(range(4), range(3)):
        here, noised = list(classes(n)), int(xt[b, n])
        p = logits[b, n, here].double().softmax(0)
        if not process.schedule.replaces and noised != MASK:
            p = torch.eye(len(here), dtype=torch.float64)[noised - here[0]]
        model = sum(c * bayes(process.schedule, int(step[b]), k, noised) for k, c in zip(here, p, strict=True) if c > 0)
        true = bayes(process.schedule, int(step[b]), int(x0[b, n]), noised)
        nll = -model[x0[b, n]].log()
        kl = (torch.special.xlogy(true, true) - torch.special.xlogy(true, model)).sum()
        cross_entropy = nll if step[b] == 0 else -p[int(x0[b, n]) - here[0]].log()
        first = nll if step[b] == 0 else kl
        total += (first + 0.01 * (2 - step[b] / STEPS) * cross_entropy) / probability[b]
    got = posterior_loss(process, logits, x0, xt, step, probability, auxiliary=0.01).total
    assert got.item() == pytest.approx(total.item() / 12, rel=2e-4)


def test_masking_alone_is_a_weighted_cross_entropy(generator):
    schedule = SCHEDULES["mask only"]
    process = MaskReplace(VOCABULARY, schedule, GROUP)
    logits = torch.randn(STEPS - 1, 3, MASK, generator=generator)
    x0 = torch.tensor([[2, 0, 4]]).expand(STEPS - 1, 3)
    xt, step = torch.full_like(x0, MASK), torch.arange(1, STEPS)
    bar = schedule.log_alpha_bar.exp()
    weight = (bar[step - 1] - bar[step]) / (1 - bar[step])
    cross_entropy = -process.log_x0(logits, xt).gather(-1, x0[..., None])[..., 0]
    kl = posterior_loss(process, logits, x0, xt, step).main
    assert torch.allclose(kl, weight[:, None].float() * cross_entropy, rtol=1e-4, atol=1e-6)


def test_samples_follow_the_marginal(process, generator):
    draws = 20_000
    for step in (0, 2, STEPS - 1):
        x0 = torch.tensor([[1, 2, 3]]).expand(draws, 3)
        xt = process.sample(x0, torch.full((draws,), step), generator)
        wanted = through(process.schedule, step)[x0[0]]
        got = torch.stack([torch.bincount(xt[:, n], minlength=6) for n in range(3)]) / draws
        assert ((got - wanted).abs() <= 5 * (wanted * (1 - wanted) / draws).sqrt() + (wanted > 0) * 4 / draws).all()


def test_groups_leak_only_in_the_published_form():
    step, hot = torch.tensor([3]), log_one_hot(torch.tensor([[0, 1, 3]]), 6)
    foreign = MaskReplace(VOCABULARY, SCHEDULES["hybrid"], GROUP).foreign
    for published in (False, True):
        process = MaskReplace(VOCABULARY, SCHEDULES["hybrid"], GROUP, published)
        leaked = process.log_marginal(hot, step)[0, :, :-1][foreign].exp().max()
        assert bool(leaked > 1e-3) == published


def test_gradients_are_finite(process, generator):
    logits = torch.randn(STEPS, 3, MASK, generator=generator, requires_grad=True)
    x0 = torch.tensor([[0, 2, 4]]).expand(STEPS, 3)
    step = torch.arange(STEPS)
    posterior_loss(process, logits, x0, process.sample(x0, step, generator), step).total.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().sum() > 0
    assert not logits.grad[:, process.foreign].any()


def test_posterior_loss_overfits_one_batch(generator):
    process = MaskReplace(VOCABULARY, SCHEDULES["hybrid"], GROUP)
    x0, step = torch.tensor([[0, 2, 4], [1, 1, 3]]), torch.tensor([2, 4])
    xt = process.sample(x0, step, generator)
    logits = torch.zeros(2, 3, MASK, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = posterior_loss(process, logits, x0, xt, step).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_schedules():
    assert not SCHEDULES["mask only"].replaces
    assert not linear_schedule(VOCABULARY, 50, (0.99, 0.01), (0.01, 0.99)).replaces
    assert SCHEDULES["published"].replaces
    published = linear_schedule(VOCABULARY)
    mass = 1 - published.log_alpha_bar.exp() - published.log_gamma_bar.exp()
    assert torch.allclose(mass[:-1], torch.full((100,), 1e-6, dtype=torch.float64), rtol=1e-6)
    hybrid = hybrid_schedule(VOCABULARY, 101, replace=0.2, gamma_bar=(0.01, 0.99))
    halfway = [
        v[50].exp() for v in (hybrid.log_alpha_bar, hybrid.log_gamma_bar, hybrid.log_beta_bar[:, 0] + math.log(3))
    ]
    assert torch.allclose(torch.stack(halfway), torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64))
    with pytest.raises(ValueError, match="no Markov chain"):
        linear_schedule(VOCABULARY, 10, alpha_bar=(0.5, 0.9), gamma_bar=(0.01, 0.05))
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        hybrid_schedule(VOCABULARY, replace=0.5)


@pytest.mark.parametrize("exact", [True, False])
def test_mask_tokens(exact, generator):
    x0 = torch.randint(8, (2000, 10), generator=generator)
    ratio = torch.linspace(0, 1, 2000)
    xt, masked = mask_tokens(x0, 8, ratio, generator, exact=exact)
    assert (xt == 8).equal(masked)
    assert xt[~masked].equal(x0[~masked])
    assert masked.any(1).all()
    assert masked[-1].all()
    if exact:
        assert masked.sum(1).equal((ratio * 10).round().clamp(min=1).long())
    assert masked.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert masked.float().mean(0).std() < 0.02  # no place is preferred
    again = mask_tokens(x0[:3], 8, ratio[:3], torch.Generator().manual_seed(1), exact=exact)[1]
    assert again.equal(mask_tokens(x0[:3], 8, ratio[:3], torch.Generator().manual_seed(1), exact=exact)[1])


def test_cosine_ratio():
    assert torch.allclose(cosine_ratio(torch.tensor([0.0, 2 / 3, 1.0])), torch.tensor([1.0, 0.5, 0.0]), atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_cross_entropy(smoothing, generator):
    logits, x0 = torch.randn(3, 4, 5, generator=generator), torch.randint(5, (3, 4), generator=generator)
    masked = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1]]).bool()
    weight = torch.tensor([100.0, 2.0, 1.0])
    top, bottom, plain = 0.0, 0.0, []
    for b, n in masked.nonzero():
        log_p = logits[b, n].double().log_softmax(0)
        loss = -(1 - smoothing) * log_p[x0[b, n]] - smoothing * log_p.mean()
        plain.append(loss)
        w = min(weight[b].item(), 10.0)
        top, bottom = top + w * loss, bottom + w
    got = masked_cross_entropy(logits, x0, masked, label_smoothing=smoothing)
    assert got.item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-5)
    got = masked_cross_entropy(logits, x0, masked, weight, smoothing)
    assert got.item() == pytest.approx((top / bottom).item(), rel=1e-5)
    assert masked_cross_entropy(logits.bfloat16(), x0, masked).dtype == torch.float32


def test_masked_cross_entropy_without_masks_is_zero_and_differentiable():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_cross_entropy(logits, torch.zeros(2, 3).long(), torch.zeros(2, 3).bool(), torch.ones(2))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_times_are_uniform_until_each_is_known(generator):
    sampler = TimeSampler(4)
    assert torch.allclose(sampler.probabilities(), torch.full((4,), 0.25))
    for _ in range(10):
        sampler.record(torch.arange(4), torch.tensor([9.0, 1.0, 2.0, 3.0]))
    assert torch.allclose(sampler.probabilities(), torch.full((4,), 0.25))
    sampler.record(torch.arange(4), torch.tensor([9.0, 1.0, 2.0, 3.0]))
    assert torch.allclose(sampler.probabilities(), torch.tensor([1, 1, 2, 3]) / 7, atol=1e-3)
    steps, p = sampler.sample(20_000, generator)
    assert torch.allclose(torch.bincount(steps) / 20_000, sampler.probabilities(), atol=0.02)
    assert p.equal(sampler.probabilities()[steps])


def test_times_are_remembered_over_a_resume():
    sampler = TimeSampler(4)
    for _ in range(11):
        sampler.record(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([1.0, 2.0, 3.0, 4.0, 8.0]))
    assert sampler.history[3].item() == pytest.approx(40 * (1 - 0.9**11))  # repeats count with their mean square
    resumed = TimeSampler(4)
    resumed.load_state_dict(copy.deepcopy(sampler.state_dict()))
    for one in (sampler, resumed):
        one.record(torch.tensor([2]), torch.tensor([7.0]))
    draws = [one.sample(50, torch.Generator().manual_seed(3))[0] for one in (sampler, resumed)]
    assert draws[0].equal(draws[1])
