"""Samplers against exact distributions on tiny vocabularies, and their promises about given positions."""

import itertools
import math

import pytest
import torch

from ideomotor.diffusion.discrete import MaskReplace, log_one_hot
from ideomotor.diffusion.samplers import ancestral, decoding_nll, draw, guide, halton_ranks, parallel_decode, truncate
from ideomotor.diffusion.schedule import Vocabulary, hybrid_schedule

K, N, DRAWS = 3, 3, 20_000
MASK = K


@pytest.fixture
def joint(generator):
    """A strongly dependent distribution of three tokens."""
    return torch.randn(K, K, K, generator=generator, dtype=torch.float64).mul(1.5).flatten().softmax(0).view(K, K, K)


def conditionals(joint):
    """Returns the network that knows, for every position, its exact distribution given the tokens that are there."""
    table = torch.zeros(K + 1, K + 1, K + 1, N, K, dtype=torch.float64)
    for state in itertools.product(range(K + 1), repeat=N):
        known = joint
        for axis, token in enumerate(state):
            if token != MASK:
                keep = torch.zeros(K, dtype=torch.float64)
                keep[token] = 1
                known = known * keep.view([-1 if a == axis else 1 for a in range(N)])
        for axis in range(N):
            marginal = known.sum([a for a in range(N) if a != axis])
            table[(*state, axis)] = (marginal / marginal.sum()).log()
    return lambda x: table[x[:, 0], x[:, 1], x[:, 2]]


def frequencies(x):
    return torch.bincount((x * torch.tensor([K * K, K, 1])).sum(1), minlength=K**N).double() / len(x)


def check(got, wanted, draws=DRAWS):
    """Holds the chi-square statistic under its mean plus six standard deviations, for a fixed seed."""
    seen = wanted > 0
    assert not got[~seen].any()
    chi = (draws * (got - wanted)[seen].square() / wanted[seen]).sum().item()
    freedom = int(seen.sum()) - 1
    assert chi < freedom + 6 * math.sqrt(2 * freedom)


def masks(batch=DRAWS, n=N, mask=MASK):
    return torch.full((batch, n), mask)


@pytest.mark.parametrize("order", ["halton", "random"])
@pytest.mark.parametrize("remask", [0.0, 0.5])
def test_one_token_a_call_draws_from_the_joint(joint, generator, order, remask):
    x = parallel_decode(conditionals(joint), masks(), MASK, N, order, 1.0, generator=generator, remask=remask)
    check(frequencies(x), joint.flatten())


def test_one_pass_draws_from_the_product_of_marginals(joint, generator):
    x = parallel_decode(conditionals(joint), masks(), MASK, 1, "random", 1.0, generator=generator)
    a, b, c = joint.sum((1, 2)), joint.sum((0, 2)), joint.sum((0, 1))
    check(frequencies(x), torch.einsum("i,j,k->ijk", a, b, c).flatten())


def test_given_tokens_condition_the_others(joint, generator):
    start = masks()
    start[:, 1] = 2
    x = parallel_decode(conditionals(joint), start, MASK, 2, "random", 1.0, generator=generator)
    wanted = torch.zeros_like(joint)
    wanted[:, 2] = joint[:, 2] / joint[:, 2].sum()
    check(frequencies(x), wanted.flatten())


def test_temperature(generator):
    logits = torch.tensor([0.3, -1.0, 1.2])
    x = parallel_decode(lambda x: logits.expand(*x.shape, 3), masks(n=1), MASK, 1, temperature=0.5, generator=generator)
    check(torch.bincount(x[:, 0], minlength=3) / DRAWS, (logits.double() / 0.5).softmax(0))


def test_draw(generator):
    p = torch.tensor([0.0, 0.4, 0.1, 0.3, 0.0, 0.2])
    check(torch.bincount(draw(p.expand(DRAWS, 6), generator=generator), minlength=6) / DRAWS, p.double())
    check(torch.bincount(draw(7 * p.expand(DRAWS, 6), generator=generator), minlength=6) / DRAWS, p.double())
    kept = torch.tensor([0.0, 4 / 7, 0.0, 3 / 7, 0.0, 0.0], dtype=torch.float64)
    check(torch.bincount(draw(p.expand(DRAWS, 6), 0.65, generator), minlength=6) / DRAWS, kept)
    assert (draw(p.expand(50, 6), 1e-9, generator) == 1).all()


