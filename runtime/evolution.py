"""
Evolution strategies (arXiv 1703.03864): learn from rewards alone, without gradients.

The weights are moved along random directions, both ways, and the step goes where the reward was higher.
Noise is never stored: a direction is a seed. Rewards count by rank, so that no outlier dominates. A pair
one side of which failed is left out, because half a pair would push along its noise.
Shapes: N pairs of directions · d numbers in all parameters.
"""
from collections.abc import Callable

import torch
import torch.distributed as dist

from runtime import ranks
from runtime.console import over


def centred_ranks(fitness):
    """Ranks of all numbers in fitness (any shape), from -1/2 to 1/2; equal numbers share their rank."""
    flat = fitness.flatten()
    below = (flat[:, None] > flat).sum(dim=1)
    ties = (flat[:, None] == flat).sum(dim=1) - 1
    return ((below + ties / 2) / max(1, len(flat) - 1) - 0.5).view_as(fitness)


def pair_weights(fitness):
    """The weight (N,) of each pair's direction, from the fitness (N, 2) of its sides; 0 where one is NaN."""
    valid = torch.isfinite(fitness).all(dim=1)
    weights = torch.zeros(len(fitness))
    if valid.any():
        plus, minus = centred_ranks(fitness[valid].double()).unbind(1)
        weights[valid] = (plus - minus).float() / (2 * valid.sum())
    return weights


def es_gradient(noise: torch.Tensor, fitness: torch.Tensor) -> torch.Tensor:
    """The direction of rising fitness (d,), from noise (N, d) and fitness (N, 2) at + and -."""
    return pair_weights(fitness) @ noise


def directions(params, seed):
    """The noise of a pair for each parameter: made again each time it is needed, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        yield torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


def own_pairs(pairs):
    """The pairs whose fitness this rank computes."""
    return range(dist.get_rank(), pairs, dist.get_world_size()) if dist.is_initialized() else range(pairs)


@torch.no_grad()
def es_step(params: list[torch.Tensor], fitness_of: Callable[[], float], seed: int, pairs: int = 16,
            sigma: float = 0.02, learning_rate: float = 0.02,
            changed: Callable[[], None] | None = None) -> torch.Tensor:
    """
    One step on params, in place. Returns fitness (pairs, 2).

    fitness_of() is called 2 `pairs` times with params moved by sigma. The ranks share the pairs and all make
    the same step. changed() is called after each change of params.
    """
    changed = changed or (lambda: None)
    origins = [p.detach().clone() for p in params]
    seeds = [(seed * 1_000_003 + i) % 2 ** 62 for i in range(pairs)]
    fitness = torch.zeros(pairs, 2, dtype=torch.double)
    try:
        with ranks.together(params[0].device):
            for i in over('directions', own_pairs(pairs)):
                for side, sign in enumerate((1, -1)):
                    for p, origin, noise in zip(params, origins, directions(params, seeds[i]), strict=True):
                        p.copy_(origin).add_(noise, alpha=sign * sigma)
                    changed()
                    fitness[i, side] = fitness_of()
    finally:
        for p, origin in zip(params, origins, strict=True):
            p.copy_(origin)  # copied back, because subtracting the noise would round
    fitness = ranks.all_reduce(fitness.to(params[0].device)).cpu()
    for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds, strict=True):
        for p, noise in zip(params, directions(params, pair_seed), strict=True):
            p.add_(noise, alpha=learning_rate * weight)
    changed()
    return fitness
