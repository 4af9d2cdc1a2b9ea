"""
Group Relative Policy Optimization (GRPO, arXiv 2402.03300): one step, as four phases that can each be called
alone.

    generate_rollouts -> compute_rewards -> compute_advantages -> train_on_rollout

A policy is any object with a `model` (whose `lm_head` has no bias), `temperature`, `forbidden` (V,) bool
(ids that are never sampled), `max_new_tokens`, `mirror` (a reference's MirrorMap, else None) and three
methods: `sample(prompts, group_size) -> Rollout`; `hidden(rollout) -> (P, H, R, D)`, the hidden states that
predict the completions' tokens (H = 1 when a group shares them, as in fill-in, else H = G); `texts(rollout)
-> P lists of G strings`.

Where this differs from the paper and from common practice:
1. The loss is a sum divided by counts of the whole optimizer step, known before the first backward. So the
   gradient is the same however the step is cut into micro-batches and ranks.
2. Log-probs are those of the distribution that was sampled from, with its temperature, forbidden ids and
   nucleus, for policy, old policy and reference alike. The old policy is the sampler itself, so the ratio
   also corrects a sampler that rounds differently.
3. Masks come from lengths, never from token values. What stands in padding, even NaN, has no influence.
4. At the first step on a rollout the ratio is 1 up to rounding: the gradient is REINFORCE's, whatever the
   loss prints. Later minibatches and epochs are off-policy, and there the clip counts.
Shapes: P prompts · G completions of each · R completion tokens · V vocabulary · D width.
"""
import itertools
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Annotated, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch.nn import functional as F

from kernels import fused_loss, logits_of, unit_logps, unpack
from mirror import Divergence, Weighting, token_divergence
from runtime import ranks
from runtime.config import Count, Natural, NonNegative, Positive, Share
from runtime.console import over
from runtime.shard import drop_collected, gathered, is_shard, is_sharded, whole_norm

# Each loss and what it divides by, see aggregate; policy_loss has a branch for it.
LOSS_TYPES = {'grpo': 'own length', 'dapo': 'tokens', 'dr_grpo': 'max_new_tokens', 'gspo': 'own length',
              'cispo': 'tokens', 'reinforce': 'completions'}
LossType = Literal[tuple(LOSS_TYPES)]
Estimator = Literal['k1', 'k2', 'k3', 'exact']
Advantage = Literal['grpo', 'dr_grpo', 'batch', 'rloo', 'gae']


@dataclass
class Settings:
    """The settings of a step. `cfg`, which goes through all of it, also holds those of train_grpo.py."""
    # sampling
    group_size: Annotated[int, '[2, inf)'] = 8      # G: completions of each prompt
    temperature: Positive = 0.8                     # of sampling and of scoring alike
    top_k: Natural = 0                              # 0 is off; scoring keeps to what top_k and top_p leave
    top_p: Annotated[float, '(0, 1]'] = 1.0         # 1 is off
    sampling_batch_size: Count | None = None        # sampled at once, while the part before is rewarded
    dynamic_sampling: Natural = 0                   # rounds of replacing groups of equal rewards
    # rewards and advantages
    advantage: Advantage = 'grpo'                   # 'gae' is PPO's, with a value head
    reward_combination: Literal['rewards', 'advantages'] = 'rewards'  # what is weighted and summed
    mask_truncated: bool = False                    # True: completions that were cut off are not trained on
    overlong_penalty: Natural = 0                   # penalty from 0 to 1 over the last so many tokens
    gamma: Share = 1.0                              # the discount of 'gae'
    gae_lambda: Share = 0.95                        # 0: one step ahead, 1: the whole return
    value_coef: NonNegative = 0.5                   # of the value head's squared error
    value_clip: Positive | None = 0.2               # how far its values may move in a step's loss
    # the loss
    loss_type: LossType = 'grpo'                    # how tokens are clipped (reinforce: not) and averaged
    num_epochs_per_rollout: Count = 1               # mu: times that the completions are learned from
    minibatch_size: Count | None = None             # prompts of an optimizer step, all ranks; None: all
    micro_batch_size: Count | None = None           # prompts of one forward; changes memory, not the result
    micro_batch_tokens: Count | None = None         # or their tokens, with all completions; at least a prompt
    clip_low: Share = 0.2                           # the ratio's lower bound is 1 - clip_low, where A < 0
    clip_high: NonNegative = 0.2                    # those with A > 0 at 1 + clip_high; cispo clips here
    dual_clip: Annotated[float, '(1, inf)'] | None = None  # where A < 0, a loss is at most this times |A|
    entropy_coef: NonNegative = 0.0                 # above 0 keeps the entropy up
    grad_clip: NonNegative = 1.0                    # the largest norm of the gradient; 0 is off
    # the leash to the reference: what it costs to leave it
    kl_beta: NonNegative = 0.1                      # 0 needs no reference
    kl_estimator: Estimator = 'exact'               # 'exact' sums over the vocabulary
    kl_in_reward: bool = False                      # True: k1 is taken off the reward instead
    divergence: Divergence = 'kl'                   # others take mirror_coefficient; '...kl' adds the KL
    mirror_coefficient: NonNegative = 1e-4          # of a divergence other than the KL
    mirror_weighting: Weighting = 'token'           # 'is', importance sampling: over the token's probability
    mirror_init_scale: Positive = 0.01              # neural_mirror's parameters are drawn from [0, this)
    mirror_seed: Natural = 42                       # with this seed
    mirror_normalize: bool = False                  # True: curvature 2 at probability 1/2, as the KL's
    mirror_checkpoint: str | None = None            # a learned mirror, or another run's ckpt.pt
    # optimizer='es'
    es_pairs: Count = 16                            # directions tried both ways, by all ranks together
    es_sigma: Positive = 0.02                       # how far

    @staticmethod
    def check(cfg):
        """Raises ValueError for settings that contradict each other."""
        es, gae, no_reference = cfg.optimizer == 'es', cfg.advantage == 'gae', cfg.reference_mode == 'none'
        other, exact = cfg.divergence != 'kl', cfg.kl_estimator == 'exact'
        of_advantages = cfg.reward_combination == 'advantages'
        for contradiction, message in (
            (other and no_reference, "a divergence compares with a reference, and reference_mode is 'none'"),
            (other and exact, "a divergence looks at sampled tokens: kl_estimator must not be exact"),
            (cfg.mirror_checkpoint and cfg.divergence != 'neural_mirror',
             "mirror_checkpoint is for divergence neural_mirror"),
            (es and (cfg.kl_beta or other), "optimizer es sees rewards alone: kl_beta must be 0"),
            (es and (cfg.entropy_coef or gae), "optimizer es takes neither entropy_coef nor advantage gae"),
            (es and cfg.minibatch_size, "optimizer es takes one step an iteration, and no minibatch_size"),
            (es and cfg.overlong_penalty, "optimizer es takes no overlong_penalty"),
            (cfg.kl_in_reward and (not cfg.kl_beta or no_reference or exact),
             "kl_in_reward needs kl_beta above 0, a reference_mode, and kl_estimator k1, k2 or k3"),
            (of_advantages and (cfg.kl_in_reward or cfg.overlong_penalty or gae or es),
             "reward_combination advantages excludes kl_in_reward, overlong_penalty, gae and optimizer es"),
            (cfg.micro_batch_size and cfg.micro_batch_tokens,
             "micro_batch_size and micro_batch_tokens both cut a step into forwards: set one of them"),
            (cfg.batch_size % (cfg.minibatch_size or 1),
             f"batch_size, {cfg.batch_size}, must be a multiple of minibatch_size, {cfg.minibatch_size}"),
            (cfg.dynamic_sampling and (cfg.shard or es or gae),
             "dynamic_sampling excludes shard, whose ranks keep step, optimizer es and advantage gae"),
            (cfg.sampling_batch_size and cfg.shard and not cfg.gather_to_sample,
             "sampling_batch_size with shard needs gather_to_sample: without it all ranks must keep step"),
        ):
            if contradiction:
                raise ValueError(message)


