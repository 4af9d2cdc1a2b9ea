"""
An iteration by evolution strategies, in place of grpo.grpo_training_step: the same rewards, without
gradients.
"""
import time

from grpo import Rollout, compute_advantages, compute_rewards, part_means, reward_values
from runtime import ranks
from runtime.evolution import es_step


def es_training_step(policy, prompts: dict, params: list, rewards: list, cfg, lr: float, seed: int,
                     changed) -> tuple[dict, Rollout]:
    """
    One es_step on params, in place: fitness is the mean reward of group_size completions of each prompt, with
    the same prompts and noise each time. changed() is called whenever params are others. Returns (metrics,
    rollout), both of the policy as it was before the step; weights that adapt see its completions alone.
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

    fitnesses = es_step(params, fitness, seed, pairs=cfg.es_pairs, sigma=cfg.es_sigma, learning_rate=lr,
                        changed=changed)
    rollout.advantages = compute_advantages(rollout.rewards, 'dr_grpo')
    judged = rollout.rewards[~rollout.rewards.isnan()]
    metrics = {'mean_reward': judged.mean().item(), 'std_reward': judged.std().item(),
               'mean_fitness': fitnesses.mean().item(), 'best_fitness': fitnesses.max().item(),
               'mean_length': rollout.lengths.float().mean().item(), **part_means(rollout.reward_parts)}
    return metrics | {'tokens_per_s': sum(lengths) / (time.perf_counter() - start)}, rollout
