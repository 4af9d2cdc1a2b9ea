"""The fused head against the plain one in float64, in chunks of odd sizes; its Triton kernels too, on a GPU or through the interpreter."""
import pytest
import torch

import kernels
from grpo import LOSS_TYPES, kl_estimate, policy_loss
from kernels import fused_logps, fused_loss, pack, row_grads_torch, row_stats_torch
from tools.bench import peak_memory

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
NEEDS_TRITON = pytest.mark.skipif(kernels.triton is None, reason="triton has no wheel for this platform")
TWO_PASSES = [pytest.param('torch'), pytest.param('triton', marks=NEEDS_TRITON)]


def passes(way):
    return (row_stats_torch, row_grads_torch) if way == 'torch' else (kernels.row_stats_triton, kernels.row_grads_triton)


@pytest.fixture(params=TWO_PASSES)
def way(request, monkeypatch):
    """Both ways to make the two passes, under everything that is built on them."""
    stats, grads = passes(request.param)
    monkeypatch.setattr(kernels, 'row_stats', stats)

    def row_grads(z, dtype, *arguments):
        dz = torch.empty_like(z, dtype=dtype)
        grads(z, dz, *arguments)
        return dz
    if request.param == 'triton' or DEVICE == 'cpu':
        monkeypatch.setattr(kernels, 'row_grads', row_grads)
    return request.param


def plain(hidden, weight, ids, temperature, forbidden, allowed):
    logits = hidden @ weight.T / temperature
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    log_probs = logits.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(dim=-1)
    return log_probs.gather(-1, ids), entropy