@dataclass
class Rollout:
    """A batch of prompts with G completions each. The group is always axis 1."""
    batch: dict                             # name -> tensor with P rows: the prompts
    tokens: torch.Tensor                    # (P, G, R) token ids of the completions, right-padded
    lengths: torch.Tensor                   # (P, G) true lengths, on the CPU: reading them waits for no GPU
    logps: torch.Tensor                     # (P, G, R) fp32, of each token when it was sampled
    ended: torch.Tensor | None = None       # (P, G) bool, on the CPU: false where cut off; None: all ended
    allowed: torch.Tensor | None = None     # (P, H, R, V / 8) bits: what top_k and top_p left
    own: torch.Tensor | None = None         # (P, G, R) bool, on the CPU: what the policy wrote; None: all
    ref_logps: torch.Tensor | None = None   # (P, G, R) the reference's
    ref_hidden: torch.Tensor | None = None  # (P, H, R, D) its hidden states instead, for the exact KL
    rewards: torch.Tensor | None = None     # (P, G) weighted sum and token rewards; NaN: no reward applies
    reward_parts: dict | None = None        # name -> (P, G), unweighted; NaN where it does not apply
    advantages: torch.Tensor | None = None  # (P, G); from a value head (P, G, R)
    values: torch.Tensor | None = None      # (P, G, R) what a value head expected before each token
    returns: torch.Tensor | None = None     # (P, G, R) what it should have expected

    @property
    def mask(self):
        """(P, G, R) bool: which tokens are real, and the policy's own."""
        device = self.tokens.device
        lengths = self.lengths[..., None].to(device, non_blocking=True)
        real = torch.arange(self.tokens.shape[-1], device=device) < lengths
        return real if self.own is None else real & self.own.to(device, non_blocking=True)

    @property
    def own_lengths(self):
        """(P, G), on the CPU: how many tokens the policy wrote."""
        if self.own is None:
            return self.lengths
        return (self.own & (torch.arange(self.own.shape[-1]) < self.lengths[..., None])).sum(dim=-1)

    def ids(self):
        """The token ids without padding: P lists of G lists."""
        rows = zip(self.tokens.flatten(0, 1).tolist(), self.lengths.flatten().tolist(), strict=True)
        ids, G = [tokens[:n] for tokens, n in rows], self.lengths.shape[1]
        return [ids[i:i + G] for i in range(0, len(ids), G)]

    def tokens_of_prompts(self):
        """P numbers: the tokens of each prompt and of its completions."""
        return (self.lengths.sum(dim=1) + self.batch.get('prompt_lengths', 0)).tolist()

    def pick(self, prompts):
        """The rollout of some prompts: indices (n,), or a slice."""
        def cut(value):
            if isinstance(value, dict):
                return {name: cut(rows) for name, rows in value.items()}
            if value is None or isinstance(prompts, slice):
                return value if value is None else value[prompts]
            return value[prompts.to(value.device, non_blocking=True)]
        return Rollout(**{field.name: cut(getattr(self, field.name)) for field in fields(self)})

    def without(self, completions):
        """The rollout with completions (P, G) bool at length 0, so that no token of theirs is in the loss."""
        return replace(self, lengths=self.lengths.masked_fill(completions.cpu(), 0))


# -----------------------------------------------------------------------------
# the head: hidden states -> log-probs of the sampling distribution. The first two functions are the readable
# form; training goes through kernels/.

def head_log_probs(policy, hidden, allowed=None):
    """
    Log-probs (..., V) in fp32 that the policy samples from at hidden (..., D): tempered, -inf for forbidden
    ids and for what allowed (..., V / 8 bits) does not leave.
    """
    rows = logits_of(hidden.flatten(0, -2), policy.model.lm_head.weight)
    logits = rows.view(*hidden.shape[:-1], -1).float() / policy.temperature
    if policy.forbidden is not None:
        logits = logits.masked_fill(policy.forbidden, -torch.inf)
    if allowed is not None:
        logits = logits.masked_fill(~unpack(allowed, logits.shape[-1]), -torch.inf)
    return logits.log_softmax(dim=-1)


