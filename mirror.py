"""
Divergences from the reference other than the KL (Neural Mirror GRPO; potentials after arXiv 2402.05187).

A potential h, convex on [0, 1], gives a Bregman divergence between a token's probabilities under policy and
reference: D(p, p0) = h(p) - h(p0) - h'(p0) (p - p0). MirrorMap's h' is a sum of 126 neurons of six kinds, a
line and a logarithm,

    h'(p) = sum_j v_j act_j(w_j p + b_j) + a p + c ln p
    act, 21 of each: u^3, u^2, u^(1/2), u^(1/3), ln(u + 1e-3), e^u

with positive parameters, so that it increases. a = 1 alone gives half the squared distance, c = 1 the KL. The
formula for D subtracts nearly equal numbers where p is near p0; the forms used here add positive terms.
"""
from typing import Literal

import torch

Divergence = Literal['kl', 'l2', 'prob_l2', 'l2kl', 'prob_l2kl', 'neural_mirror']
Weighting = Literal['token', 'is']
COUNTS = (126, 126, 126, 1, 1)  # v, w, b, a, c


class MirrorMap(torch.nn.Module):
    """
    v, w, b, a and c, drawn in this order, uniform in [0, init_scale); their logarithms are stored, so that
    they stay positive. normalize scales D to h''(1/2) = 2, the KL's, so that its coefficient compares with
    kl_beta. Nothing learns within a run, because the gradient would only weaken the penalty.
    """

    def __init__(self, init_scale: float = 0.01, seed: int = 42, normalize: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.cat([torch.rand(n, generator=generator) * init_scale for n in COUNTS])
        self.register_buffer('logs', drawn.clamp(min=1e-30).log())
        self.normalize = normalize

    def parameters_of(self, dtype):
        """v, w, b, each (6, 21), a and c (1,)."""
        *neurons, a, c = self.logs.to(dtype).exp().split(COUNTS)
        return *(part.view(6, 21) for part in neurons), a, c

    def divergence(self, p: torch.Tensor, p_ref: torch.Tensor) -> torch.Tensor:
        """D(p, p_ref) (...) of probabilities (...), in their precision; 0 where they are equal."""
        v, w, b, a, c = self.parameters_of(p.dtype)
        p, p_ref = p.clamp(min=1e-10), p_ref.clamp(min=1e-10)
        d = p - p_ref
        wd = w * d[..., None, None]                                             # (..., 6, 21)
        u, u_ref = ((w * x[..., None, None] + b).unbind(-2) for x in (p, p_ref))  # six (..., 21) each
        D = (v[:4] * wd[..., :4, :] * power_factors(u, u_ref)).sum(dim=(-1, -2)) * d
        z_ref = u_ref[4] + 1e-3
        D = D + (v[4] * z_ref * relative_entropy(wd[..., 4, :] / z_ref) / w[4]).sum(dim=-1)
        D = D + (v[5] * u_ref[5].exp() * exponential_excess(wd[..., 5, :]) / w[5]).sum(dim=-1)
        D = D + a * d.square() / 2 + c * p_ref * relative_entropy(d / p_ref)
        return D * self.factor(p.dtype)

    def gradient_map(self, p: torch.Tensor) -> torch.Tensor:
        """h'(p), the mirror map itself."""
        v, w, b, a, c = self.parameters_of(p.dtype)
        u = (w * p[..., None, None] + b).unbind(-2)
        activations = u[0] ** 3, u[1] ** 2, u[2].sqrt(), u[3] ** (1 / 3), (u[4] + 1e-3).log(), u[5].exp()
        neurons = (v * torch.stack(activations, dim=-2)).sum(dim=(-1, -2))
        return (neurons + a * p + c * p.log()) * self.factor(p.dtype)

    def factor(self, dtype):
        """The factor that makes h''(1/2) = 2, or 1 without normalize."""
        if not self.normalize:
            return 1.0
        v, w, b, a, c = self.parameters_of(dtype)
        u = (w * 0.5 + b).unbind(0)
        roots = u[2] ** -0.5 / 2, u[3] ** (-2 / 3) / 3
        slopes = torch.stack((3 * u[0] ** 2, 2 * u[1], *roots, 1 / (u[4] + 1e-3), u[5].exp()))
        return 2 / ((v * w * slopes).sum() + a + 2 * c)


def power_factors(u, u_ref):
    """(..., 4, 21): D over v w d^2 of the neurons u^3, u^2, u^(1/2) and u^(1/3)."""
    s, s_ref = u[2].sqrt(), u_ref[2].sqrt()
    k, k_ref = u[3] ** (1 / 3), u_ref[3] ** (1 / 3)
    cubic = (u[0].square() + 2 * u[0] * u_ref[0] + 3 * u_ref[0].square()) / 4
    square = (u[1] + 2 * u_ref[1]) / 3
    root = (2 * s + s_ref) / (3 * (s + s_ref).square())
    cube_root = 3 * k.square() + 2 * k * k_ref + k_ref.square()
    cube_root = cube_root / (4 * (k.square() + k * k_ref + k_ref.square()).square())
    return torch.stack((cubic, square, root, cube_root), dim=-2)


def near_and_far(x):
    """Whether x is near 0, where a series holds; x with 0 in place of what is not, and with 1 of what is."""
    small = x.abs() < 1e-2
    return small, torch.where(small, x, 0.0), torch.where(small, 1.0, x)


def exponential_excess(x):
    """e^x - 1 - x, without cancellation near 0."""
    small, near, far = near_and_far(x)
    series = near.square() * (1 / 2 + near * (1 / 6 + near * (1 / 24 + near / 120)))
    return torch.where(small, series, torch.expm1(far) - far)


def relative_entropy(x):
    """(1 + x) ln(1 + x) - x for x >= -1, without cancellation near 0; 1 at -1."""
    small, near, far = near_and_far(x)
    series = near.square() * (1 / 2 - near * (1 / 6 - near * (1 / 12 - near * (1 / 20 - near / 30))))
    return torch.where(small, series, (1 + far) * torch.log1p(far.clamp(min=-1 + 1e-7)) - far)


def token_divergence(logps: torch.Tensor, ref_logps: torch.Tensor, kind: Divergence,
                     weighting: Weighting = 'token', mirror: MirrorMap | None = None) -> torch.Tensor:
    """
    A token's divergence (...) from the reference, given its log-probs (...) under both. kind: l2, the squared
    difference of log-probs; prob_l2, that of probabilities; l2kl and prob_l2kl, the same beside a KL;
    neural_mirror, mirror.divergence. A token is sampled with probability p, so the mean is that of p D;
    weighting 'is' divides by p, so that the mean and its gradient are the vocabulary's sum.
    """
    if kind.startswith('l2'):
        return (logps - ref_logps).square()
    p, p_ref = logps.exp(), ref_logps.exp()
    D = mirror.divergence(p, p_ref) if kind == 'neural_mirror' else (p - p_ref).square()
    return D / p.detach() if weighting == 'is' else D
