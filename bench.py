"""
Side-by-side speed, printed as ratios: both ways in one process, interleaved, medians. Machines are noisy; ratios less so.
$ python bench.py fill_in        # one GRPO step: all G fills from one forward, against B x G rows through the policy
"""
import copy
import os
import platform
import statistics
import sys
import time

import torch

from data.tokenizer import CharTokenizer
from fill_in import FillInPolicy, choose_slots, fill, make_batch, score_fills
from grpo import compute_advantages, compute_rewards, generate_rollouts, grpo_training_step, kl_estimate, train_on_rollout
from judge import Judge
from model import GPT, configure_optimizers
from pretrain import filler_config

ROUNDS, WARM_UPS = 9, 2


def straightforward_step(policy, reference, judge, batch, group_size, optimizer, kl_beta, texts=None):
    """
    The step as it is usually written: every text copied G times, each copy through sampler, judge, policy and reference,
    logits at every position. texts (P G, T): take these fills instead of drawing some. Leaves the gradient behind, steps if there is an optimizer.
    """
    prompts = batch['tokens'].repeat_interleave(group_size, dim=0)              # (P G, T)
    is_slot = prompts == policy.tokenizer.mask_id

    def log_probs_of(model):
        logits = model.logits(prompts) / policy.temperature                     # (P G, T, V)
        return logits.masked_fill(policy.forbidden, -torch.inf).log_softmax(dim=-1)

    with torch.no_grad():
        if texts is None:
            drawn = torch.multinomial(log_probs_of(policy.model).exp().flatten(0, 1), 1, generator=policy.generator).view_as(prompts)
            texts = torch.where(is_slot, drawn, prompts)
        rewards = 1 - judge.score(texts)
        ref_log_probs = log_probs_of(reference.model)
        advantages = compute_advantages(rewards.view(-1, group_size)).flatten()
    log_probs = log_probs_of(policy.model)
    logps = log_probs.gather(-1, texts[..., None].where(is_slot[..., None], 0)).squeeze(-1)
    ratio = (logps - logps.detach()).exp()
    terms = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None]) + kl_beta * kl_estimate(log_probs, ref_log_probs, 'exact')
    loss = (terms.masked_fill(~is_slot, 0.0).sum(dim=1) / is_slot.sum(dim=1)).mean()
    policy.model.zero_grad(set_to_none=True)
    loss.backward()
    if optimizer:
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()


def gradient_of(policy):
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def assert_equal_gradients(policy, reference, judge, batch, group_size, reward):
    """No speed is printed for two ways that do not compute the same thing: same fills, same gradient."""
    rollout = generate_rollouts(policy, batch, group_size, reference, 'exact')
    compute_rewards(policy, rollout, reward)
    rollout.advantages = compute_advantages(rollout.rewards)
    train_on_rollout(policy, rollout, torch.optim.SGD(policy.model.parameters(), lr=0.0), grad_clip=0, kl_beta=0.1, kl_estimator='exact')
    ours = gradient_of(policy)
    straightforward_step(policy, reference, judge, batch, group_size, None, 0.1, fill(batch, rollout.tokens).flatten(0, 1))
    error = ((gradient_of(policy) - ours).norm() / ours.norm()).item()
    assert error < 1e-4, f"the two ways' gradients differ by {error:.1e}"
    return error


def fill_in(P=32, T=48):
    """Characters of filled text (P G T) per second of each way, at the main job's size."""
    torch.manual_seed(0)
    tokenizer = CharTokenizer([chr(32 + i) for i in range(96)])
    model = GPT(filler_config(tokenizer, T, 3, 4, 96)).eval()
    judge = Judge(model.config, tokenizer.cls_id).eval().requires_grad_(False)
    lengths = torch.full((P,), T)
    chosen = choose_slots('random', lengths, T, (0.25, 0.35), torch.Generator().manual_seed(0))
    batch = make_batch(torch.randint(96, (P, T)), lengths, chosen, tokenizer.mask_id)
    print(f"fill_in: {P} texts of {T} characters, 3 layers of width 96, exact KL, one judge")
    for G in (8, 16):
        ways = {}
        for name in ('ours', 'straightforward'):
            policy = FillInPolicy(copy.deepcopy(model), tokenizer, 0.8)
            ways[name] = policy, policy.with_model(copy.deepcopy(model).requires_grad_(False)), configure_optimizers(policy.model, 0.0, 1e-4, (0.9, 0.99))
        reward = [('judge', lambda policy, rollout: 1 - score_fills(judge, rollout.batch, rollout.tokens), 1.0)]
        other = policy.with_model(copy.deepcopy(model).requires_grad_(False))  # a reference that differs, so that the KL counts
        with torch.no_grad():
            other.model.wte.weight.mul_(2.0)
        error = assert_equal_gradients(policy, other, judge, batch, G, reward)
        seconds = {'ours': [], 'straightforward': []}
        for _ in range(WARM_UPS + ROUNDS):
            for name, (policy, reference, optimizer) in ways.items():
                start = time.perf_counter()
                if name == 'ours':
                    grpo_training_step(policy, batch, optimizer, reward, reference, G, kl_beta=0.1, kl_estimator='exact')
                else:
                    straightforward_step(policy, reference, judge, batch, G, optimizer, 0.1)
                seconds[name].append(time.perf_counter() - start)
        ours, theirs = (seconds[name][WARM_UPS:] for name in ('ours', 'straightforward'))
        ratios = [b / a for a, b in zip(ours, theirs)]
        print(f"  G = {G:2d}: ours {P * G * T / statistics.median(ours):9,.0f} characters/s, straightforward {P * G * T / statistics.median(theirs):9,.0f}: "
              f"{statistics.median(ratios):.2f} times faster (min {min(ratios):.2f}, max {max(ratios):.2f} of {ROUNDS} rounds; gradients equal to {error:.0e})")


BENCHES = {'fill_in': fill_in}

if __name__ == '__main__':
    names = sys.argv[1:]
    if not names or not set(names) <= set(BENCHES):
        sys.exit(f"usage: python bench.py NAME..., one or more of: {', '.join(BENCHES)}")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__} with {torch.get_num_threads()} threads, fp32")
    for name in names:
        BENCHES[name]()