def gather_logps(log_probs, tokens):
    """Log-probs (P, G, R) of tokens (P, G, R) under log_probs (P, H, R, V); G / H of them read one row."""
    P, G, R = tokens.shape
    H = log_probs.shape[1]
    if log_probs.shape[:3] != (P, H, R) or G % H:
        raise ValueError(f"log_probs {tuple(log_probs.shape)} do not belong to tokens {tuple(tokens.shape)}")
    ids = tokens.view(P, H, G // H, R).transpose(2, 3)                      # (P, H, R, G/H)
    return log_probs.gather(-1, ids).transpose(2, 3).reshape(P, G, R)


def by_unit(tensor, H):
    """(P, G, ...) as (P*H, G/H, ...), H = 1 or G: the completions that share hidden states are a unit."""
    if tensor is None:
        return None
    P, G = tensor.shape[:2]
    return tensor.reshape(P * H, G // H, *tensor.shape[2:])


def rows_that_count(rollout, H):
    """How many rows of each unit predict a token, a list: of the longest completion."""
    return by_unit(rollout.own_lengths, H).amax(dim=1).tolist()


def completion_logps(policy, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probs (P, G, R) of a rollout's tokens and the policy's entropy there (P, G, R), 0 in padding. Only the
    n rows that predict a real token reach the head, and their logits are never held.
    """
    hidden = policy.hidden(rollout)                                         # (P, H, R, D)
    H, mask = hidden.shape[1], rollout.mask
    units, tokens = by_unit(mask, H), by_unit(rollout.tokens.masked_fill(~mask, 0), H)  # (P H, G/H, R)
    allowed = None if rollout.allowed is None else rollout.allowed.flatten(0, 1)
    found = unit_logps(hidden.flatten(0, 1), policy.model.lm_head.weight, tokens, units,
                       rows_that_count(rollout, H), policy.temperature, policy.forbidden, allowed)
    logps, entropy = (values.expand_as(units).reshape(mask.shape) for values in found)  # (P, G, R)
    return logps.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)


# -----------------------------------------------------------------------------
# phase 1: rollouts

def join(parts):
    """One rollout of several; prompts (P, T) and completions (P, G, R, ...) are padded to the longest."""
    if len(parts) == 1:
        return parts[0]

    def joined(values):
        first = values[0]
        if first is None:
            return None
        if isinstance(first, dict):
            return {name: joined([*map(itemgetter(name), values)]) for name in first}
        if first.dim() > 1:
            axis = min(first.dim() - 1, 2)  # of (P, T) and (P, G, R, ...)
            longest, behind = max(value.shape[axis] for value in values), (0, 0) * (first.dim() - 1 - axis)
            values = [F.pad(value, (*behind, 0, longest - value.shape[axis])) for value in values]
        return torch.cat(values)

    columns = {}
    for field in fields(Rollout):
        columns[field.name] = joined([getattr(part, field.name) for part in parts])
    return Rollout(**columns)


def micro_batches(rollout, cfg, in_step=False):
    """
    The rollout cut into parts of micro_batch_size prompts, or of as many as micro_batch_tokens have room for.
    in_step: the ranks, which have equally many prompts, shall have equally many parts.
    """
    P = len(rollout.tokens)
    starts = list(range(0, P, cfg.micro_batch_size or P))
    if cfg.micro_batch_tokens:
        starts, held = [], torch.inf
        for p, n in enumerate(rollout.tokens_of_prompts()):
            if held + n > cfg.micro_batch_tokens:
                starts, held = [*starts, p], 0
            held += n
        if in_step:
            more = ranks.all_reduce(torch.tensor(len(starts), device=rollout.tokens.device), 'max')
            others = [p for p in range(P) if p not in starts]
            starts = sorted(starts + others[:int(more) - len(starts)])
    return [rollout.pick(slice(*ends)) for ends in itertools.pairwise([*starts, P])]


@torch.no_grad()
def generate_rollouts(policy, prompts: dict, cfg: Settings, reference=None, sampled=None) -> Rollout:
    """
    group_size completions of each prompt (a dict of tensors with P rows), with the sampler's log-probs and a
    reference's. sampled(part) is called with each sampling_batch_size prompts' rollout, once it is sampled.
    """
    P = len(next(iter(prompts.values())))
    size, parts = cfg.sampling_batch_size or P, []
    with gathered(policy) as sampler:
        for start in over('sampling', range(0, P, size)):
            rows = {name: values[start:start + size] for name, values in prompts.items()}
            parts.append(sampler.sample(rows, cfg.group_size))
            if sampled:
                sampled(parts[-1])
    rollout = join(parts)
    if reference is not None:
        add_reference(rollout, reference, cfg)
    return rollout


def add_reference(rollout, reference, cfg):
    """Fills in the reference's log-probs of the rollout's tokens, or its hidden states for the exact KL."""
    home, device = reference.model.wte.weight.device, rollout.tokens.device
    if home != device:
        reference.model.to(device)  # an offloaded one goes to the GPU and back
    parts = micro_batches(rollout, cfg, is_sharded(reference.model))
    if cfg.kl_estimator == 'exact':
        rollout.ref_hidden = torch.cat([reference.hidden(part) for part in parts])
    else:
        rollout.ref_logps = torch.cat([completion_logps(reference, part)[0] for part in parts])
    if home != device:
        reference.model.to(home)


# -----------------------------------------------------------------------------
# phase 2: rewards, a list of (name, function, weight). function(policy, rollout) -> (P, G), or lists with
# None where it does not apply, or {name: either} for several names at once. A weight that adapts is a
# function of the reward's values.

def reward_tensor(name, values, device=None):
    """
    (P, G) fp32 of a reward's values, a tensor or lists; None in a list becomes NaN: it does not apply. Raises
    FloatingPointError for any other NaN, and for what is infinite.
    """
    missing = torch.tensor(False)
    if isinstance(values, list):
        listed, shape = [value for row in values for value in row], (len(values), -1)
        missing = torch.tensor([value is None for value in listed]).view(shape)
        values = torch.tensor([0.0 if value is None else value for value in listed]).view(shape)
    tensor = torch.as_tensor(values, dtype=torch.float32, device=device)
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        n = tensor.numel()
        raise FloatingPointError(f"reward {name!r} is NaN or infinite for {bad} of {n} completions")
    return tensor.masked_fill(missing.to(tensor.device, non_blocking=True), torch.nan)


def overlong(lengths: torch.Tensor, max_new_tokens: int, ramp: int) -> torch.Tensor:
    """DAPO's penalty (arXiv 2503.14476, eq. 13) of lengths (P, G): from 0 to -1 over the last ramp tokens."""
    return -(lengths - (max_new_tokens - ramp)).clamp(min=0) / ramp


def all_equal(rewards):
    """(P,) bool: whether all rewards (P, G) that apply to a group are the same, or none applies."""
    return rewards.nan_to_num(torch.inf).amin(dim=1) >= rewards.nan_to_num(-torch.inf).amax(dim=1)


def weighted_reward(parts, weights):
    """
    The sum of w r, (P, G), from parts {name: (P, G)} and weights {name: float}. Where parts are NaN: the sum
    of the others times (sum of all |w|) / (sum of their |w|); NaN where no weight is left.
    """
    total = sum(weights[name] * part for name, part in parts.items())
    if not total.isnan().any():
        return total
    total = sum(weights[name] * part.nan_to_num(0.0) for name, part in parts.items())
    present = sum(abs(weights[name]) * (~part.isnan()) for name, part in parts.items())
    scale = sum(map(abs, weights.values()))
    return (total * scale / present).masked_fill(present == 0, torch.nan)


@torch.no_grad()
def reward_values(policy, rollout, rewards):
    """{name: (P, G)}: what the reward functions say, unweighted. Raises as compute_rewards does."""
    shape, values, results = tuple(rollout.lengths.shape), {}, {}
    for name, function, _ in rewards:
        if function not in results:  # one that rewards under several names is called once
            results[function] = function(policy, rollout)
        result = results[function][name] if isinstance(results[function], dict) else results[function]
        values[name] = reward_tensor(name, result, rollout.tokens.device)
        if values[name].shape != shape:
            raise ValueError(f"reward {name!r} has shape {tuple(values[name].shape)}; it must be {shape}, "
                             "(prompts, completions)")
    return values


def compute_rewards(policy, rollout: Rollout, rewards: list, values: dict | None = None) -> dict[str, float]:
    """
    Fills in rollout.rewards (P, G), the weighted sum, and rollout.reward_parts; values: these parts, where
    they are known. Returns the weights {name: float}. Raises FloatingPointError when a reward is not finite,
    ValueError when none applies to any of this rank's completions.
    """
    rollout.reward_parts = reward_values(policy, rollout, rewards) if values is None else values
    weights = {}
    for name, _, weight in rewards:
        weights[name] = weight(rollout.reward_parts[name]) if callable(weight) else weight
    rollout.rewards = weighted_reward(rollout.reward_parts, weights)
    if rollout.rewards.isnan().all():
        names = ', '.join(map(repr, weights))
        raise ValueError(f"none of the rewards {names} applies to any completion")
    return weights


# -----------------------------------------------------------------------------
# phase 3: advantages

def unknown(setting, value, choices):
    """The ValueError for a value that a function has no branch for, be it a new one of the choices."""
    known = ', '.join(choice for choice in choices if choice != value)
    return ValueError(f"{setting} is {value!r}; it must be one of {known}")


def compute_advantages(rewards: torch.Tensor, kind: str = 'grpo',
                       all_rewards: torch.Tensor | None = None) -> torch.Tensor:
    """
    Advantages (P, G) from rewards (P, G); 0 where the reward is NaN. Sources: grpo arXiv 2402.03300, dr_grpo
    2503.20783, rloo 2402.14740; batch divides by the std of the whole step (all_rewards: with the other
    ranks'). Raises ValueError for groups of one completion.
    """
    P, G = rewards.shape
    if G < 2:
        raise ValueError("group_size is 1: an advantage compares, so a group needs at least 2 completions")
    all_rewards = rewards if all_rewards is None else all_rewards
    if all_rewards.isnan().any():
        all_rewards = all_rewards[~all_rewards.isnan()]
    missing = rewards.isnan()
    if missing.any():
        advantages = torch.zeros_like(rewards)
        for row, present in enumerate(~missing):
            if present.sum() > 1:
                judged = rewards[row, present][None]
                advantages[row, present] = compute_advantages(judged, kind, all_rewards)[0]
        return advantages
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    # equal rewards carry no signal: exactly 0, not rounding residue over a tiny std
    centred = centred.masked_fill((rewards == rewards[:, :1]).all(dim=1, keepdim=True), 0.0)
    if kind == 'grpo':
        return centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
    if kind == 'dr_grpo':
        return centred
    if kind == 'batch':
        return centred / (all_rewards.std() + 1e-4)
    if kind == 'rloo':
        return centred * (G / (G - 1))  # r - mean of the other G - 1
    raise unknown('advantage', kind, get_args(Advantage))


def combined_advantages(parts: dict, weights: dict[str, float], kind: str = 'grpo') -> torch.Tensor:
    """
    Each reward compared within its group by itself, then weighted: sum of w A / sum of |w|, (P, G), from
    parts {name: (P, G)} and weights {name: float}. With a cost of weight -lambda it is Safe RLHF's
    (A_R - lambda A_C) / (1 + lambda) (arXiv 2310.12773).
    """
    total = 0.0
    for name, values in parts.items():
        total = total + weights[name] * compute_advantages(values, kind, ranks.gather(values))
    return total / max(sum(map(abs, weights.values())), 1e-8)


def gae(rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0,
        gae_lambda: float = 0.95) -> torch.Tensor:
    """
    PPO's advantages (..., R), 0 in padding, from per-token rewards, values and mask (..., R): the sum of
    (gamma lambda)^l times the TD error of l tokens later, within the completion (arXiv 1506.02438).
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(rewards)
    later = next_value = torch.zeros_like(rewards[..., 0])
    for t in reversed(range(rewards.shape[-1])):
        here = rewards[..., t] + gamma * next_value - values[..., t] + gamma * gae_lambda * later
        later = advantages[..., t] = torch.where(mask[..., t], here, later)
        next_value = torch.where(mask[..., t], values[..., t], next_value)
    return advantages.masked_fill(~mask, 0.0)


@torch.no_grad()
def value_advantages(policy, rollout, token_rewards, cfg):
    """
    PPO's: fills in values, returns and advantages (P, G, R), whitened over the whole step, by the model's
    value_head (D -> 1). The completion's reward is added to token_rewards (P, G, R) at its last token.
    """
    mask = rollout.mask & ~rollout.rewards.isnan()[..., None]
    parts = micro_batches(rollout, cfg, is_sharded(policy.model))
    values = torch.cat([policy.model.value_head(policy.hidden(part)).squeeze(-1).float() for part in parts])
    rollout.values = values.masked_fill(~mask, 0.0)
    with_reward = token_rewards.scatter_add(-1, last_tokens(rollout), rollout.rewards[..., None])
    advantages = gae(with_reward, rollout.values, mask, cfg.gamma, cfg.gae_lambda)
    rollout.returns = advantages + rollout.values
    sums = torch.stack((mask.sum(), advantages.sum(), advantages.square().sum()))
    n, total, squares = ranks.all_reduce(sums)
    mean = total / n
    std = (squares / n - mean.square()).clamp(min=0).sqrt()
    rollout.advantages = ((advantages - mean) / (std + 1e-8)).masked_fill(~mask, 0.0)


def last_tokens(rollout):
    """(P, G, 1) the place of each completion's last own token."""
    mask = rollout.mask
    return (mask * torch.arange(mask.shape[-1], device=mask.device)).amax(dim=-1, keepdim=True)


def token_rewards_of(policy, rollout, reference, cfg):
    """(P, G, R): minus the overlong penalty at the last token, minus kl_beta times k1 at each; else 0."""
    token_rewards = torch.zeros_like(rollout.logps)
    if cfg.overlong_penalty:
        penalty = overlong(rollout.own_lengths, policy.max_new_tokens, cfg.overlong_penalty)[..., None]
        token_rewards.scatter_(-1, last_tokens(rollout), penalty.to(token_rewards.device))
    if cfg.kl_in_reward and reference is not None:
        token_rewards -= cfg.kl_beta * (rollout.logps - rollout.ref_logps).masked_fill(~rollout.mask, 0.0)
    return token_rewards


def fill_advantages(policy, rollout, token_rewards, weights, cfg):
    """Fills in rollout.advantages, with the token rewards (P, G, R); weights: of the reward parts."""
    if cfg.advantage == 'gae':
        value_advantages(policy, rollout, token_rewards, cfg)
        return
    rollout.rewards += token_rewards.sum(dim=-1)
    if cfg.reward_combination == 'advantages':
        rollout.advantages = combined_advantages(rollout.reward_parts, weights, cfg.advantage)
    else:
        rollout.advantages = compute_advantages(rollout.rewards, cfg.advantage, ranks.gather(rollout.rewards))


# -----------------------------------------------------------------------------
# phase 4: learning. First the loss

def aggregate(values, mask, loss_type, n_completions, n_tokens, max_new_tokens=None):
    """
    One number from per-token values (..., R): this part's share of the step's loss. n_completions and
    n_tokens count the whole step, all micro-batches and ranks, so that the shares add up to its loss.
    """
    per_completion = values.masked_fill(~mask, 0.0).sum(dim=-1)             # (...,)
    average = LOSS_TYPES.get(loss_type)
    if average == 'own length':
        return (per_completion / mask.sum(dim=-1).clamp(min=1)).sum() / n_completions
    if average == 'tokens':
        return per_completion.sum() / n_tokens
    if average == 'max_new_tokens':
        return per_completion.sum() / (n_completions * (max_new_tokens or mask.shape[-1]))
    if average == 'completions':
        return per_completion.sum() / n_completions
    raise unknown('loss_type', loss_type, LOSS_TYPES)


def policy_loss(logps: torch.Tensor, old_logps: torch.Tensor, advantages: torch.Tensor,  # noqa: PLR0913
                mask: torch.Tensor, loss_type: str = 'grpo', clip_low: float = 0.2, clip_high: float = 0.2,
                dual_clip: float | None = None, n_completions: torch.Tensor | int | None = None,
                n_tokens: torch.Tensor | int | None = None,
                max_new_tokens: int | None = None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """
    The definition of the loss; the fused one calls it. logps, old_logps, mask (..., R); advantages (...), or
    one for each token (..., R). n_completions, n_tokens: of the whole step (default: of these tensors).
    Returns (loss, stats), shares that add up over micro-batches. Sources: grpo arXiv 2402.03300, dapo
    2503.14476, dr_grpo 2503.20783, gspo 2507.18071, cispo 2506.13585.
    """
    n_completions = mask.any(dim=-1).sum() if n_completions is None else n_completions
    n_tokens = mask.sum() if n_tokens is None else n_tokens
    A = advantages if advantages.dim() == logps.dim() else advantages[..., None]  # (..., 1 or R)
    logps = logps.masked_fill(~mask, 0.0)
    log_ratio = logps - old_logps.masked_fill(~mask, 0.0)                   # (..., R)
    if loss_type == 'gspo':  # one ratio for the whole completion: the geometric mean of its tokens'
        mean = log_ratio.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)
        log_ratio = mean.expand_as(log_ratio)
    ratio = log_ratio.exp()
    # what is counted as clipped, and then the losses, which clip
    too_low = (ratio < 1 - clip_low) & (A < 0) & mask
    too_high = (ratio > 1 + clip_high) & (A > 0) & mask

    if loss_type == 'reinforce':
        terms = -A * logps
        too_low, too_high = torch.zeros_like(mask), torch.zeros_like(mask)
    elif loss_type == 'cispo':
        terms = -ratio.detach().clamp(max=1 + clip_high) * A * logps
        too_low, too_high = torch.zeros_like(mask), (ratio > 1 + clip_high) & mask
    elif loss_type in ('grpo', 'gspo', 'dapo', 'dr_grpo'):
        gain = torch.minimum(ratio * A, ratio.clamp(1 - clip_low, 1 + clip_high) * A)
        if dual_clip is not None:  # bounds the loss of a bad completion that became likely (1912.09729)
            gain = torch.where(A < 0, torch.maximum(gain, dual_clip * A), gain)
        terms = -gain
    else:
        raise unknown('loss_type', loss_type, LOSS_TYPES)
    loss = aggregate(terms, mask, loss_type, n_completions, n_tokens, max_new_tokens)
    return loss, {'clip_frac_low': too_low.sum() / n_tokens, 'clip_frac_high': too_high.sum() / n_tokens}


def kl_estimate(logps: torch.Tensor, ref_logps: torch.Tensor, kind: str) -> torch.Tensor:
    """
    KL(policy || reference) per token, (..., R). k1, k2, k3 (joschu.net/blog/kl-approx.html) take log-probs
    (..., R) of the sampled tokens, 'exact' whole distributions (..., R, V). In the loss the gradient of k1 is
    zero on average, that of k2 and exact is this KL's, that of k3 is KL(reference || policy)'s.
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
    raise unknown('kl_estimator', kind, get_args(Estimator))


class Tokens(NamedTuple):
    """A part of a rollout, for the loss: u rows of K completions that share hidden states."""
    old_logps: torch.Tensor         # (u, K, R)
    ref_logps: torch.Tensor | None  # (u, K, R)
    advantages: torch.Tensor        # (u, K), or one for each token (u, K, R)
    mask: torch.Tensor              # (u, K, R)
    counts: dict                    # n_completions and n_tokens of the whole step, max_new_tokens

    def mean_share(self, values):
        """This part's share of the mean over the step's tokens, of values that broadcast to (u, K, R)."""
        values = values.detach().expand_as(self.mask).masked_fill(~self.mask, 0.0)
        return values.sum() / self.counts['n_tokens']

    def loss_share(self, values, loss_type):
        """This part's share of the step's loss, of values that broadcast to (u, K, R), one for each of K."""
        return aggregate(values.expand_as(self.mask), self.mask, loss_type, **self.counts)


def policy_term(part, logps, entropy, cfg):
    """Makes good completions likelier: policy_loss minus entropy_coef * entropy. Returns (loss, stats)."""
    loss, stats = policy_loss(logps, part.old_logps, part.advantages, part.mask, cfg.loss_type, cfg.clip_low,
                              cfg.clip_high, cfg.dual_clip, **part.counts)
    stats |= {'pg_loss': loss.detach(), 'mean_log_prob': part.mean_share(logps)}
    stats['entropy'] = part.mean_share(entropy)
    if cfg.entropy_coef:
        loss = loss - cfg.entropy_coef * part.loss_share(entropy, cfg.loss_type)
    return loss, stats


def leash_term(part, logps, kl, cfg, mirror):
    """
    Holds the policy near its reference: kl_beta * KL, another divergence with mirror_coefficient, or both.
    kl: the exact one (u, 1, R), used where the part has no ref_logps. Returns (loss, stats).
    """
    if part.ref_logps is not None:
        ref_logps = part.ref_logps.masked_fill(~part.mask, 0.0)
        kl = kl_estimate(logps, ref_logps, cfg.kl_estimator)
    in_loss = cfg.divergence.endswith('kl') and not cfg.kl_in_reward
    loss = (cfg.kl_beta if in_loss else 0.0) * part.loss_share(kl, cfg.loss_type)
    stats = {'kl_penalty': loss.detach(), 'mean_kl': part.mean_share(kl)}
    if cfg.divergence != 'kl':
        D = token_divergence(logps, ref_logps, cfg.divergence, cfg.mirror_weighting, mirror)
        penalty = cfg.mirror_coefficient * part.loss_share(D, cfg.loss_type)
        loss, stats['mirror_penalty'] = loss + penalty, penalty.detach()
    return loss, stats


def value_term(policy, rollout, hidden, n_tokens, cfg):
    """The value head's squared error, clipped around its old values (PPO). Returns (loss, stats)."""
    mask, values = rollout.mask, policy.model.value_head(hidden).squeeze(-1).float()  # (P, G, R)
    error = (values - rollout.returns).square()
    if cfg.value_clip is not None:
        near = rollout.values + (values - rollout.values).clamp(-cfg.value_clip, cfg.value_clip)
        error = torch.maximum(error, (near - rollout.returns).square())
    loss = 0.5 * error.masked_fill(~mask, 0.0).sum() / n_tokens
    return cfg.value_coef * loss, {'value_loss': loss.detach()}


def rollout_loss(policy, rollout, n_completions, n_tokens, cfg, reference=None):
    """
    The loss of a rollout or of a part of one: policy_term + leash_term + value_term. n_completions and
    n_tokens count the whole step. reference: a policy, for the exact KL and for its mirror. Returns (loss,
    stats) as policy_loss does; stats['sampler_gap_max'] alone is a maximum. fused_loss calls loss_of part by
    part and differentiates at once; backward() hands these gradients on.
    """
    hidden = policy.hidden(rollout)                                         # (P, H, R, D)
    H = hidden.shape[1]
    counts = {'n_completions': n_completions, 'n_tokens': n_tokens, 'max_new_tokens': policy.max_new_tokens}
    columns = (rollout.logps, rollout.ref_logps, rollout.advantages, rollout.mask)
    all_tokens = Tokens(*(by_unit(column, H) for column in columns), counts)
    leashed = rollout.ref_hidden is not None or rollout.ref_logps is not None
    stats = dict.fromkeys(('sampler_gap_max', 'kl_penalty'), torch.zeros((), device=hidden.device))

    def loss_of(units, logps, entropy, kl):
        """The share of some units (a slice): logps (u, K, R); entropy and kl (u, 1, R), one for all K."""
        part = Tokens(*(None if x is None else x[units] for x in all_tokens[:4]), counts)
        loss, shares = policy_term(part, logps, entropy, cfg)
        if leashed:
            leash, leash_shares = leash_term(part, logps, kl, cfg, getattr(reference, 'mirror', None))
            loss, shares = loss + leash, shares | leash_shares
        # the sampler gap: |log-prob now - when it was sampled|
        gap = (logps.detach() - part.old_logps).abs().masked_fill(~part.mask, 0.0)
        shares |= {'loss': loss.detach(), 'sampler_gap_mean': gap.sum() / n_tokens}
        add_shares(stats, shares)
        stats['sampler_gap_max'] = torch.maximum(stats['sampler_gap_max'], gap.max())
        return loss

    ref_hidden, ref_weight = None, None
    if rollout.ref_hidden is not None:
        ref_hidden = rollout.ref_hidden.flatten(0, 1)
        ref_weight = reference.model.lm_head.weight.to(hidden.device)
    allowed = None if rollout.allowed is None else rollout.allowed.flatten(0, 1)
    tokens = by_unit(rollout.tokens.masked_fill(~rollout.mask, 0), H)
    loss = fused_loss(hidden.flatten(0, 1), policy.model.lm_head.weight, tokens, all_tokens.mask, loss_of,
                      policy.temperature, policy.forbidden, allowed, ref_hidden, ref_weight,
                      counts=rows_that_count(rollout, H))
    if rollout.returns is not None:
        of_values, shares = value_term(policy, rollout, hidden, n_tokens, cfg)
        loss = loss + of_values
        add_shares(stats, shares)
    return loss, stats


def add_shares(stats, shares):
    """Add shares {name: number} to what stats holds of the same names."""
    for name, value in shares.items():
        stats[name] = stats.get(name, 0.0) + value


# -----------------------------------------------------------------------------
# phase 4, the optimizer's steps

def usable(rollout, cfg):
    """The rollout without completions that no reward judged or, with mask_truncated, that were cut off."""
    left_out = rollout.rewards.isnan().cpu()
    if cfg.mask_truncated and rollout.ended is not None:
        left_out |= ~rollout.ended
    return rollout.without(left_out) if left_out.any() else rollout


def drop_silent_groups(rollout, cfg, sharded):
    """
    The prompts that the loss needs, sorted by length so that short ones share a micro-batch. Groups of equal
    rewards carry no gradient and are dropped, unless a KL, a value head or the entropy counts. The ranks of a
    sharded model keep the same number of prompts: those that do not teach have no token left.
    """
    teaches = (rollout.advantages != 0).flatten(1).any(dim=1)               # (P,)
    if not (rollout.ref_logps is rollout.ref_hidden is rollout.returns is None) or cfg.entropy_coef:
        teaches = torch.ones_like(teaches)
    own, total = teaches.sum(), ranks.all_reduce(teaches.sum())
    most = ranks.all_reduce(teaches.sum(), 'max')
    if total == 0 and ranks.is_first():
        teaches[0] = True  # or there would be nothing to log
    rollout = rollout.without(~teaches[:, None])
    n = int(most if sharded else own) or 1
    prompts = (~teaches).int().argsort(stable=True)[:n].cpu()
    return rollout.pick(prompts[rollout.lengths[prompts].amax(dim=1).argsort(stable=True)])


def sum_gradients(params, bucket=1 << 25):
    """
    Every rank's gradient becomes the sum over the ranks: each had its share of one loss. Shards are summed in
    backward already. bucket: how many numbers are copied and sent at once.
    """
    for p in params:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    waiting = [p.grad for p in params if not is_shard(p)] if dist.is_initialized() else []
    while waiting:
        sizes = [grad.numel() for grad in waiting]
        n = max(1, sum(total <= bucket for total in itertools.accumulate(sizes)))
        flat = ranks.all_reduce(torch.cat([grad.flatten() for grad in waiting[:n]]))
        for grad, summed in zip(waiting[:n], flat.split(sizes[:n]), strict=True):
            grad.copy_(summed.view_as(grad))
        waiting = waiting[n:]


def take_step(optimizer, params, grad_clip, scaler):
    """
    Clip the gradient and step. Returns (its norm, 1 if it was not finite and the step was skipped, else 0).
    With a scaler, which skips steps while it looks for its scale, they count once that is below 1.
    """
    scaler.unscale_(optimizer)
    # clipped after the sum over ranks: the norm that counts is the whole step's
    norm = whole_norm(torch.nn.utils.clip_grad_norm_(params, grad_clip or torch.inf))
    finite, trying = torch.isfinite(norm), scaler.is_enabled() and scaler.get_scale() >= 1
    if finite or scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
    return norm, int(not finite and not trying)


def minibatches(rollout, cfg, epoch):
    """
    The parts of a rollout that the optimizer steps of an epoch learn from: minibatch_size prompts of all
    ranks. Of each n neighbouring prompts every one of the n parts takes one, in an order drawn by their
    seeds: so ranks have equal shares, and the same prompts meet on any number of ranks.
    """
    P, n_ranks = len(rollout.tokens), dist.get_world_size() if dist.is_initialized() else 1
    size = (cfg.minibatch_size or P * n_ranks) // n_ranks
    if size == P:
        return [rollout]
    if size == 0 or P % size:
        raise ValueError(f"{P} prompts on each of {n_ranks} ranks: no minibatches of {cfg.minibatch_size}")
    noise = [random.Random(f'{seed} epoch {epoch}').random() for seed in rollout.batch['seeds'].tolist()]
    order = torch.tensor(noise, dtype=torch.double).view(size, -1).argsort(dim=1)  # (size, n)
    blocks = torch.arange(P).view(size, -1)
    return [rollout.pick(prompts) for prompts in blocks.gather(1, order).unbind(dim=1)]


def accumulate_gradient(policy, rollout, cfg, reference, scaler):
    """
    Backward over a minibatch's micro-batches. Returns its stats, shares of means over its tokens, and the
    counts of its tokens that they were divided by and that were looked at, over all ranks.
    """
    mask, stats = rollout.mask, {}
    # of all usable completions, those of silent groups among them
    n_completions, n_tokens = ranks.all_reduce(torch.stack((mask.any(dim=-1).sum(), mask.sum()))).clamp(min=1)
    in_step = is_sharded(policy.model)
    rollout = drop_silent_groups(rollout, cfg, in_step)
    largest_gap = torch.zeros((), device=mask.device)
    for part in over('learning', micro_batches(rollout, cfg, in_step)):
        loss, shares = rollout_loss(policy, part, n_completions, n_tokens, cfg, reference)
        scaler.scale(loss).backward()
        largest_gap = torch.maximum(largest_gap, shares.pop('sampler_gap_max'))
        add_shares(stats, shares)
    stats['sampler_gap_max'] = largest_gap
    return stats, n_tokens, ranks.all_reduce(rollout.mask.sum())


def train_on_rollout(policy, rollout: Rollout, optimizer: torch.optim.Optimizer, cfg: Settings,
                     reference=None) -> dict[str, float]:
    """
    num_epochs_per_rollout epochs over a rollout that has its advantages, an optimizer step for each of their
    minibatches. The old log-probs stay those of sampling. fp16 wants a torch.amp.GradScaler as
    optimizer.scaler. Returns stats of the iteration as floats: means over the epochs' tokens, what was
    clipped also epoch by epoch; the sampler gap is the first step's, when nothing has changed yet. A step
    whose gradient is not finite is skipped and counted in bad_steps.
    """
    params = [p for group in optimizer.param_groups for p in group['params']]  # fp32, always
    scaler = getattr(optimizer, 'scaler', None) or torch.amp.GradScaler(enabled=False)
    drop_collected(policy.model)
    epochs, all_tokens = cfg.num_epochs_per_rollout, ranks.all_reduce(rollout.mask.sum()).clamp(min=1)
    totals, all_seen, gap, norms, bad_steps = {}, 0, {}, [], 0
    policy.model.train()  # matters for LoRA's dropout alone
    for epoch in range(epochs):
        for minibatch in minibatches(rollout, cfg, epoch):
            optimizer.zero_grad(set_to_none=True)
            with ranks.breakable(not norms and not dist.is_initialized()):
                stats, n_tokens, n_seen = accumulate_gradient(policy, minibatch, cfg, reference, scaler)
            step_gap = {'max': stats.pop('sampler_gap_max'), 'mean': stats.pop('sampler_gap_mean')}
            gap = gap or step_gap | {'scale': n_tokens / n_seen.clamp(min=1)}
            share = n_tokens / all_tokens
            add_shares(totals, {name: value * share / epochs for name, value in stats.items()})
            if epochs > 1:
                for side in ('clip_frac_low', 'clip_frac_high'):
                    add_shares(totals, {f'{side}/epoch_{epoch + 1}': stats[side] * share})
            all_seen += n_seen
            sum_gradients(params)
            norm, bad = take_step(optimizer, params, cfg.grad_clip, scaler)
            norms.append(norm)
            bad_steps += bad
    policy.model.eval()
    totals['sampler_gap_mean'] = gap['mean']
    summed = ranks.all_reduce(torch.stack([value.float() for value in totals.values()]))
    metrics = dict(zip(totals, summed.tolist(), strict=True))
    # silent groups were not looked at: these are means over the tokens that were
    for name in {'mean_log_prob', 'entropy', 'mean_kl'} & metrics.keys():
        metrics[name] *= (epochs * all_tokens / all_seen.clamp(min=1)).item()
    metrics['sampler_gap_mean'] *= gap['scale'].item()
    metrics['sampler_gap_max'] = ranks.all_reduce(gap['max'], 'max').item()
    return metrics | {'grad_norm': torch.stack(norms).mean().item(), 'bad_steps': bad_steps}


# -----------------------------------------------------------------------------
# the step

class Clock:
    """Seconds of a step, by name."""

    def __init__(self):
        self.since, self.times = time.perf_counter(), {}

    def lap(self, name):
        """What has passed since the last lap counts for this name."""
        now = time.perf_counter()
        self.times[name], self.since = self.times.get(name, 0.0) + now - self.since, now


def generate_and_judge(policy, prompts, rewards, cfg, reference, clock):
    """
    The rollout of prompts, with its reward_parts. With sampling_batch_size the rewards of a part are computed
    in a thread, while the next is sampled.
    """
    pending, thread = [], ThreadPoolExecutor(1)

    def judge(part):
        pending.append(thread.submit(reward_values, policy, part, rewards))

    sampled = judge if cfg.sampling_batch_size else None
    try:
        rollout = generate_rollouts(policy, prompts, cfg, reference, sampled)
        clock.lap('time_rollout')
        parts = [part.result() for part in pending] or [reward_values(policy, rollout, rewards)]
        clock.lap('time_reward')
    finally:
        thread.shutdown(wait=False, cancel_futures=True)  # a signal waits for no reward
    rollout.reward_parts = {name: torch.cat([*map(itemgetter(name), parts)]) for name in parts[0]}
    return rollout


def equal_groups(rollout, rewards):
    """(P,) bool, on the CPU: groups of equal rewards, whose weights are numbers."""
    weights = {name: weight for name, _, weight in rewards}
    return all_equal(weighted_reward(rollout.reward_parts, weights)).cpu()


def replace_groups(rollout, groups, fresh):
    """The rollout with those of fresh in place of some groups (P,) bool."""
    order = torch.arange(len(groups))
    order[groups] = len(groups) + torch.arange(len(fresh.tokens))
    return join([rollout, fresh]).pick(order)


def part_means(parts):
    """
    {'reward/<name>': its mean over all ranks' completions that it applies to, 'reward_missing/<name>': the
    share of the others}, from parts {name: (P, G)}.
    """
    sums, metrics = [], {}
    for part in parts.values():
        sums.append(torch.stack((part.nansum(), part.isnan().sum().float(), torch.ones_like(part).sum())))
    for name, (total, missing, n) in zip(parts, ranks.all_reduce(torch.stack(sums)).tolist(), strict=True):
        if missing < n:
            metrics[f'reward/{name}'] = total / (n - missing)
        metrics[f'reward_missing/{name}'] = missing / n
    return metrics


def rollout_metrics(policy, rollout, all_rewards, cfg):
    """What a step logs of completions and rewards, over all ranks; all_rewards: all their rewards."""
    own = len(rollout.tokens) / len(all_rewards)  # this rank's weight in a mean over ranks
    means = {'mean_advantage': rollout.advantages, 'mean_length': rollout.own_lengths.float()}
    means['frac_truncated'] = torch.zeros(1) if rollout.ended is None else (~rollout.ended).float()
    if cfg.overlong_penalty:
        means['overlong_penalty'] = overlong(rollout.own_lengths, policy.max_new_tokens, cfg.overlong_penalty)
    shares = [own * values.mean().to(all_rewards.device, non_blocking=True) for values in means.values()]
    metrics = dict(zip(means, ranks.all_reduce(torch.stack(shares)).tolist(), strict=True))
    judged = all_rewards[~all_rewards.isnan()]
    metrics |= {'mean_reward': judged.mean().item(), 'std_reward': judged.std().item()}
    metrics['frac_reward_zero_std'] = all_equal(all_rewards).float().mean().item()
    return metrics | part_means(rollout.reward_parts)


def grpo_training_step(policy, prompts: dict, optimizer: torch.optim.Optimizer, rewards: list, cfg: Settings,
                       reference=None, more_prompts=None, learn: bool = True) -> tuple[dict, Rollout]:
    """
    One iteration: sample, reward, compare, learn. prompts: this rank's, a dict of tensors with P rows;
    rewards: see phase 2; reference: a policy or None; more_prompts(attempt): P other prompts, row p to take
    the place of prompt p in dynamic sampling (arXiv 2503.14476); learn False: only sample and reward. Returns
    (metrics, rollout).
    """
    clock, resampled = Clock(), 0
    reference = reference if learn else None
    with ranks.together(policy.model.wte.weight.device, not is_sharded(policy.model)):
        # phases 1 and 2: sample G completions of each prompt, and let the rewards judge them
        rollout = generate_and_judge(policy, prompts, rewards, cfg, reference, clock)
        for attempt in range(1, cfg.dynamic_sampling + 1):
            equal = equal_groups(rollout, rewards)
            if not equal.any():
                break
            others = {name: rows[equal.to(rows.device)] for name, rows in more_prompts(attempt).items()}
            fresh = generate_and_judge(policy, others, rewards, cfg, reference, clock)
            rollout, resampled = replace_groups(rollout, equal, fresh), resampled + len(fresh.tokens)
    clock.lap('time_wait')

    # phases 2 and 3: one reward for each completion, then how much better each was than its group
    weights = compute_rewards(policy, rollout, rewards, rollout.reward_parts)
    token_rewards = token_rewards_of(policy, rollout, reference, cfg)       # (P, G, R)
    fill_advantages(policy, rollout, token_rewards, weights, cfg)           # rollout.advantages

    # phase 4: learn from those that count
    metrics = train_on_rollout(policy, usable(rollout, cfg), optimizer, cfg, reference) if learn else {}
    if reference is not None:
        drop_collected(reference.model)  # a sharded one's head was in use until here
    clock.lap('time_train')
    all_rewards = ranks.gather(rollout.rewards)                                # (P of all ranks, G)
    metrics |= rollout_metrics(policy, rollout, all_rewards, cfg)
    if cfg.dynamic_sampling:
        replaced = torch.tensor(float(resampled), device=all_rewards.device)
        metrics['resampled_groups'] = ranks.all_reduce(replaced).item()
    n_tokens = metrics['mean_length'] * all_rewards.numel()
    return metrics | clock.times | {'tokens_per_s': n_tokens / sum(clock.times.values())}, rollout