@pytest.mark.parametrize("order", ["confidence", "halton", "random"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("remask", [0.0, 0.4])
@pytest.mark.parametrize("steps", [1, 3, 8, 50])
def test_promises(order, temperature, remask, steps, generator):
    table = torch.randn(24, 25, 8, generator=generator)
    start = torch.randint(9, (5, 24), generator=generator)
    start[0], start[1], start[2, 3:] = 8, torch.arange(24) % 8, 1  # all masked, none, at most three
    states = []

    def network(x):
        states.append(x.clone())
        return table[:, : x.shape[1]].expand(24, 24, 8)[torch.arange(24), x.clamp(max=23)]

    before = start.clone()
    x = parallel_decode(
        network,
        start,
        8,
        steps,
        order,
        temperature,
        0.9,
        generator,
        grid=(4, 6) if order == "halton" else None,
        remask=remask,
    )
    given = start != 8
    assert start.equal(before)
    assert (x < 8).all()
    assert len(states) == min(steps, 24)
    for state in states:
        assert state[given].equal(start[given])
    assert x[given].equal(start[given])
    left = torch.stack([(state == 8).sum(1) for state in states])
    if steps <= 8:
        assert left[:, 0].tolist() == [int(24 * math.cos(math.pi / 2 * call / steps)) for call in range(steps)]
    assert (left.diff(dim=0) < 0)[left[:-1] > 0].all()  # every call sets a token where one is missing


def test_nothing_to_do(generator):
    x = torch.tensor([[1, 2]])
    assert parallel_decode(lambda x: pytest.fail("no call is needed"), x, 3, 4).equal(x)


def test_argmax_and_confidence_order():
    logits = torch.tensor([[[0.0, 1.0], [5.0, 0.0], [0.0, 3.0]]])
    seen = []
    x = parallel_decode(lambda x: seen.append(x.tolist()[0]) or logits, torch.full((1, 3), 2), 2, 3)
    assert seen == [[2, 2, 2], [2, 0, 2], [2, 0, 1]]
    assert x.tolist() == [[1, 0, 1]]


def test_same_generator_same_tokens():
    table = torch.randn(1, 12, 6, generator=torch.Generator().manual_seed(2))
    draws = [
        parallel_decode(
            lambda x: table.expand(len(x), -1, -1), masks(4, 12, 6), 6, 4, "random", 1.0,
            generator=torch.Generator().manual_seed(seed), remask=0.2,
        )
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_remasking_repairs_early_mistakes(generator):
    """The network errs while it sees nothing and knows the answer (class 1) from one neighbour on."""

    def network(x):
        lost = (x == 2).all(1)[:, None, None]
        return torch.where(lost, torch.tensor([0.0, 0.0]), torch.tensor([-9.0, 9.0])).expand(*x.shape, 2)

    right = []
    for remask in (0.0, 0.5):
        x = parallel_decode(network, masks(500, 16, 2), 2, 4, "random", 1.0, generator=generator, remask=remask)
        right.append((x == 1).double().mean().item())
    assert right[1] > right[0] + 0.01


@pytest.mark.parametrize("grid", [(7,), (4, 4), (12, 12), (24, 24), (3, 5, 2), (2, 2, 3, 2)])
def test_halton_ranks_visit_every_cell_once(grid):
    ranks = halton_ranks(grid, math.prod(grid))
    assert ranks.sort()[0].equal(torch.arange(math.prod(grid)))


def test_halton_spreads_out():
    """Every six points in a row lie in the six different boxes of a half by a third."""
    first = (halton_ranks((8, 9), 72).view(8, 9) < 6).nonzero() // torch.tensor([4, 3])
    assert len(first.unique(dim=0)) == 6


def test_wrong_use_is_refused():
    network = lambda x: torch.zeros(*x.shape, 4)  # noqa: E731
    x = torch.full((1, 4), 4)
    for wrong in ({"steps": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"remask": 1.5}, {"order": "best"}):
        with pytest.raises(ValueError, match="wanted"):
            parallel_decode(network, x, 4, **{"steps": 2, **wrong})
    with pytest.raises(ValueError, match="grid"):
        parallel_decode(network, x, 4, 2, "halton", grid=(3, 2))
    with pytest.raises(ValueError, match="leave the mask's class out"):
        parallel_decode(network, torch.full((1, 4), 3), 3, 2)


def test_truncation():
    log_p = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    assert (truncate(log_p, 0.6) > -70).tolist() == [[[True, True, False, False]]]
    assert (truncate(log_p, 0.5) > -70).sum() == 1
    assert truncate(log_p, 1.0).equal(log_p)


def test_guidance_is_normalised(generator):
    a, b = (
        torch.nn.functional.pad(torch.randn(2, 3, 4, generator=generator).log_softmax(-1), (0, 1), value=-70.0)
        for _ in "ab"
    )
    assert torch.allclose(guide(a, b, 2.0)[..., :-1].exp().sum(-1), torch.ones(2, 3))
    assert torch.allclose(guide(a, b, 1.0), a, atol=1e-6)


@pytest.mark.parametrize("replace", [0.0, 0.2])
def test_ancestral_chain_draws_from_the_data(replace, generator):
    """With the exact distribution of clean tokens for a network, the chain ends in the data's distribution."""
    vocabulary = Vocabulary((3, 2))
    process = MaskReplace(vocabulary, hybrid_schedule(vocabulary, 8, replace), vocabulary.layout((1, 1)))
    data = torch.tensor([[0.2, 0.7, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 0.9, 0.1]])  # independent positions
    hot = log_one_hot(torch.arange(5)[:, None].expand(5, 2), 6)  # every class as x0

    def network(x, step):
        assert (step == step[0]).all()
        likelihood = process.log_marginal(hot, step[:1].expand(5)).exp()  # class, position, noised
        scores = torch.stack([data[n] * likelihood[:, n, x[:, n]].T for n in range(2)], 1)
        return scores.log()

    x = ancestral(network, masks(DRAWS, 2, 5), process, generator=generator)
    for n in range(2):
        check(torch.bincount(x[:, n], minlength=5) / DRAWS, data[n].double())


def test_ancestral_keeps_what_is_given(generator):
    vocabulary = Vocabulary((3, 2))
    process = MaskReplace(vocabulary, hybrid_schedule(vocabulary, 5, 0.2), vocabulary.layout((4, 2)))
    start = torch.tensor([[0, 5, 2, 5, 4, 5]]).expand(64, 6)
    x = ancestral(lambda x, step: torch.zeros(*x.shape, 5), start, process, top_p=0.9, generator=generator)
    given = start != 5
    assert x[given].equal(start[given])
    assert (x[:, :4] < 3).all()
    assert ((x[:, 4:] == 3) | (x[:, 4:] == 4)).all()


def test_what_decoding_spends_on_a_sample_is_its_likelihood(joint, generator):
    """One token a call is the chain rule, exact in any order; one call in all is a product of marginals."""
    network = conditionals(joint)
    x0 = torch.tensor(list(itertools.product(range(K), repeat=N)))
    for seed in range(3):
        spent = decoding_nll(network, x0, MASK, N, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(spent * N, -joint.flatten().log())
    marginals = [joint.sum([a for a in range(N) if a != axis]) for axis in range(N)]
    wanted = -sum(marginals[axis][x0[:, axis]].log() for axis in range(N))
    torch.testing.assert_close(decoding_nll(network, x0, MASK, 1) * N, wanted)
    # On average over the joint, more calls are never worse.
    mean = [float((decoding_nll(network, x0, MASK, k, generator) * joint.flatten()).sum()) for k in (1, 2, 3)]
    assert mean[0] >= mean[1] - 0.05 and mean[2] <= mean[0]
    with pytest.raises(ValueError, match="at least 1"):
        decoding_nll(network, x0, MASK, 0)
