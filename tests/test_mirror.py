"""Mirror maps against golden numbers, the definition in float64, and what must hold of every Bregman divergence."""
import math

import pytest
import torch

from grpo import kl_estimate
from mirror import COUNTS, MirrorMap, relative_entropy, token_divergence

GRID = torch.tensor([0.01, 0.1, 0.2, 0.45, 0.5, 0.9, 1.0], dtype=torch.double)


def map_of(**values):
    """A MirrorMap of which only what is named counts."""
    mirror = MirrorMap()
    parts = dict(zip('vwbac', mirror.logs.split(COUNTS), strict=True))
    for name in 'vac':
        parts[name].fill_(-1e3)  # exp: 0
    for name, value in values.items():
        parts[name].copy_(torch.as_tensor(value).log())
    return mirror


def by_definition(mirror, p, q):
    """h(p) - h(q) - h'(q) (p - q) with h from the antiderivatives, fp64."""
    v, w, b, a, c = mirror.parameters_of(torch.double)

    def h(y):
        u = w * y[..., None, None] + b
        z = u[..., 4, :] + 1e-3
        powers = u[..., 0, :] ** 4 / 4, u[..., 1, :] ** 3 / 3, 2 / 3 * u[..., 2, :] ** 1.5, 3 / 4 * u[..., 3, :] ** (4 / 3)
        H = torch.stack((*powers, z * z.log() - z, u[..., 5, :].exp()), dim=-2) / w
        return (v * H).sum((-1, -2)) + a * y ** 2 / 2 + c * (y * y.log() - y)

    return h(p) - h(q) - mirror.gradient_map(q) * (p - q)


def test_golden_numbers():
    """Those of the published initialisation, seed 42 and scale 0.01."""
    mirror = MirrorMap()
    v, w, b, a, c = mirror.parameters_of(torch.float32)
    for value, wanted in ((v[0, 0], 0.0088226927), (w[0, 0], 0.0032885128), (b[0, 0], 0.0041178050), (a, 0.0091418466), (c, 0.0004094696)):
        assert value.item() == pytest.approx(wanted, rel=1e-6)
    for p, q, wanted in ((0.9, 0.5, 5.963720e-3), (0.5, 0.9, 5.500882e-3), (0.1, 0.2, 5.614829e-4), (0.01, 0.9, 3.094757e-2)):
        for dtype, rel in ((torch.double, 1e-6), (torch.float32, 3e-5)):
            assert mirror.divergence(torch.tensor(p, dtype=dtype), torch.tensor(q, dtype=dtype)).item() == pytest.approx(wanted, rel=rel)
    state = torch.get_rng_state()
    MirrorMap(seed=7)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('seed,scale', [(42, 0.01), (3, 1.0), (5, 3.0)])
def test_the_definition(seed, scale):
    """And each part of it alone; nowhere negative, nor where p and q differ in the seventh digit only (as written, fp32 is noise there)."""
    mirror = MirrorMap(scale, seed)
    p, q = (x.flatten() for x in torch.meshgrid(GRID, GRID, indexing='ij'))
    torch.testing.assert_close(mirror.divergence(p, q), by_definition(mirror, p, q), atol=1e-12 * scale, rtol=1e-6)
    for kind in range(6):
        v = torch.zeros(6, 21)
        v[kind] = 0.5
        alone = map_of(v=v.flatten())
        torch.testing.assert_close(alone.divergence(p, q), by_definition(alone, p, q), atol=1e-11, rtol=1e-5)
    for difference in (1e-3, 1e-5, 1e-7):
        near = mirror.divergence(GRID.float() * (1 - difference), GRID.float())
        curved = MirrorMap(scale, seed)
        exact = curved.divergence((GRID.float() * (1 - difference)).double(), GRID.float().double())
        assert (near >= 0).all()
        torch.testing.assert_close(near.double(), exact, rtol=1e-3, atol=0)
    assert (mirror.divergence(GRID, GRID) == 0).all()


