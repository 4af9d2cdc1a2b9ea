"""
Evolution strategies (arXiv 1703.03864): learn from rewards alone, without gradients. Weights are moved along random directions, both ways, and the step
goes where the reward was higher. The baseline that GRPO has to beat: `--optimizer=es` trains with the same rewards and no optimizer state.

Noise is never kept: a direction is a seed. Both sides of a pair see the same prompts and the same sampling noise. What counts is the rank of a
reward among all, so that no outlier rules; a pair one side of which failed is left out whole, for half a pair would push along its noise.
Shapes: N pairs of directions · d numbers in all parameters.
"""
import time

import torch

from grpo import all_reduce, compute_advantages, compute_rewards


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
        ranks = centred_ranks(fitness[whole].double())
        weights[whole] = (ranks[:, 0] - ranks[:, 1]).float() / (2 * whole.sum())
    return weights


def es_gradient(noise, fitness):
    """The direction of rising fitness (d,) from noise (N, d) and the fitness (N, 2) at + and - each: zero when all fitness is equal."""
    return pair_weights(fitness) @ noise


def directions(params, seed):
    """The noise of a pair for each parameter, made anew each time it is needed, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        yield torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


@torch.no_grad()
def es_step(params, fitness_of, seed, pairs=16, sigma=0.02, learning_rate=0.02, rank=0, world_size=1, changed=lambda: None):
    """
    One step on params, in place: fitness_of() -> float is asked 2 `pairs` times, with the parameters moved by sigma; each rank asks for its share and all
    make the same step. changed() is called whenever the parameters are others. Returns fitness (pairs, 2).
    """
    here = [p.detach().clone() for p in params]
    seeds = [(seed * 1_000_003 + i) % 2 ** 62 for i in range(pairs)]
    fitness = torch.zeros(pairs, 2, dtype=torch.double)
    for i in range(rank, pairs, world_size):
        for side, sign in enumerate((1, -1)):
            for p, origin, noise in zip(params, here, directions(params, seeds[i])):
                p.copy_(origin).add_(noise, alpha=sign * sigma)
            changed()
            fitness[i, side] = fitness_of()
    fitness = all_reduce(fitness.to(params[0].device)).cpu()
    for p, origin in zip(params, here):
        p.copy_(origin)  # what was added is not subtracted again: that would round
    for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds):
        for p, noise in zip(params, directions(params, pair_seed)):
            p.add_(noise, alpha=learning_rate * weight)
    changed()
    return fitness


def es_training_step(policy, batch_of, params, rewards, group_size, **options):
    """
    An iteration like grpo_training_step, by es_step: fitness is the mean reward of group_size answers to each prompt of batch_of(), the same prompts and noise
    each time. Returns (metrics, the last rollout).
    """
    rollouts, start = [], time.perf_counter()

    def fitness():
        rollouts[:] = [policy.sample(batch_of(), group_size)]
        compute_rewards(policy, rollouts[0], rewards)
        return rollouts[0].rewards.mean().item()

    found = es_step(params, fitness, **options)
    rollout, = rollouts
    rollout.advantages = compute_advantages(rollout.rewards, 'dr_grpo')
    return {'mean_reward': found.mean().item(), 'std_reward': found.std().item(), 'best_reward': found.max().item(), 'mean_length': rollout.lengths.float().mean().item(),
            'tokens_per_s': found.numel() * rollout.lengths.sum().item() / (time.perf_counter() - start)}, rollout
