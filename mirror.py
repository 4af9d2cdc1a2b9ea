"""
Mirror maps: leashes to the reference other than the KL (Neural Mirror GRPO; the potentials follow arXiv 2402.05187).

A potential h, convex on [0, 1], makes a divergence between the probabilities that policy and reference give one token:
D(p, p0) = h(p) - h(p0) - h'(p0) (p - p0). MirrorMap's h' is a sum of 126 neurons of six kinds, a line and a logarithm,

    h'(p) = sum_j v_j act_j(w_j p + b_j) + a p + c ln p        act, 21 of each: u^3, u^2, u^(1/2), u^(1/3), ln(u + 1e-3), e^u

with positive parameters, so that it increases. a = 1 alone is half the squared distance, c = 1 alone the potential of the KL. As written
above, D is a difference of nearly equal numbers where p is near p0; each neuron's D also has a form whose terms are all positive. Those are used.
"""
import torch

DIVERGENCES = ('kl', 'l2', 'prob_l2', 'l2kl', 'prob_l2kl', 'neural_mirror')
MIRROR_WEIGHTINGS = ('token', 'is', 'full')
COUNTS = (126, 126, 126, 1, 1)  # v, w, b, a, c


class MirrorMap(torch.nn.Module):
    """
    v, w, b, a and c are drawn in this order, uniform in [0, init_scale), from a generator of their own. Kept are their logarithms: whatever is added to
    them, the parameters stay positive. normalize: D is scaled so that h''(1/2) = 2, the KL's, and its coefficient compares with kl_beta. Nothing here
    learns inside a run: the gradient would only make the leash shorter or longer.
    """

    def __init__(self, init_scale: float = 0.01, seed: int = 42, normalize: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.cat([torch.rand(n, generator=generator) * init_scale for n in COUNTS])
        self.register_buffer('logs', drawn.clamp(min=1e-30).log())
        self.normalize = normalize

    def parameters_of(self, dtype):
        """v, w, b, each (6, 21), a and c (1,)."""
        v, w, b, a, c = self.logs.to(dtype).exp().split(COUNTS)
        return v.view(6, 21), w.view(6, 21), b.view(6, 21), a, c

    def divergence(self, p: torch.Tensor, p_ref: torch.Tensor) -> torch.Tensor:
        """D(p, p_ref) (...) of probabilities (...), in their precision: at least 0, and 0 where they are equal."""
        v, w, b, a, c = self.parameters_of(p.dtype)
        p, p_ref = p.clamp(min=1e-10), p_ref.clamp(min=1e-10)
        d = p - p_ref
        wd = w * d[..., None, None]                                             # (..., 6, 21)
        now, then = ((w * x[..., None, None] + b).unbind(-2) for x in (p, p_ref))  # six (..., 21) each
        s, s0, k, k0 = now[2].sqrt(), then[2].sqrt(), now[3] ** (1 / 3), then[3] ** (1 / 3)
        z0 = then[4] + 1e-3
        squared = torch.stack((                                                 # those whose D has the factor w d^2
            (now[0].square() + 2 * now[0] * then[0] + 3 * then[0].square()) / 4,
            (now[1] + 2 * then[1]) / 3,
            (2 * s + s0) / (3 * (s + s0).square()),
            (3 * k.square() + 2 * k * k0 + k0.square()) / (4 * (k.square() + k * k0 + k0.square()).square())), dim=-2)
        neurons = (v[:4] * wd[..., :4, :] * squared).sum(dim=(-1, -2)) * d
        neurons = neurons + (v[4] * z0 * relative_entropy(wd[..., 4, :] / z0) / w[4]).sum(dim=-1)
        neurons = neurons + (v[5] * then[5].exp() * exponential_excess(wd[..., 5, :]) / w[5]).sum(dim=-1)
        D = neurons + a * d.square() / 2 + c * p_ref * relative_entropy(d / p_ref)
        return D * self.factor(p.dtype)

    def gradient_map(self, p: torch.Tensor) -> torch.Tensor:
        """h'(p), the mirror map itself."""
        v, w, b, a, c = self.parameters_of(p.dtype)
        u = (w * p[..., None, None] + b).unbind(-2)
        acts = torch.stack((u[0] ** 3, u[1] ** 2, u[2].sqrt(), u[3] ** (1 / 3), (u[4] + 1e-3).log(), u[5].exp()), dim=-2)
        return ((v * acts).sum(dim=(-1, -2)) + a * p + c * p.log()) * self.factor(p.dtype)

    def factor(self, dtype):
        """What makes h''(1/2) = 2, or 1."""
        if not self.normalize:
            return 1.0
        v, w, b, a, c = self.parameters_of(dtype)
        u = (w * 0.5 + b).unbind(0)
        slopes = torch.stack((3 * u[0] ** 2, 2 * u[1], u[2] ** -0.5 / 2, u[3] ** (-2 / 3) / 3, 1 / (u[4] + 1e-3), u[5].exp()))
        return 2 / ((v * w * slopes).sum() + a + 2 * c)


def exponential_excess(x):
    """e^x - 1 - x, without cancellation near 0."""
    small = x.abs() < 1e-2
    near = torch.where(small, x, 0.0)
    far = torch.where(small, 1.0, x)
    return torch.where(small, near.square() * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near / 120))), torch.expm1(far) - far)


def relative_entropy(x):
    """(1 + x) ln(1 + x) - x for x >= -1, without cancellation near 0; 1 at -1."""
    small = x.abs() < 1e-2
    near = torch.where(small, x, 0.0)
    far = torch.where(small, 1.0, x)
    series = near.square() * (1 / 2 - near * (1 / 6 - near * (1 / 12 - near * (1 / 20 - near / 30))))
    return torch.where(small, series, (1 + far) * torch.log1p(far.clamp(min=-1 + 1e-7)) - far)


def token_divergence(logps, ref_logps, kind, weighting='token', mirror=None):
    """
    How far a token's probability is from the reference's, other than by KL; log-probs (...) in and D (...) out. l2: squared difference of log-probs; prob_l2: of
    probabilities; neural_mirror: mirror.divergence (a MirrorMap). Sampling a token with probability p and adding D makes the average of p D; weighting 'is' divides
    by p, so that the average, and its gradient, is the sum over the vocabulary.
    """
    if kind.startswith('l2'):
        return (logps - ref_logps).square()
    p, p_ref = logps.exp(), ref_logps.exp()
    D = mirror.divergence(p, p_ref) if kind == 'neural_mirror' else (p - p_ref).square()
    return D / p.detach() if weighting == 'is' else D