@pytest.mark.parametrize('sizes', [(5, 1, 13, 4, 8), (7, 3, 50, 8, 120), (64, 2, 100, 16, 2 ** 23), (1, 1, 9, 4, 1), (30, 1, 257, 8, 1000)])
@pytest.mark.parametrize('temperature, scale, masks', [(1.0, 1.0, False), (0.7, 1.0, True), (1.3, 100.0, False)])
def test_values_and_gradients(monkeypatch, way, sizes, temperature, scale, masks):
    """Values and gradients to 1e-5 (of their norm); first and last id, logits of +-500, forbidden and cut-off tokens."""
    N, K, V, D, block = sizes
    monkeypatch.setattr(kernels, 'BLOCK', block)
    monkeypatch.setattr(kernels, 'CHUNK', {'cpu': 12 * block, 'cuda': 12 * block})
    torch.manual_seed(N)
    hidden = (scale * torch.randn(N, D, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(V, D, dtype=torch.float64).requires_grad_()
    ids = torch.randint(V, (N, K))
    ids[0, 0], ids[-1, -1] = 0, V - 1
    forbidden = allowed = None
    if masks:
        forbidden, allowed = torch.rand(V) < 0.2, torch.rand(N, V) < 0.7
        forbidden[ids.flatten()] = False
        allowed.scatter_(1, ids, True)
    g, h = torch.randn(N, K), torch.randn(N)
    inputs = [x.detach().float().to(DEVICE).requires_grad_() for x in (hidden, weight)]
    on_device = [None if x is None else x.to(DEVICE) for x in (forbidden, pack(allowed) if masks else None)]
    logps, entropy = (x.cpu() for x in fused_logps(*inputs, ids.to(DEVICE), temperature, *on_device))
    wanted_logps, wanted_entropy = plain(hidden, weight, ids, temperature, forbidden, allowed)
    tolerance = dict(atol=1e-5 * max(1.0, wanted_logps.abs().max().item()), rtol=0)
    torch.testing.assert_close(logps.double(), wanted_logps, **tolerance)
    torch.testing.assert_close(entropy.double(), wanted_entropy, **tolerance)
    ((logps * g).sum() + (entropy * h).sum()).backward()
    ((wanted_logps * g).sum() + (wanted_entropy * h).sum()).backward()
    for mine, theirs in zip(inputs, (hidden, weight), strict=True):
        assert torch.isfinite(mine.grad).all()
        assert (mine.grad.cpu() - theirs.grad).norm() <= (1e-5 if scale == 1 else 1e-3) * theirs.grad.norm().clamp(min=1e-3)


def test_log_probs_alone_and_frozen_weights():
    """Without a gradient for the entropy or the weight, none is made up; a vector of ids gives a vector of log-probs."""
    hidden, weight, ids = torch.randn(6, 4, requires_grad=True), torch.randn(11, 4), torch.randint(11, (6,))
    logps, entropy = fused_logps(hidden, weight, ids)
    assert logps.shape == entropy.shape == (6,)
    logps.sum().backward()
    mine, hidden.grad = hidden.grad, None
    (hidden @ weight.T).log_softmax(-1).gather(-1, ids[:, None]).sum().backward()
    torch.testing.assert_close(mine, hidden.grad)
    with torch.no_grad():
        assert torch.equal(fused_logps(hidden, weight, ids)[0], logps)


def test_no_rows_at_all():
    """A micro-batch whose answers were all cut off: nothing, and a gradient of zeros."""
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)
    logps, entropy = fused_logps(hidden, weight, torch.zeros(0, 1, dtype=torch.long))
    (logps.sum() + entropy.sum()).backward()
    assert logps.shape == (0, 1) and weight.grad.abs().max() == 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_is_as_close_as_its_inputs(dtype):
    """Statistics are fp32: against float64 only the logits' own rounding is left; a loss of 1e-6 a token keeps its gradient."""
    torch.manual_seed(0)
    hidden = torch.randn(4, 10, 32).to(DEVICE, dtype).requires_grad_()
    weight, ids = torch.randn(500, 32).to(DEVICE, dtype).requires_grad_(), torch.randint(500, (4, 1, 10))
    h, w = (x.detach().double().cpu().requires_grad_() for x in (hidden, weight))
    wanted, _ = plain(h.view(40, 32), w, ids.view(40, 1), 1.0, None, None)
    (65536 * 1e-6 * wanted.sum()).backward()
    logps, _ = fused_logps(hidden.view(40, 32), weight, ids.view(40, 1).to(DEVICE))
    assert logps.dtype == torch.float32 and (logps.double().cpu() - wanted).abs().max() < 0.1
    mask = torch.ones(4, 1, 10, dtype=torch.bool, device=DEVICE)
    loss = fused_loss(hidden, weight, ids.to(DEVICE), mask, lambda units, logps, entropy, kl: 1e-6 * logps.sum())
    (65536 * loss).backward()
    for mine, theirs in ((hidden, h), (weight, w)):
        assert (mine.grad.double().cpu() - theirs.grad).norm() <= 2e-2 * theirs.grad.norm()


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('K, exact, temperature, tied', [(1, False, 1.0, False), (3, True, 0.8, False), (2, True, 1.3, True)])
def test_a_whole_loss_and_its_gradient(monkeypatch, way, loss_type, K, exact, temperature, tied):
    """
    Off-policy, both clips at work, shares over several chunks, padding that holds anything, g = 3, and gradients that add up where the head
    is tied.
    """
    monkeypatch.setattr(kernels, 'CHUNK', {'cpu': 32 * 37, 'cuda': 32 * 37})
    torch.manual_seed(5)
    U, R, V, D = 6, 5, 37, 8
    hidden, weight = torch.randn(U, R, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    ref_hidden, ref_weight = hidden + 0.2 * torch.randn_like(hidden), weight.clone()
    forbidden = torch.zeros(V, dtype=torch.bool)
    forbidden[[3, 20]] = True
    ids = torch.randint(4, 19, (U, K, R))
    ids[0, 0, 0], ids[1, 0, 0] = 0, V - 1
    mask = (torch.arange(R) < torch.tensor([5, 1, 3, 2, 4, 5])[:, None])[:, None].expand(U, K, R)
    advantages = torch.randn(U, K, dtype=torch.float64)

    def log_probs_of(hidden, weight):
        return (hidden @ weight.T / temperature).masked_fill(forbidden, -torch.inf).log_softmax(-1)

    with torch.no_grad():
        old = log_probs_of(hidden, weight).gather(-1, ids.transpose(1, 2)).transpose(1, 2)
        old = old + 0.4 * torch.randn(U, K, R, dtype=torch.float64)

    def plain_loss(hidden, weight):
        """Everything at once, in float64, with the logits in memory."""
        log_probs = log_probs_of(hidden, weight)
        entropy = -(log_probs.exp() * log_probs.masked_fill(forbidden, 0.0)).sum(-1)                   # (U, R)
        logps = log_probs.gather(-1, ids.transpose(1, 2)).transpose(1, 2)                              # (U, K, R)
        kl = 0.5 * (logps - old).square()
        if exact:
            kl = kl_estimate(log_probs, log_probs_of(ref_hidden, ref_weight), 'exact')[:, None].expand_as(logps)
        loss, _ = policy_loss(logps, old, advantages, mask, loss_type)
        return loss + 0.1 * (kl * mask).sum() / mask.sum() - 0.05 * (entropy[:, None] * mask).sum() / mask.sum()

    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    wanted = plain_loss(h, w)
    (3 * wanted + (w[ids[mask]].sum() if tied else 0.0)).backward()

    nan = float('nan')  # in what is not looked at
    h2, w2, old2, advantages2 = (x.float().to(DEVICE) for x in (hidden, weight, old.masked_fill(~mask, nan), advantages))
    h2.masked_fill_(~mask.any(dim=1)[..., None].to(DEVICE), nan), h2.requires_grad_(), w2.requires_grad_()
    mask2, ids2 = mask.to(DEVICE), ids.masked_fill(~mask, 0).to(DEVICE)
    n_completions, n_tokens, calls = mask2.any(-1).sum(), mask2.sum(), []

    def loss_of(units, logps, entropy, kl):
        calls.append(units)
        loss, _ = policy_loss(logps, old2[units], advantages2[units], mask2[units], loss_type,
                              n_completions=n_completions, n_tokens=n_tokens)
        kl = kl if exact else 0.5 * (logps - old2[units]).square().masked_fill(~mask2[units], 0.0)
        return loss + 0.1 * (kl * mask2[units]).sum() / n_tokens - 0.05 * (entropy * mask2[units]).sum() / n_tokens

    references = [x.float().to(DEVICE) for x in (ref_hidden, ref_weight)] if exact else []
    loss = fused_loss(h2, w2, ids2, mask2, loss_of, temperature, forbidden.to(DEVICE), None, *references)
    (3 * loss + (w2[ids2[mask2]].sum() if tied else 0.0)).backward()
    assert len(calls) > 1 and loss.item() == pytest.approx(wanted.item(), abs=1e-5)
    h.grad[~mask.any(dim=1)] = 0
    for mine, theirs in ((h2.grad, h.grad), (w2.grad, w.grad)):
        assert (mine.cpu() - theirs).norm() <= 1e-5 * theirs.norm()


def test_without_gradients_only_the_loss_is_made():
    hidden, weight, ids, wanted = torch.randn(2, 3, 4), torch.randn(11, 4, requires_grad=True), torch.randint(11, (2, 1, 3)), []

    def loss_of(units, logps, entropy, kl):
        wanted.append(logps.requires_grad)
        return -logps.sum()
    with torch.no_grad():
        loss = fused_loss(hidden, weight, ids, torch.ones(2, 1, 3, dtype=torch.bool), loss_of)
    assert wanted == [False]
    torch.testing.assert_close(loss, -(hidden @ weight.T).log_softmax(-1).gather(-1, ids.transpose(1, 2)).sum())
    assert not loss.requires_grad


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_kernels_equal_torch(dtype):
    """
    The same numbers from both, over extreme rows: +-500, a one-hot peak, NaN without a gradient; a vocabulary no block divides, in rows of
    a longer stride with NaN behind it; forbidden ids, and bits of each row.
    """
    if kernels.triton is None:
        pytest.skip("triton has no wheel for this platform")
    torch.manual_seed(0)
    N, V, K = 37, 1003, 3
    z = 3 * torch.randn(N, V)
    z[0] += 500
    z[1] -= 500
    z[2, 7] = 300.0
    z_ref = z + torch.randn(N, V)
    z[3] = float('nan')

    def in_room(x):
        room = torch.full((N, V + -V % 16), float('nan'), device=DEVICE, dtype=dtype)
        room[:, :V] = x
        return room[:, :V]

    z, z_ref = in_room(z), in_room(z_ref)
    forbidden, allowed = (torch.rand(V) < 0.1).to(DEVICE), torch.rand(N, V) < 0.6
    ids = torch.randint(V, (N, K))
    ids[4, 0], ids[5, 0] = 0, V - 1
    allowed = pack(allowed.scatter(1, ids, True)).to(DEVICE)
    ids = ids.to(DEVICE)
    forbidden[ids.flatten()] = False
    grads = torch.randn(N, K), torch.randn(N, 1), torch.randn(N, 1)
    for g in grads:
        g[3] = 0.0
    grads = [g.to(DEVICE) for g in grads]
    results = []
    for stats, back in (passes('torch'), passes('triton')):
        logps, *rest = stats(z, ids, 1 / 0.7, forbidden, z_ref, allowed)
        dz = in_room(torch.full((N, V), float('nan')))
        back(z, dz, ids, 1 / 0.7, forbidden, [torch.nan_to_num(s) for s in rest], grads, z_ref, allowed)
        results.append((logps, *rest, dz.float()))
    good = torch.arange(N, device=DEVICE) != 3
    atol, rtol = (1e-5, 1e-4) if dtype == torch.float32 else (2e-2, 1e-2)
    for mine, theirs in zip(results[1], results[0], strict=True):
        row_atol = 2e-4 if mine.shape[1] == 1 else atol  # a normaliser near 700 has 6e-5 to lose
        torch.testing.assert_close(mine[good], theirs[good], atol=row_atol, rtol=rtol)
    assert (results[1][-1][3] == 0).all() and (results[0][-1][3] == 0).all()


def test_memory_does_not_grow_with_the_vocabulary():
    """N = 4096, V = 50,000: 820 MB of logits never exist. Above inputs and gradients less than 300 MB; the plain way takes gigabytes."""
    N, V, D = 4096, 50_000, 64

    def peak(way):
        hidden, weight, ids = torch.randn(N, D, requires_grad=True), torch.randn(V, D, requires_grad=True), torch.randint(V, (N,))
        bytes_above = peak_memory(lambda: way(hidden, weight, ids).backward())
        return bytes_above - 4 * (hidden.numel() + weight.numel())

    def by_fused_loss(h, w, ids):
        mask = torch.ones(64, 1, 64, dtype=torch.bool)
        return fused_loss(h.view(64, 64, D), w, ids.view(64, 1, 64), mask, lambda units, logps, entropy, kl: -logps.mean())

    logps = peak(lambda h, w, ids: -fused_logps(h, w, ids)[0].sum())
    loss = peak(by_fused_loss)
    plain = peak(lambda h, w, ids: -(h @ w.T).log_softmax(-1).gather(-1, ids[:, None]).sum())
    print("peak above inputs and gradients in MB:", *(n >> 20 for n in (logps, loss, plain)))
    assert logps < 300e6 and loss < 300e6 < 1.5e9 < plain


@pytest.mark.gpu
def test_a_gpu_computes_what_float64_does():
    torch.manual_seed(0)
    hidden, weight, ids = torch.randn(64, 32), torch.randn(1000, 32), torch.randint(1000, (64, 3))
    found = fused_logps(hidden.cuda(), weight.cuda(), ids.cuda())
    for ours, wanted in zip(found, plain(hidden.double(), weight.double(), ids, 1.0, None, None), strict=True):
        torch.testing.assert_close(ours.cpu().double(), wanted, atol=1e-4, rtol=1e-4)
