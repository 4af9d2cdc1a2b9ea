"""
Evolution strategies (arXiv 1703.03864): learn from the same rewards, without gradients.

The weights are moved along random directions, both ways, and the step goes where the reward was higher.
Noise is never stored: a direction is a seed. Rewards count by rank, so that no outlier dominates. A pair
one side of which failed is left out, because half a pair would push along its noise.
"""
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from grpo import Rollout, compute_advantages, compute_rewards, part_means, reward_values
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


def directions(params, seed):
    """The noise of a pair for each parameter: made again each time it is needed, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        yield torch.randn(p.shape, generator=generator).to(p.device, p.dtype, non_blocking=True)


def move(params, origins, seed, step):
    """params become origins + step * the noise of the seed."""
    for p, origin, noise in zip(params, origins, directions(params, seed), strict=True):
        p.copy_(origin).add_(noise, alpha=step)


def own_pairs(pairs):
    """The pairs whose fitness this rank computes."""
    return range(dist.get_rank(), pairs, dist.get_world_size()) if ranks.joined() else range(pairs)


@torch.no_grad()
def es_step(params: list[torch.Tensor], fitness_of: Callable[[], float], seed: int, pairs: int = 16,
            sigma: float = 0.02, learning_rate: float = 0.02,
            changed: Callable[[], None] = lambda: None) -> torch.Tensor:
    """
    One step on params, in place. fitness_of() is asked at params moved by sigma, both ways for each pair;
    changed() is called after each move. The ranks share the pairs. Returns fitness (pairs, 2).
    """
    origins = [p.detach().clone() for p in params]
    seeds = [(seed * 1_000_003 + i) % 2 ** 62 for i in range(pairs)]
    fitness = torch.zeros(pairs, 2, dtype=torch.double)
    try:
        with ranks.together(params[0].device):
            for i in over('directions', own_pairs(pairs)):
                for side, sign in enumerate((1, -1)):
                    move(params, origins, seeds[i], sign * sigma)
                    changed()
                    fitness[i, side] = fitness_of()
    finally:
        for p, origin in zip(params, origins, strict=True):
            p.copy_(origin)  # copied back, because subtracting the noise would round
    fitness = ranks.all_reduce(fitness.to(params[0].device)).cpu()
    for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds, strict=True):
        move(params, params, pair_seed, learning_rate * weight)
    changed()
    return fitness


def es_training_step(policy, prompts: dict, params: list, rewards: list, cfg, lr: float, seed: int,
                     changed) -> tuple[dict, Rollout]:
    """
    In place of grpo.grpo_training_step, one es_step on params: fitness is the mean reward of group_size
    completions of each prompt, with the same noise each time. Returns (metrics, rollout) of the policy as it
    was before; weights that adapt see its completions alone.
    """
    start = time.perf_counter()
    with ranks.together(policy.model.wte.weight.device):
        rollout = policy.sample(prompts, cfg.group_size)
        values = reward_values(policy, rollout, rewards)
    weights = compute_rewards(policy, rollout, rewards, values)
    fixed = [(name, function, weights[name]) for name, function, _ in rewards]
    lengths = []

    def fitness():
        candidate = policy.sample(prompts, cfg.group_size)
        compute_rewards(policy, candidate, fixed)
        lengths.append(candidate.lengths.sum().item())
        return candidate.rewards.nanmean().item()

    fitnesses = es_step(params, fitness, seed, cfg.es_pairs, cfg.es_sigma, lr, changed)
    rollout.advantages = compute_advantages(rollout.rewards, 'dr_grpo')
    judged = rollout.rewards[~rollout.rewards.isnan()]
    metrics = {'mean_reward': judged.mean().item(), 'std_reward': judged.std().item(),
               'mean_fitness': fitnesses.mean().item(), 'best_fitness': fitnesses.max().item(),
               'mean_length': rollout.lengths.float().mean().item(), **part_means(rollout.reward_parts)}
    return metrics | {'tokens_per_s': sum(lengths) / (time.perf_counter() - start)}, rollout
