"""
Evolution strategies (arXiv 1703.03864): learn from rewards alone, without gradients.
"""
from collections.abc import Callable

import torch

from runtime import ranks
from runtime.console import over
from runtime.ranks import all_reduce


def centred_ranks(fitness):
    """Ranks of all numbers in fitness (any shape), from -1/2 to 1/2; equal ones share theirs."""
    flat = fitness.flatten()
    rank = (flat[:, None] > flat).sum(dim=1) + ((flat[:, None] == flat).sum(dim=1) - 1) / 2
    return (rank / max(1, len(flat) - 1) - 0.5).view_as(fitness)


def pair_weights(fitness):
    """How much of each pair's direction goes into the step, (N,), from fitness (N, 2) of its two sides; 0 for a pair with a NaN."""
    whole = torch.isfinite(fitness).all(dim=1)
    weights = torch.zeros(len(fitness))
    if whole.any():
        places = centred_ranks(fitness[whole].double())
        weights[whole] = (places[:, 0] - places[:, 1]).float() / (2 * whole.sum())
    return weights


def es_gradient(noise: torch.Tensor, fitness: torch.Tensor) -> torch.Tensor:
    """The direction of rising fitness (d,) from noise (N, d) and the fitness (N, 2) at + and - each: zero when all fitness is equal."""
    return pair_weights(fitness) @ noise


def directions(params, seed):
    """The noise of a pair for each parameter, made anew each time it is needed, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        yield torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


@torch.no_grad()
def es_step(params: list[torch.Tensor], fitness_of: Callable[[], float], seed: int, pairs: int = 16, sigma: float = 0.02, learning_rate: float = 0.02, rank: int = 0, world_size: int = 1,
            changed: Callable[[], None] = lambda: None) -> torch.Tensor:
    """
    One step on params, in place: fitness_of() -> float is asked 2 `pairs` times, with the parameters moved by sigma; each rank asks for its share and all
    make the same step. changed() is called whenever the parameters are others. Returns fitness (pairs, 2).
    """
    here = [p.detach().clone() for p in params]
    seeds = [(seed * 1_000_003 + i) % 2 ** 62 for i in range(pairs)]
    fitness = torch.zeros(pairs, 2, dtype=torch.double)
    try:
        with ranks.together(params[0].device):
            for i in over('directions', range(rank, pairs, world_size)):
                for side, sign in enumerate((1, -1)):
                    for p, origin, noise in zip(params, here, directions(params, seeds[i])):
                        p.copy_(origin).add_(noise, alpha=sign * sigma)
                    changed()
                    fitness[i, side] = fitness_of()
    finally:
        for p, origin in zip(params, here):
            p.copy_(origin)  # what was added is not subtracted again: that would round
    fitness = all_reduce(fitness.to(params[0].device)).cpu()
    for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds):
        for p, noise in zip(params, directions(params, pair_seed)):
            p.add_(noise, alpha=learning_rate * weight)
    changed()
    return fitness
