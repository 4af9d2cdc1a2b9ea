"""
Group Relative Policy Optimization (DeepSeekMath, arXiv 2402.03300): one step, as four phases that can each be called alone.

    generate_rollouts -> compute_rewards -> compute_advantages -> train_on_rollout

What differs between tasks is the policy, any object with a `model`, a `temperature`, `forbidden` (V,) bool (ids that are
never sampled) and three methods: `sample(batch, group_size) -> Rollout`, `hidden(rollout) -> (P, H, R, D)`, the hidden
states that predict the answer tokens (H = 1 when all answers of a group share them, as in fill-in, else H = G), and
`texts(rollout) -> P lists of G strings`.

Where this differs from the paper and from common practice:
1. The sum that makes the loss is divided by counts of the whole step, known before the first backward, so that the
   gradient is the same however the step is cut into micro-batches and ranks.
2. Log-probs are always those of the distribution that was sampled from: temperature, forbidden ids and nucleus included,
   for policy, old policy and reference alike. The old policy is the sampler itself: its ratio also corrects a sampler that rounds otherwise.
3. Masks come from lengths, never from token values; what stands in padding (even NaN) has no influence.
4. With one epoch per rollout the ratio is 1: the loss prints about 0 and its gradient is REINFORCE's. That is no bug.
Shapes: P prompts · G answers each · R answer tokens · V vocabulary · D width.
"""
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist

from kernels import fused_logps, fused_loss, unpack
from mirror import token_divergence
from runtime import ranks
from runtime.console import over
from runtime.evolution import es_step
from runtime.ranks import all_reduce
from runtime.shard import drop_collected, gathered, is_shard, is_sharded, whole_norm

LOSS_TYPES = ('grpo', 'dapo', 'dr_grpo', 'gspo', 'cispo', 'reinforce')
ADVANTAGES = ('grpo', 'dr_grpo', 'batch', 'rloo', 'gae')
KL_ESTIMATORS = ('k1', 'k2', 'k3', 'exact')
REFERENCE_MODES = ('static', 'ema', 'periodic', 'none')


@dataclass
class Rollout:
    """A batch of prompts with G answers each. The group is always axis 1."""
    batch: dict                                     # name -> tensor with P rows: the prompts, as the policy wants them
    tokens: torch.Tensor                            # (P, G, R) answer token ids, right-padded
    lengths: torch.Tensor                           # (P, G) true lengths, on the CPU: the host sizes what it launches by them
    logps: torch.Tensor                             # (P, G, R) log-prob of each token when it was sampled, fp32
    ended: torch.Tensor | None = None               # (P, G) bool, on the CPU: false where the answer was cut off; None: all ended
    allowed: torch.Tensor | None = None             # (P, H, R, V / 8) bits (sample.pack): what top_k and top_p left when sampling; None is everything
    ref_log_probs: torch.Tensor | None = None       # the reference's (P, G, R)
    ref_hidden: torch.Tensor | None = None          # for the exact KL instead: the reference's hidden states (P, H, R, D)
    rewards: torch.Tensor | None = None             # (P, G) weighted sum; NaN where no reward applies: such an answer is not trained on
    reward_parts: dict | None = None                # name -> (P, G), unweighted; NaN where it does not apply
    advantages: torch.Tensor | None = None          # (P, G); from a value head (P, G, R)
    values: torch.Tensor | None = None              # (P, G, R) what a value head expected before each token
    returns: torch.Tensor | None = None             # (P, G, R) what it should have expected

    @property
    def mask(self):
        """(P, G, R) bool: which tokens are real."""
        device = self.tokens.device
        return torch.arange(self.tokens.shape[-1], device=device) < self.lengths[..., None].to(device, non_blocking=True)

    def pick(self, prompts):
        """The rollout of some prompts: indices (n,), or a slice."""
        def cut(value):
            if isinstance(value, dict):
                return {k: cut(v) for k, v in value.items()}
            return None if value is None else value[prompts if isinstance(prompts, slice) else prompts.to(value.device)]
        return Rollout(**{f.name: cut(getattr(self, f.name)) for f in fields(self)})

    def rows(self, start, stop):
        """The rollout of prompts start to stop."""
        return self.pick(slice(start, stop))


# ---------------------------------------------------------------------------------------------------------------------
# the head: hidden states -> log-probs of the sampling distribution

def head_log_probs(policy, hidden, allowed=None):
    """
    Log-probs (..., V) in fp32 of the distribution that the policy samples from, out of hidden (..., D): tempered, with
    forbidden ids at -inf and, where allowed (..., V / 8) is given, renormalised over what it leaves.
    """
    logits = policy.model.lm_head(hidden).float() / policy.temperature
    if policy.forbidden is not None:
        logits = logits.masked_fill(policy.forbidden, -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~unpack(allowed, logits.shape[-1]), -torch.inf)
    return logits.log_softmax(dim=-1)