def test_what_holds_of_every_bregman_divergence():
    mirror = MirrorMap(1.0, 1)
    x, y, z = (t.flatten() for t in torch.meshgrid(GRID, GRID, GRID, indexing='ij'))
    D, slope = mirror.divergence, mirror.gradient_map
    torch.testing.assert_close(D(x, z), D(x, y) + D(y, z) + (slope(y) - slope(z)) * (x - y), atol=1e-9, rtol=1e-6)  # three points
    assert (D((x + y) / 2, z) <= (D(x, z) + D(y, z)) / 2 + 1e-12).all()
    p = x.clone().requires_grad_()
    gradient, = torch.autograd.grad(D(p, z).sum(), p)
    torch.testing.assert_close(gradient, slope(x) - slope(z), atol=1e-9, rtol=1e-6)
    assert (slope(GRID).diff() > 0).all() and not torch.allclose(D(x, z), D(z, x))
    v, w, b, a, c = (part.flatten() for part in mirror.parameters_of(torch.float32))
    scaled = map_of(v=3 * v, w=w, b=b, a=3 * a, c=3 * c)
    torch.testing.assert_close(scaled.divergence(x, z), 3 * D(x, z), atol=0, rtol=1e-5)
    normal = MirrorMap(1.0, 1, normalize=True)
    half = torch.tensor(0.5, dtype=torch.double)
    assert ((normal.gradient_map(half + 1e-5) - normal.gradient_map(half - 1e-5)) / 2e-5).item() == pytest.approx(2, rel=1e-4)
    noisy = MirrorMap()
    noisy.logs += torch.randn(380, generator=torch.Generator().manual_seed(0))
    assert all((part > 0).all() for part in noisy.parameters_of(torch.float32))


def test_the_kl_and_the_square_are_among_them():
    """Over a vocabulary: c = 1 is the KL, divided by p k3, its weighted gradient the reverse KL's; a = 1 half the squared distance."""
    logits, ref = torch.randn(5, dtype=torch.double, requires_grad=True), torch.randn(5, dtype=torch.double).log_softmax(0)
    logps = logits.log_softmax(0)
    p = logps.exp()
    entropy, square = map_of(c=1.0), map_of(a=1.0)
    kl = (p * (logps - ref)).sum()
    torch.testing.assert_close(entropy.divergence(p, ref.exp()).sum(), kl)
    torch.testing.assert_close(token_divergence(logps, ref, 'neural_mirror', 'is', entropy), kl_estimate(logps, ref, 'k3'))
    torch.testing.assert_close(square.divergence(p, ref.exp()).sum(), (p - ref.exp()).square().sum() / 2)
    # sampled with its own probabilities, weighting 'is' has the gradient of the sum over the vocabulary
    for mirror, kind in ((entropy, 'neural_mirror'), (MirrorMap(1.0, 9), 'neural_mirror'), (None, 'prob_l2')):
        average = (p.detach() * token_divergence(logps, ref, kind, 'is', mirror)).sum()
        total = token_divergence(logps, ref, kind, 'token', mirror).sum()
        torch.testing.assert_close(average, total)
        gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (average, total)]
        torch.testing.assert_close(*gradients)


def test_simple_divergences_by_hand():
    logps, ref = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.25]).log()
    squares = {'l2': [math.log(2) ** 2, 0], 'prob_l2': [1 / 16, 0]}
    for kind, wanted in (squares | {f'{kind}kl': square for kind, square in squares.items()}).items():
        assert token_divergence(logps, ref, kind).tolist() == pytest.approx(wanted)
    assert token_divergence(logps, ref, 'prob_l2', 'is').tolist() == pytest.approx([1 / 8, 0])


def test_relative_entropy():
    x = torch.tensor([-1 + 1e-6, -0.5, -0.02, -0.0099, -1e-5, 0.0, 1e-5, 0.0099, 0.02, 3.0], dtype=torch.double)
    torch.testing.assert_close(relative_entropy(x), (1 + x) * torch.log1p(x) - x, atol=1e-15, rtol=1e-8)
    torch.testing.assert_close(relative_entropy(x.float()).double(), relative_entropy(x.float().double()), atol=0, rtol=1e-4)
