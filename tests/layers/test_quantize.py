"""Codes: round trips, learning, restarts, and that a killed run goes on to the bit."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from ideomotor.layers import quantize
from ideomotor.layers.quantize import FSQ, EMACodebook, LearnedCodebook, perplexity

QUANTIZERS = {"ema": lambda: EMACodebook(16, 4), "fsq": lambda: FSQ((8, 5, 5, 5)), "fsq even": lambda: FSQ((8, 8, 8))}


def batches(count, vectors=40, width=4):
    return [torch.randn(vectors, width, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    return QUANTIZERS[request.param]()


@pytest.mark.parametrize("training", [True, False])
def test_interface(quantizer, training, generator):
    quantizer.train(training)
    z = torch.randn(2, 3, 5, quantizer.width, generator=generator, requires_grad=True)
    before = copy.deepcopy(quantizer)
    quantized, ids, loss = quantizer(z)
    assert quantized.shape == z.shape
    assert ids.shape == z.shape[:-1]
    assert ids.dtype == torch.long
    assert loss.shape == ()
    assert ((ids >= 0) & (ids < quantizer.size)).all()
    if not training:
        assert quantized.equal(before.lookup(ids))
        assert all(a.equal(b) for a, b in zip(before.buffers(), quantizer.buffers(), strict=True))
    (quantized.sum() + loss).backward()
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0


def test_half_precision_does_not_change_the_choice(quantizer, generator):
    quantizer.eval()
    z = torch.randn(64, quantizer.width, generator=generator).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        quantized, ids, loss = quantizer(z)
    assert ids.equal(quantizer(z.float())[1])
    assert quantized.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_wrong_width_is_refused(quantizer):
    with pytest.raises(ValueError, match="width"):
        quantizer(torch.zeros(2, quantizer.width + 1))


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8), (2, 3)])
def test_fsq_round_trip(levels):
    fsq = FSQ(levels)
    ids = torch.arange(fsq.size)
    vectors = fsq.lookup(ids)
    assert len(vectors.unique(dim=0)) == fsq.size
    assert vectors.abs().max() < 1
    assert torch.allclose(vectors.mean(0), torch.zeros(fsq.width), atol=1e-6)  # symmetric about 0
    quantized, again, loss = fsq(vectors.atanh())
    assert again.equal(ids)
    assert quantized.equal(vectors)
    assert loss.item() == 0


def test_fsq_extremes_and_gradient():
    fsq = FSQ((8, 5))
    z = torch.tensor([[1e9, -1e9], [0.3, -0.2]], requires_grad=True)
    quantized, ids, _ = fsq(z)
    assert ids[0].item() == 7
    assert quantized[0].tolist() == [0.875, pytest.approx(-0.8)]
    quantized.sum().backward()
    assert torch.allclose(z.grad, 1 - z.detach().tanh().square())
    assert (quantized[1] - z[1].tanh()).abs().max() <= 0.2
    with pytest.raises(ValueError, match="2 levels"):
        FSQ((8, 1))


def test_fsq_saves_nothing():
    assert not FSQ((8, 5)).state_dict()


def test_nearest_code_in_small_pieces(monkeypatch, generator):
    monkeypatch.setattr(quantize, "_SCORES_AT_ONCE", 50)
    book = EMACodebook(16, 4).eval()
    z = torch.randn(41, 4, generator=generator)
    quantized, ids, loss = book(z)
    assert ids.equal(torch.cdist(z, book.codes).argmin(1))
    assert loss.item() == pytest.approx(0.25 * (z - book.codes[ids]).square().mean().item(), rel=1e-6)
    assert quantized.equal(book.codes[ids])


def test_begins_as_vectors_of_the_first_batch():
    book = EMACodebook(16, 4)
    (z,) = batches(1)
    quantized, _, _ = book(z)
    assert bool(book.initialised)
    distance = torch.cdist(quantized, z).min(1).values  # codes before the update
    assert distance.max() < 1e-3
    few = EMACodebook(16, 4)
    few(z[:5])
    assert len(few.codes.unique(dim=0)) == 16  # repeated vectors are told apart by noise


def test_running_averages():
    book = EMACodebook(8, 4, decay=0.9, restart_below=0.0)
    first, second = batches(2)
    book(first)
    counts, sums, codes = book.counts.clone(), book.sums.clone(), book.codes.clone()
    ids = torch.cdist(second, codes).argmin(1)
    book(second)
    hot = torch.nn.functional.one_hot(ids, 8).float()
    assert torch.allclose(book.counts, 0.9 * counts + 0.1 * hot.sum(0))
    assert torch.allclose(book.sums, 0.9 * sums + 0.1 * hot.T @ second, atol=1e-6)
    assert torch.allclose(book.codes, book.sums / book.counts[:, None], atol=1e-4)


@pytest.mark.parametrize("restart_sums", [True, False])
def test_unused_codes_are_restarted_on_vectors_of_the_batch(restart_sums):
    book = EMACodebook(8, 4, restart_sums=restart_sums)
    first, second = batches(2, vectors=400)
    book(first)
    book.codes[:3], book.counts[:3] = 1e3, 0.5
    book(second)
    assert (book.codes[:3, None] == second).all(-1).any(1).all()
    if restart_sums:
        assert book.counts[:3].equal(torch.ones(3))
        assert book.sums[:3].equal(book.codes[:3])
    else:
        assert (book.counts[:3] < 1).all()


def test_learns_clusters_and_uses_all_codes(generator):
    centres = 5 * torch.randn(16, 4, generator=generator)
    book = EMACodebook(16, 4)
    for _ in range(150):
        z = centres[torch.randint(16, (256,), generator=generator)] + 0.05 * torch.randn(256, 4, generator=generator)
        _, ids, loss = book(z)
    assert perplexity(ids, 16) > 12
    assert loss < 0.05 * 0.25 * z.square().mean()


def test_resumes_to_the_bit():
    data = batches(8)
    straight = EMACodebook(16, 4)
    for z in data:
        straight(z)
    killed = EMACodebook(16, 4)
    for z in data[:3]:
        killed(z)
    resumed = EMACodebook(16, 4)
    resumed.load_state_dict(copy.deepcopy(killed.state_dict()))
    torch.rand(7)  # the global generator plays no part
    for z in data[3:]:
        resumed(z)
    for name, value in straight.state_dict().items():
        assert value.equal(resumed.state_dict()[name]), name


def test_seeds_differ():
    books = [EMACodebook(16, 4, seed=seed) for seed in (0, 0, 1)]
    for book in books:
        book(batches(1)[0])
    assert books[0].codes.equal(books[1].codes)
    assert not books[0].codes.equal(books[2].codes)


def test_perplexity():
    assert perplexity(torch.zeros(10).long(), 4).item() == pytest.approx(1)
    assert perplexity(torch.arange(8).view(2, 4) % 4, 4).item() == pytest.approx(4)


def _one_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    book = EMACodebook(8, 4)
    for z in batches(4):
        book(z.chunk(2)[rank])
    torch.save(book.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_one_codebook(tmp_path):
    mp.spawn(_one_rank, (str(tmp_path),), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in one.items():
        assert value.equal(two[name]), name
    lone = EMACodebook(8, 4, restart_below=0.0)
    lone.load_state_dict(one)
    lone(batches(5)[4])
    assert bool(one["initialised"])
    assert one["counts"].sum() > 8.1  # both ranks' 20 vectors count: 8 -> 40 by a hundredth a step


def test_a_learned_codebook_is_drawn_both_ways(generator):
    book = LearnedCodebook(16, 4, commitment=0.5)
    assert book.codes.weight.abs().max() <= 1 / 16
    z = torch.randn(3, 5, 4, generator=generator).requires_grad_()
    quantized, ids, loss = book(z)
    assert ids.equal(torch.cdist(z, book.codes.weight).argmin(-1)) and quantized.equal(book.lookup(ids))
    error = (z - quantized).detach()
    assert loss.item() == pytest.approx(1.5 * error.square().mean().item(), rel=1e-6)
    (loss + quantized.sum()).backward()
    torch.testing.assert_close(z.grad, 1 + 0.5 * 2 * error / error.numel())  # straight through, and the commitment
    wanted = torch.zeros(16, 4).index_add_(0, ids.flatten(), -2 * error.view(-1, 4) / error.numel())
    torch.testing.assert_close(book.codes.weight.grad, wanted)
    with pytest.raises(ValueError, match="at least 1"):
        LearnedCodebook(0, 4)