def gather_logps(log_probs, tokens):
    """Log-probs (P, G, R) of tokens (P, G, R) under log_probs (P, H, R, V). G / H answers read one row; V is never copied G times."""
    P, G, R = tokens.shape
    H = log_probs.shape[1]
    if log_probs.shape[:3] != (P, H, R) or G % H:
        raise ValueError(f"log_probs {tuple(log_probs.shape)} do not belong to tokens {tuple(tokens.shape)}")
    ids = tokens.view(P, H, G // H, R).transpose(2, 3)                          # (P, H, R, G/H)
    return log_probs.gather(-1, ids).transpose(2, 3).reshape(P, G, R)


def share_rows(tensor, H):
    """(P, G, ...) as (P H, G / H, ...): the answers that share their hidden states lie side by side."""
    return None if tensor is None else tensor.reshape(tensor.shape[0] * H, tensor.shape[1] // H, *tensor.shape[2:])


def completion_logps(policy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the policy thinks of a rollout's tokens: log-probs (P, G, R) and entropy (P, G, R), 0 in padding. Only the n rows that
    predict a real token reach the head, and their logits are never held.
    """
    hidden = policy.hidden(rollout)                                             # (P, H, R, D)
    P, H, R, _ = hidden.shape
    mask = rollout.mask
    rows = share_rows(mask, H).any(dim=1).view(P, H, R)
    ids = share_rows(rollout.tokens.masked_fill(~mask, 0), H).transpose(1, 2).unflatten(0, (P, H))[rows]  # (n, G/H)
    of_ids, of_rows = fused_logps(hidden[rows], policy.model.lm_head.weight, ids, policy.temperature, policy.forbidden,
                                  None if rollout.allowed is None else rollout.allowed[rows])
    logps = of_ids.new_zeros(P, H, R, ids.shape[1]).masked_scatter(rows[..., None], of_ids).transpose(2, 3).reshape(mask.shape)
    entropy = of_rows.new_zeros(P, H, R).masked_scatter(rows, of_rows).repeat_interleave(mask.shape[1] // H, dim=1)
    return logps.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# phase 1: rollouts

def join(parts):
    """The rollout of all prompts from those of some each; prompts (P, T) and answers (P, G, R, ...) are padded to the longest."""
    def put_together(values):
        if isinstance(values[0], dict):
            return {key: put_together([value[key] for value in values]) for key in values[0]}
        if values[0] is not None and values[0].dim() > 1:
            axis = min(values[0].dim() - 1, 2)
            longest = max(v.shape[axis] for v in values)
            values = [torch.nn.functional.pad(v, (0, 0) * (v.dim() - 1 - axis) + (0, longest - v.shape[axis])) for v in values]
        return None if values[0] is None else torch.cat(values)
    return Rollout(**{f.name: put_together([getattr(part, f.name) for part in parts]) for f in fields(Rollout)}) if len(parts) > 1 else parts[0]


@torch.no_grad()
def generate_rollouts(policy, batch: dict, group_size: int, reference=None, kl_estimator: str = 'k3', micro_batch_size: int | None = None, rollout_batch_size: int | None = None,
                      sampled: Callable[[Rollout], None] = lambda part: None) -> Rollout:
    """
    G answers to each prompt of batch (P rows), with the sampler's log-probs and, when a reference policy is given, that
    one's, computed once here however many epochs follow. rollout_batch_size: prompts sampled at once, None is all; sampled(part) is called with the rollout of each such part.
    """
    parts, P = [], len(next(iter(batch.values())))
    size = rollout_batch_size or P
    with gathered(policy) as sampler:
        for start in over('sampling', range(0, P, size)):
            parts.append(sampler.sample({key: rows[start:start + size] for key, rows in batch.items()}, group_size))
            sampled(parts[-1])
    rollout = join(parts)
    if reference is not None:
        home, device = reference.model.wte.weight.device, rollout.tokens.device
        if home != device:
            reference.model.to(device)  # an offloaded reference is lent to the GPU while it is needed
        if kl_estimator == 'exact':
            rollout.ref_hidden = torch.cat([reference.hidden(part) for part in micro_batches(rollout, micro_batch_size)])
        else:
            rollout.ref_log_probs = torch.cat([completion_logps(reference, part)[0] for part in micro_batches(rollout, micro_batch_size)])
        if home != device:
            reference.model.to(home)
    return rollout


def micro_batches(rollout, size):
    """The rollout cut into parts of `size` prompts; None is one part."""
    P = len(rollout.tokens)
    size = size or P
    return [rollout.rows(start, start + size) for start in range(0, P, size)]


# ---------------------------------------------------------------------------------------------------------------------
# phase 2: rewards

def reward_tensor(name, values, device=None):
    """(P, G) fp32 of a reward's values, a tensor or lists; None in a list is NaN: the reward does not apply. Raises FloatingPointError for any other NaN, and for what is infinite."""
    gaps = isinstance(values, list) and any(None in row for row in values)
    if gaps:
        gaps = torch.tensor([[value is None for value in row] for row in values], device=device)
        values = [[0.0 if value is None else value for value in row] for row in values]
    tensor = torch.as_tensor(values, dtype=torch.float32, device=device)
    if not torch.isfinite(tensor).all():
        raise FloatingPointError(f"reward {name!r} is NaN or infinite for {int((~torch.isfinite(tensor)).sum())} of {tensor.numel()} answers: mend the reward, training has stopped before using it")
    return tensor if gaps is False else tensor.masked_fill(gaps, torch.nan)


def overlong(lengths: torch.Tensor, max_new_tokens: int, ramp: int) -> torch.Tensor:
    """DAPO's penalty of long answers (arXiv 2503.14476, eq. 13), for lengths (P, G): 0 up to ramp tokens before max_new_tokens, and from there in a line down to -1."""
    return -(lengths - (max_new_tokens - ramp)).clamp(min=0) / ramp


def all_equal(rewards):
    """(P,) bool: whether the rewards (P, G) of a group teach nothing, for all that apply are the same."""
    return rewards.nan_to_num(torch.inf).amin(dim=1) >= rewards.nan_to_num(-torch.inf).amax(dim=1)


def weighted_reward(parts, weights):
    """
    The sum of w r, (P, G), from parts {name: (P, G)} and weights {name: float}. Where parts are NaN the others judge alone, with the weight of all: their sum times
    the sum of all |w| over that of theirs. NaN where none is left that counts.
    """
    total = sum(weights[name] * part for name, part in parts.items())
    if not total.isnan().any():
        return total
    total = sum(weights[name] * part.nan_to_num(0.0) for name, part in parts.items())
    there = sum(abs(weights[name]) * (~part.isnan()) for name, part in parts.items())
    return (total * sum(map(abs, weights.values())) / there).masked_fill(there == 0, torch.nan)


@torch.no_grad()
def reward_values(policy, rollout, rewards):
    """{name: (P, G)} of [(name, function, weight)...]: what the functions say, unweighted. Raises as compute_rewards does."""
    shape, values = tuple(rollout.lengths.shape), {}
    for name, function, _ in rewards:
        values[name] = reward_tensor(name, function(policy, rollout), rollout.tokens.device)
        if values[name].shape != shape:
            raise ValueError(f"reward {name!r} has shape {tuple(values[name].shape)}; it must be (prompts, answers) = {shape}")
    return values


def compute_rewards(policy, rollout: Rollout, rewards: list, values: dict[str, torch.Tensor] | None = None) -> dict[str, float]:
    """
    Fills in rollout.rewards (P, G), the weighted sum, and rollout.reward_parts. rewards: [(name, function, weight)...]
    with function(policy, rollout) -> (P, G), or lists with None where it does not apply (see weighted_reward); a weight may also be a function of those values, for one that adapts.
    values: what reward_values has found already. Returns the
    weights, {name: float}. Raises FloatingPointError when a reward is not finite, ValueError when none applies to any answer.
    """
    rollout.reward_parts = reward_values(policy, rollout, rewards) if values is None else values
    weights = {name: weight(rollout.reward_parts[name]) if callable(weight) else weight for name, _, weight in rewards}
    rollout.rewards = weighted_reward(rollout.reward_parts, weights)
    if rollout.rewards.isnan().all():
        raise ValueError(f"none of the rewards {', '.join(map(repr, weights))} applies to any of the {rollout.rewards.numel()} answers")
    return weights


# ---------------------------------------------------------------------------------------------------------------------
# phase 3: advantages

def compute_advantages(rewards: torch.Tensor, kind: str = 'grpo', all_rewards: torch.Tensor | None = None) -> torch.Tensor:
    """
    Advantages (P, G) from rewards (P, G); an answer whose reward is NaN takes no part, and has 0. Sources: grpo arXiv 2402.03300, dr_grpo 2503.20783, rloo 2402.14740; batch divides by
    the std of the whole step (all_rewards, when other ranks hold some of it). Raises ValueError for groups of one answer.
    """
    P, G = rewards.shape
    if G < 2:
        raise ValueError("group_size is 1: a group's advantage compares its answers, so it needs at least 2 (8 is a good start)")
    missing = rewards.isnan()
    if missing.any():
        everyone, advantages = rewards if all_rewards is None else all_rewards, torch.zeros_like(rewards)
        for row, there in enumerate(~missing):
            if there.sum() > 1:
                advantages[row, there] = compute_advantages(rewards[row, there][None], kind, everyone[~everyone.isnan()])[0]
        return advantages
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # Equal rewards carry no signal; say so exactly, before rounding residue is divided by a tiny std.
    centred = centred.masked_fill((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0)
    if kind == 'grpo':
        return centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
    if kind == 'dr_grpo':
        return centred
    if kind == 'batch':
        return centred / ((rewards if all_rewards is None else all_rewards).std() + 1e-4)
    if kind == 'rloo':
        return centred * (G / (G - 1))  # r - mean of the other G - 1
    raise ValueError(f"advantage is {kind!r}; it must be one of {', '.join(ADVANTAGES)}")


def combined_advantages(parts: dict[str, torch.Tensor], weights: dict[str, float], kind: str = 'grpo') -> torch.Tensor:
    """
    Each reward compared within its group by itself, then weighted: sum of w A / sum of |w|, (P, G), from parts {name: (P, G)} and weights {name: float}. With a reward
    and a cost of weight -lambda this is Safe RLHF's (A_R - lambda A_C) / (1 + lambda) (arXiv 2310.12773): neither drowns the other by its scale.
    """
    total = sum(weights[name] * compute_advantages(values, kind, gather_rewards(values)) for name, values in parts.items())
    return total / max(sum(map(abs, weights.values())), 1e-8)


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0, gae_lambda: float = 0.95) -> torch.Tensor:
    """
    PPO's advantages from per-token rewards, values and mask (..., R): the sum of (gamma lambda)^l times the TD error of l tokens later, within the
    answer (arXiv 1506.02438). Returns advantages (..., R), 0 in padding.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages, later, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[-1])):
        later = rewards[..., t] + gamma * next_value - values[..., t] + gamma * gae_lambda * later
        advantages[..., t], next_value = later, values[..., t]
    return advantages.masked_fill(~mask, 0.0)


@torch.no_grad()
def value_advantages(policy, rollout, token_rewards, gamma, gae_lambda, micro_batch_size=None):
    """
    Fills in values, returns and advantages (P, G, R), the latter whitened over the whole step, for PPO. The policy's model has a value_head, D -> 1.
    token_rewards (P, G, R): what each token costs or earns by itself; the answer's reward comes on top at its last token.
    """
    mask = rollout.mask & ~rollout.rewards.isnan()[..., None]
    rollout.values = torch.cat([policy.model.value_head(policy.hidden(part)).squeeze(-1).float() for part in micro_batches(rollout, micro_batch_size)]).masked_fill(~mask, 0.0)
    last = (rollout.lengths.to(mask.device) - 1).clamp(min=0)[..., None]
    token_rewards = token_rewards.scatter_add(-1, last, rollout.rewards[..., None])
    advantages = gae(token_rewards, rollout.values, mask, gamma, gae_lambda)
    rollout.returns = advantages + rollout.values
    n, total, squares = all_reduce(torch.stack((mask.sum(), advantages.sum(), advantages.square().sum())))
    mean = total / n
    rollout.advantages = ((advantages - mean) / ((squares / n - mean.square()).clamp(min=0).sqrt() + 1e-8)).masked_fill(~mask, 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# phase 4: the loss, and the step

def aggregate(values, mask, loss_type, n_completions, n_tokens, max_new_tokens=None):
    """
    One number from per-token values (..., R): this part's share of the step's loss. n_completions and n_tokens count the
    whole step, over all micro-batches and ranks, so the shares add up to the loss of the undivided step.
    """
    per_answer = values.masked_fill(~mask, 0.0).sum(dim=-1)                     # (...,)
    if loss_type in ('grpo', 'gspo'):
        return (per_answer / mask.sum(dim=-1).clamp(min=1)).sum() / n_completions
    if loss_type in ('dapo', 'cispo'):
        return per_answer.sum() / n_tokens
    if loss_type == 'dr_grpo':
        return per_answer.sum() / (n_completions * (max_new_tokens or mask.shape[-1]))
    if loss_type == 'reinforce':
        return per_answer.sum() / n_completions
    raise ValueError(f"loss_type is {loss_type!r}; it must be one of {', '.join(LOSS_TYPES)}")


def policy_loss(logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, loss_type: str = 'grpo', clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = None,
                n_completions: torch.Tensor | int | None = None, n_tokens: torch.Tensor | int | None = None, max_new_tokens: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The readable definition of the loss. logps, old_logps, mask (..., R); advantages (...), or one for each token (..., R). n_completions and n_tokens: counts
    of the whole step (default: of these tensors). Returns (loss, stats); the stats, like the loss, are shares that add up
    over micro-batches. Sources: grpo 2402.03300, dapo 2503.14476, dr_grpo 2503.20783, gspo 2507.18071, cispo 2506.13585.
    """
    n_completions = mask.any(dim=-1).sum() if n_completions is None else n_completions
    n_tokens = mask.sum() if n_tokens is None else n_tokens
    A = advantages if advantages.dim() == logps.dim() else advantages[..., None]  # (..., 1 or R)
    logps = logps.masked_fill(~mask, 0.0)
    log_ratio = logps - old_logps.masked_fill(~mask, 0.0)                       # (..., R)
    if loss_type == 'gspo':  # one ratio for the whole answer: the geometric mean of its tokens'
        log_ratio = (log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)).expand_as(log_ratio)
    ratio = log_ratio.exp()
    too_low = (ratio < 1 - clip_low) & (A < 0) & mask
    too_high = (ratio > 1 + clip_high) & (A > 0) & mask

    if loss_type == 'reinforce':
        terms = -A * logps
        too_low, too_high = torch.zeros_like(mask), torch.zeros_like(mask)
    elif loss_type == 'cispo':
        terms = -ratio.detach().clamp(max=1 + clip_high) * A * logps
        too_low, too_high = torch.zeros_like(mask), (ratio > 1 + clip_high) & mask
    else:
        gain = torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)
        if dual_clip is not None:  # bounds the loss of a bad answer that has become likely (arXiv 1912.09729)
            gain = torch.where(A < 0, torch.maximum(gain, dual_clip * A), gain)
        terms = -gain
    loss = aggregate(terms, mask, loss_type, n_completions, n_tokens, max_new_tokens)
    return loss, {'clip_frac_low': too_low.sum() / n_tokens, 'clip_frac_high': too_high.sum() / n_tokens}


def kl_estimate(logps: torch.Tensor, ref_logps: torch.Tensor, kind: str) -> torch.Tensor:
    """
    KL(policy || reference) per token. k1, k2, k3 (joschu.net/blog/kl-approx.html) take log-probs (..., R) of the sampled
    tokens; 'exact' takes whole distributions (..., R, V) and returns (..., R). In the loss the gradient of k1 is zero on average,
    that of k2 and exact is the reverse KL's, that of k3 the forward KL's.
    """
    if kind == 'exact':
        difference = (logps - ref_logps).masked_fill(logps == -torch.inf, 0.0)
        return (logps.exp() * difference).sum(dim=-1)
    d = logps - ref_logps
    if kind == 'k1':
        return d
    if kind == 'k2':
        return d.square() / 2
    if kind == 'k3':
        return torch.expm1(-d) + d
    raise ValueError(f"kl_estimator is {kind!r}; it must be one of {', '.join(KL_ESTIMATORS)}")


def rollout_loss(policy, rollout, n_completions, n_tokens, loss_type='grpo', clip_low=0.2, clip_high=0.2, dual_clip=None,
                 kl_beta=0.0, kl_estimator='k3', entropy_coef=0.0, max_new_tokens=None, reference=None, value_coef=0.5, value_clip=0.2,
                 divergence='kl', mirror_coefficient=1e-4, mirror_weighting='token', mirror=None):
    """
    The whole loss of a rollout or of a part of one: policy term + kl_beta * KL - entropy_coef * entropy, all aggregated
    alike. reference: a policy, needed for the exact KL alone. A rollout with returns adds value_coef times the value head's squared error, clipped
    around its old values as PPO does (value_clip None: not). divergence: 'kl', or another that is added with mirror_coefficient, see token_divergence, beside the KL
    ('l2kl', 'prob_l2kl') or in its place; with mirror_weighting 'full' summed over the vocabulary. Returns (loss, stats) as policy_loss does; stats['sampler_gap_max']
    alone is no share but a maximum. The gradient is made with the loss, see fused_loss.
    """
    hidden = policy.hidden(rollout)                                             # (P, H, R, D)
    H = hidden.shape[1]
    every_mask, tokens, sampled, advantages, ref_log_probs = (share_rows(x, H) for x in (rollout.mask, rollout.tokens, rollout.logps, rollout.advantages, rollout.ref_log_probs))
    counts = dict(n_completions=n_completions, n_tokens=n_tokens, max_new_tokens=max_new_tokens)
    stats = {}

    def loss_of(units, logps, entropy, kl):
        """The share of some answers: logps (u, K, R); entropy and kl (u, 1, R), for they belong to rows."""
        mask = every_mask[units]
        loss, shares = policy_loss(logps, sampled[units], advantages[units], mask, loss_type, clip_low, clip_high, dual_clip, **counts)
        shares |= {'pg_loss': loss.detach(), 'kl_penalty': torch.zeros_like(loss)}
        means = {'mean_log_prob': logps, 'entropy': entropy.expand_as(logps), 'sampler_gap_mean': (logps - sampled[units]).abs()}
        if rollout.ref_hidden is not None or ref_log_probs is not None:  # without a reference the KL is not zero but unknown
            if rollout.ref_hidden is None:
                kl = kl_estimate(logps, ref_log_probs[units].masked_fill(~mask, 0.0), kl_estimator)
            kl_penalty = (kl_beta if divergence.endswith('kl') else 0.0) * aggregate(kl.expand_as(logps), mask, loss_type, **counts)
            loss = loss + kl_penalty
            if divergence != 'kl' and mirror_weighting != 'full':
                D = token_divergence(logps, ref_log_probs[units].masked_fill(~mask, 0.0), divergence, mirror_weighting, mirror)
                shares['mirror_penalty'] = mirror_coefficient * aggregate(D, mask, loss_type, **counts)
                loss = loss + shares['mirror_penalty']
                shares['mirror_penalty'] = shares['mirror_penalty'].detach()
            shares['kl_penalty'], means['mean_kl'] = kl_penalty.detach(), kl.expand_as(logps)
        if entropy_coef:
            loss = loss - entropy_coef * aggregate(entropy.expand_as(logps), mask, loss_type, **counts)
        with torch.no_grad():
            shares |= {'loss': loss.detach()} | {name: values.masked_fill(~mask, 0.0).sum() / n_tokens for name, values in means.items()}
            gap = means['sampler_gap_mean'].masked_fill(~mask, 0.0).max()
        for name, value in shares.items():
            stats[name] = stats.get(name, 0.0) + value
        stats['sampler_gap_max'] = torch.maximum(stats.get('sampler_gap_max', gap), gap)
        return loss

    loss = fused_loss(hidden.flatten(0, 1), policy.model.lm_head.weight, tokens.masked_fill(~every_mask, 0), every_mask, loss_of, policy.temperature, policy.forbidden,
                      None if rollout.allowed is None else rollout.allowed.flatten(0, 1),
                      *((rollout.ref_hidden.flatten(0, 1), reference.model.lm_head.weight.to(hidden.device)) if rollout.ref_hidden is not None else (None, None)),
                      counts=share_rows(rollout.lengths, H).amax(dim=1).tolist())
    if divergence != 'kl' and mirror_weighting == 'full' and rollout.ref_hidden is not None:  # the one place where whole rows of probabilities are held
        log_probs = head_log_probs(policy, hidden, rollout.allowed)             # (P, H, R, V)
        with torch.no_grad():
            ref_log_probs = head_log_probs(reference, rollout.ref_hidden, rollout.allowed)
        D = token_divergence(log_probs, ref_log_probs, divergence, 'full', mirror).sum(dim=-1).repeat_interleave(rollout.tokens.shape[1] // H, dim=1)
        penalty = mirror_coefficient * aggregate(D, rollout.mask, loss_type, **counts)
        stats['mirror_penalty'], stats['loss'] = penalty.detach(), stats['loss'] + penalty.detach()
        loss = loss + penalty
    if rollout.returns is not None:
        mask, values = rollout.mask, policy.model.value_head(hidden).squeeze(-1).float()  # (P, G, R)
        error = (values - rollout.returns).square()
        if value_clip is not None:
            near = rollout.values + (values - rollout.values).clamp(-value_clip, value_clip)
            error = torch.maximum(error, (near - rollout.returns).square())
        value_loss = 0.5 * error.masked_fill(~mask, 0.0).sum() / n_tokens
        stats['value_loss'] = value_loss.detach()
        loss = loss + value_coef * value_loss
    return loss, stats


def sum_gradients(params, bucket=1 << 25):
    """
    Every rank's gradient becomes the sum over the ranks: each held its share of one loss, so nothing is averaged. Shards are summed in backward already. bucket: numbers that
    are sent at once, for which there is a second copy.
    """
    for p in params:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    waiting = [p.grad for p in params if not is_shard(p)] if dist.is_initialized() else []
    while waiting:
        n = max(1, sum(total <= bucket for total in itertools.accumulate(grad.numel() for grad in waiting)))
        flat = all_reduce(torch.cat([grad.flatten() for grad in waiting[:n]]))
        for grad, summed in zip(waiting, flat.split([grad.numel() for grad in waiting[:n]])):
            grad.copy_(summed.view_as(grad))
        waiting = waiting[n:]


def train_on_rollout(policy, rollout: Rollout, optimizer: torch.optim.Optimizer, num_epochs: int = 1, micro_batch_size: int | None = None, grad_clip: float = 1.0,
                     scaler: torch.amp.GradScaler | None = None, **loss_options) -> dict[str, float]:
    """
    num_epochs optimizer steps on a rollout that has its advantages, each over micro-batches of micro_batch_size prompts.
    loss_options: those of rollout_loss. grad_clip 0 is off. scaler: a torch.amp.GradScaler, for fp16, whose gradients underflow
    without one. Returns stats as floats, averaged over epochs and summed over ranks; the sampler gap is that of the first epoch, before
    any step. A step whose gradient is not finite is skipped, and counted in bad_steps (with a scaler, which tries such, only once its scale has fallen below 1).
    """
    params = [p for group in optimizer.param_groups for p in group['params']]  # fp32, whatever the model computes in
    drop_collected(policy.model)
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    mask = rollout.mask
    n_completions, n_tokens = all_reduce(torch.stack((mask.any(dim=-1).sum(), mask.sum()))).clamp(min=1)
    # Completions with equal rewards pull nowhere: unless a KL or the entropy counts, they are in the counts but not in the forward.
    # Groups of like length go together, so that a micro-batch is as wide as its answers.
    counts = (rollout.advantages != 0).flatten(1).any(dim=1) | any((rollout.ref_log_probs is not None, rollout.ref_hidden is not None, rollout.returns is not None, loss_options.get('entropy_coef')))
    here, total, most = counts.sum(), all_reduce(counts.sum()), all_reduce(counts.sum(), 'max')
    if total == 0 and (not dist.is_initialized() or dist.get_rank() == 0):
        counts[0] = True  # something has to be looked at
    rollout = replace(rollout, lengths=rollout.lengths.masked_fill(~counts.cpu()[:, None], 0))
    # The ranks of a sharded model go through the same forwards: who has fewer prompts that count looks at others, that have no token left.
    prompts = (~counts).int().argsort(stable=True)[:int(most if is_sharded(policy.model) else here) or 1].cpu()
    rollout = rollout.pick(prompts[rollout.lengths[prompts].amax(dim=1).argsort(stable=True)])
    n_seen = all_reduce(rollout.mask.sum()).clamp(min=1)
    totals, gap_max, grad_norms, bad_steps = {}, None, [], 0
    policy.model.train()  # no more than an adapter's dropout depends on it
    for epoch in range(num_epochs):
        optimizer.zero_grad(set_to_none=True)
        with ranks.breakable(epoch == 0 and not dist.is_initialized()):
            for part in over('learning', micro_batches(rollout, micro_batch_size)):
                loss, stats = rollout_loss(policy, part, n_completions, n_tokens, **loss_options)
                scaler.scale(loss).backward()
                largest = stats.pop('sampler_gap_max')
                if epoch == 0:
                    gap_max = largest if gap_max is None else torch.maximum(gap_max, largest)
                for name, value in stats.items():
                    if name == 'sampler_gap_mean':
                        value = value * num_epochs if epoch == 0 else 0.0
                    totals[name] = totals.get(name, 0.0) + value / num_epochs
        sum_gradients(params)
        scaler.unscale_(optimizer)
        # clipped after the sum over ranks: the norm that counts is the whole step's
        grad_norm = whole_norm(torch.nn.utils.clip_grad_norm_(params, grad_clip or torch.inf))
        grad_norms.append(grad_norm)
        finite = torch.isfinite(grad_norm)
        bad_steps += int(not finite and not (scaler.is_enabled() and scaler.get_scale() >= 1))
        if finite or scaler.is_enabled():
            scaler.step(optimizer)
            scaler.update()
    policy.model.eval()
    summed = all_reduce(torch.stack([v.float() for v in totals.values()]))
    result = dict(zip(totals, summed.tolist()))
    for name in {'mean_log_prob', 'entropy', 'sampler_gap_mean', 'mean_kl'} & result.keys():
        result[name] *= (n_tokens / n_seen).item()  # a mean over what was looked at
    result['sampler_gap_max'] = all_reduce(gap_max, 'max').item()
    result |= {'grad_norm': torch.stack(grad_norms).mean().item(), 'bad_steps': bad_steps}
    return result


def gather_rewards(rewards):
    """The rewards of all ranks, (P of all, G)."""
    if not dist.is_initialized():
        return rewards
    everyone = [torch.empty_like(rewards) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, rewards)
    return torch.cat(everyone)


def part_means(parts):
    """{'reward/<name>': its mean over the answers of all ranks that it applies to, 'reward_missing/<name>': the share of those that it does not}, from parts {name: (P, G)}."""
    metrics, sums = {}, all_reduce(torch.stack([torch.stack((part.nansum(), part.isnan().sum().float(), torch.ones_like(part).sum())) for part in parts.values()])).tolist()
    for name, (total, missing, n) in zip(parts, sums):
        metrics |= {f'reward/{name}': total / (n - missing)} if missing < n else {}
        metrics[f'reward_missing/{name}'] = missing / n
    return metrics


def grpo_training_step(policy, batch: dict, optimizer: torch.optim.Optimizer, rewards: list, reference=None, group_size: int = 8, advantage: str = 'grpo', kl_beta: float = 0.0, kl_estimator: str = 'k3',
                       kl_in_reward: bool = False, reward_combination: str = 'rewards', micro_batch_size: int | None = None, rollout_batch_size: int | None = None, mask_truncated: bool = False, gamma: float = 1.0, gae_lambda: float = 0.95,
                       overlong_penalty: int = 0, dynamic_sampling: int = 0, others=None, learn: bool = True, **training) -> tuple[dict[str, float], Rollout]:
    """
    One iteration: sample, reward, compare, learn. batch: this rank's P prompts; rewards: see compute_rewards; reference: a
    policy or None; kl_in_reward: kl_beta times the log-ratio to the reference is taken off the rewards and not put into the loss; reward_combination: 'rewards' are
    weighted and then compared, or 'advantages' weighted (see combined_advantages); rollout_batch_size: prompts sampled at once, and then their rewards are worked out beside the sampling of the next; mask_truncated: answers that were cut off are not trained on; gamma, gae_lambda: of advantage 'gae' alone;
    overlong_penalty: the ramp of `overlong`, 0 is off; dynamic_sampling: up to so many times, groups whose rewards are all equal make room for answers to others(attempt), P further prompts (arXiv 2503.14476; each takes the place of one, so that ranks need not agree); learn False: the policy rests;
    training: the options of train_on_rollout and rollout_loss. Returns (metrics, rollout).
    """
    reference, since, times, resampled = reference if learn else None, time.perf_counter(), {}, 0
    beside = ThreadPoolExecutor(1)

    def lap(name):
        nonlocal since
        now = time.perf_counter()
        times[name], since = times.get(name, 0.0) + now - since, now

    def answered(batch):
        """The rollout of some prompts, with its reward_parts; with rollout_batch_size those of a part are worked out beside what follows."""
        parts = []
        rollout = generate_rollouts(policy, batch, group_size, reference, kl_estimator, micro_batch_size, rollout_batch_size,
                                    lambda part: parts.append(beside.submit(reward_values, policy, part, rewards)) if rollout_batch_size else None)
        lap('time_rollout')
        parts = [part.result() for part in parts] or [reward_values(policy, rollout, rewards)]
        lap('time_reward')
        rollout.reward_parts = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return rollout

    try:
        with ranks.together(policy.model.wte.weight.device, not is_sharded(policy.model)):
            rollout = answered(batch)
            for attempt in range(1, dynamic_sampling + 1):
                flat = all_equal(weighted_reward(rollout.reward_parts, {name: weight for name, _, weight in rewards})).cpu()
                if not flat.any():
                    break
                fresh = answered({key: value[flat.to(value.device)] for key, value in others(attempt).items()})
                rollout = join([rollout, fresh]).pick(torch.arange(len(flat)).masked_scatter(flat, len(flat) + torch.arange(len(fresh.tokens))))
                resampled += len(fresh.tokens)
    finally:
        beside.shutdown(wait=False, cancel_futures=True)  # after a signal nobody waits for a reward that is at work
    lap('time_wait')
    weights = compute_rewards(policy, rollout, rewards, rollout.reward_parts)
    token_rewards = torch.zeros_like(rollout.logps)
    if overlong_penalty:
        too_long = overlong(rollout.lengths, training['max_new_tokens'], overlong_penalty).to(token_rewards.device)
        token_rewards.scatter_(-1, (rollout.lengths.to(token_rewards.device) - 1).clamp(min=0)[..., None], too_long[..., None])
    if kl_in_reward and reference is not None:
        token_rewards -= kl_beta * (rollout.logps - rollout.ref_log_probs).masked_fill(~rollout.mask, 0.0)
        kl_beta = 0.0
    if advantage == 'gae':
        value_advantages(policy, rollout, token_rewards, gamma, gae_lambda, micro_batch_size)
        everyone = gather_rewards(rollout.rewards)
    else:
        rollout.rewards += token_rewards.sum(dim=-1)
        everyone = gather_rewards(rollout.rewards)
        if reward_combination == 'advantages':
            rollout.advantages = combined_advantages(rollout.reward_parts, weights, advantage)
        else:
            rollout.advantages = compute_advantages(rollout.rewards, advantage, everyone)
    left_out = rollout.rewards.isnan().cpu()
    if mask_truncated and rollout.ended is not None:
        left_out |= ~rollout.ended
    # an answer of length 0 has no token in the loss and is in none of its counts
    kept = replace(rollout, lengths=rollout.lengths.masked_fill(left_out, 0)) if left_out.any() else rollout
    metrics = {}
    if learn:
        metrics = train_on_rollout(policy, kept, optimizer, micro_batch_size=micro_batch_size, kl_beta=kl_beta, kl_estimator=kl_estimator, reference=reference, **training)
    if reference is not None:
        drop_collected(reference.model)  # its head was needed until now
    lap('time_train')

    own, device = len(rollout.tokens) / len(everyone), rollout.tokens.device  # this rank's part of all answers
    sums = {'mean_advantage': own * rollout.advantages.mean(), 'mean_length': own * rollout.lengths.float().mean(), 'frac_truncated': torch.tensor(0.0) if rollout.ended is None else own * (~rollout.ended).float().mean()}
    if overlong_penalty:
        sums['overlong_penalty'] = own * too_long.mean()
    if dynamic_sampling:
        sums['resampled_groups'] = torch.tensor(float(resampled))
    metrics |= dict(zip(sums, all_reduce(torch.stack([value.to(device) for value in sums.values()])).tolist()))
    rewarded = everyone[~everyone.isnan()]
    metrics |= {'mean_reward': rewarded.mean().item(), 'std_reward': rewarded.std().item(), 'frac_reward_zero_std': all_equal(everyone).float().mean().item()} | part_means(rollout.reward_parts)
    return metrics | times | {'tokens_per_s': metrics['mean_length'] * everyone.numel() / sum(times.values())}, rollout


def es_training_step(policy, batch, params, rewards, group_size, **options):
    """
    An iteration like grpo_training_step, by es_step: fitness is the mean reward of group_size answers to each prompt of batch, the same prompts and noise
    each time. Returns (metrics, rollout), both of the policy as it was before the step; weights that adapt see its answers alone.
    """
    start = time.perf_counter()

    with ranks.together(policy.model.wte.weight.device):
        rollout = policy.sample(batch, group_size)
        values = reward_values(policy, rollout, rewards)
    weights = compute_rewards(policy, rollout, rewards, values)
    fixed = [(name, function, weights[name]) for name, function, _ in rewards]
    tokens = [0]

    def fitness():
        tried = policy.sample(batch, group_size)
        compute_rewards(policy, tried, fixed)
        tokens[0] += tried.lengths.sum().item()
        return tried.rewards.nanmean().item()

    found = es_step(params, fitness, **options)
    rollout.advantages = compute_advantages(rollout.rewards, 'dr_grpo')
    return {'mean_reward': rollout.rewards.nanmean().item(), 'std_reward': rollout.rewards[~rollout.rewards.isnan()].std().item(), 'mean_fitness': found.mean().item(), 'best_fitness': found.max().item(),
            'mean_length': rollout.lengths.float().mean().item(), **part_means(rollout.reward_parts),
            'tokens_per_s': tokens[0] / (time.perf_counter() - start)}, rollout
