"""The fused head against the plain one in float64, by blocks of odd sizes."""
import pytest
import torch

import kernels
from kernels import fused_logps
from sample import pack


def plain(hidden, weight, ids, temperature, forbidden, allowed):
    logits = hidden @ weight.T / temperature
    if forbidden is not None:
        logits = logits.masked_fill(forbidden, -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    log_probs = logits.log_softmax(dim=-1)
    entropy = -(log_probs.exp() * log_probs.masked_fill(log_probs == -torch.inf, 0.0)).sum(dim=-1)
    return log_probs.gather(-1, ids), entropy


@pytest.mark.parametrize('N, K, V, D, block', [(5, 1, 13, 4, 8), (7, 3, 50, 8, 120), (64, 2, 100, 16, 2 ** 23), (1, 1, 9, 4, 1), (30, 1, 257, 8, 1000)])
@pytest.mark.parametrize('temperature, scale, masks', [(1.0, 1.0, False), (0.7, 1.0, True), (1.3, 100.0, False)])
def test_values_and_gradients(monkeypatch, N, K, V, D, block, temperature, scale, masks):
    """Values to 1e-5, gradients of log-probs and entropy to 1e-5 of their norm; first and last id, logits of +-500, forbidden and cut-off tokens."""
    monkeypatch.setattr(kernels, 'BLOCK', block)
    torch.manual_seed(N)
    hidden, weight = (scale * torch.randn(N, D, dtype=torch.float64)).requires_grad_(), torch.randn(V, D, dtype=torch.float64).requires_grad_()
    ids = torch.randint(V, (N, K))
    ids[0, 0], ids[-1, -1] = 0, V - 1
    forbidden = allowed = None
    if masks:
        forbidden, allowed = torch.rand(V) < 0.2, torch.rand(N, V) < 0.7
        forbidden[ids.flatten()] = False
        allowed.scatter_(1, ids, True)
    g, h = torch.randn(N, K), torch.randn(N)
    inputs = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    logps, entropy = fused_logps(*inputs, ids, temperature, forbidden, pack(allowed) if masks else None)
    wanted_logps, wanted_entropy = plain(hidden, weight, ids, temperature, forbidden, allowed)
    tolerance = dict(atol=1e-5 * max(1.0, wanted_logps.abs().max().item()), rtol=0)
    torch.testing.assert_close(logps.double(), wanted_logps, **tolerance)
    torch.testing.assert_close(entropy.double(), wanted_entropy, **tolerance)
    ((logps * g).sum() + (entropy * h).sum()).backward()
    ((wanted_logps * g).sum() + (wanted_entropy * h).sum()).backward()
    for mine, theirs in zip(inputs, (hidden, weight)):
        assert torch.isfinite(mine.grad).all()
        assert (mine.grad - theirs.grad).norm() <= (1e-5 if scale == 1 else 1e-3) * theirs.grad.norm().clamp(min=1e-3)


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


def test_bf16_is_as_close_as_its_inputs():
    """Statistics are fp32: against float64 on the same bf16 numbers, only the logits' own rounding is left."""
    hidden, weight, ids = torch.randn(40, 32).bfloat16(), torch.randn(500, 32).bfloat16(), torch.randint(500, (40, 1))
    wanted, _ = plain(hidden.double(), weight.double(), ids, 1.0, None, None)
    logps, _ = fused_logps(hidden, weight, ids)
    assert logps.dtype == torch.float32 and (logps.double() - wanted).abs().max() < 0.1
