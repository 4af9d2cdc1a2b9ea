"""
One iteration of config/arithmetic.py, phase by phase, with the shape and the meaning of every tensor: writes
docs/walkthrough.md, or the file that is named.
$ python docs/walkthrough.py                # a quarter of a minute on one core
Each worked equality is computed twice, by hand here and by the code; the script stops where the two differ.
"""
import copy
import math
import os
import sys
import tempfile
from typing import Annotated, Literal

import torch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import grpo
from runtime import config, console
from runtime.masters import configure_optimizers
from tasks import TASKS
from tasks.completion import Completion

ROOT = sys.path[0]
page = []


def say(text):
    page.append(text.strip() + '\n')


def table(header, rows):
    lines = [header, ['---'] * len(header), *rows]
    say('\n'.join(f"| {' | '.join(map(str, line))} |" for line in lines))


def shapes(*rows):
    """(name, tensor, its axes, its meaning)..."""
    cells = []
    for name, tensor, axes, meaning in rows:
        kind = str(tensor.dtype).removeprefix('torch.')
        cells.append((f'`{name}`', tuple(tensor.shape), axes, kind, meaning))
    table(('tensor', 'shape', 'axes', 'type', 'meaning'), cells)


def same(by_hand, by_code):
    """The number as text, once both are known to be equal."""
    equal = math.isclose(by_hand, by_code, rel_tol=1e-4, abs_tol=1e-7)
    assert equal, f"by hand {by_hand}, by the code {by_code}"
    return f'{float(by_code):.4g}'


def settings(*arguments):
    """What train_grpo.py would work with: its defaults, then config files and overrides."""
    path = os.path.join(ROOT, 'train_grpo.py')
    with open(path, encoding='utf-8') as f:
        source = f.read()
    names = vars(config) | {'__file__': path, 'Literal': Literal, 'Annotated': Annotated}
    exec(source[source.index("task: "):source.index('cfg = configure(')], names)
    return config.configure(names, grpo.Settings, tasks=TASKS, argv=arguments)


# -----------------------------------------------------------------------------
# the start

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()
cfg = settings(os.path.join(ROOT, 'config', 'arithmetic.py'), '--n_layer=2', '--n_embd=64',
               '--pretrain_iters=60', '--eval_prompts_n=50', '--kl_beta=0.05', '--kl_estimator=k3',
               f'--generator_checkpoint={folder.name}/start.pt')
console.quiet = True
job = Completion(cfg, 'cpu')
model = job.load_model().eval()
policy, reference = job.policy(model), job.policy(copy.deepcopy(model).requires_grad_(False))
rate = cfg.learning_rate / (cfg.warmup_iters + 1)  # of iteration 0
optimizer = configure_optimizers(model.parameters(), cfg.weight_decay, rate, (cfg.beta1, cfg.beta2))
decode, eos = job.tokenizer.decode, job.tokenizer.eos_id
V, n_weights = model.config.vocab_size, sum(p.numel() for p in model.parameters())
say(f"""
# One iteration, tensor by tensor

Written by `python docs/walkthrough.py`, which does one iteration of `config/arithmetic.py` with the public
functions of grpo.py; tests/test_walkthrough.py runs it again and compares. Every number below is that run's,
and where two are said to be equal the script has computed both. So that it takes seconds, the model is
smaller ({cfg.n_layer} layers, width {cfg.n_embd}) and its supervised start shorter ({cfg.pretrain_iters}
steps), so that it is nearly always wrong; and so that there is a reference to look at, kl_beta is
{cfg.kl_beta} with the estimator {cfg.kl_estimator}. All else is the config's: {cfg.batch_size} prompts,
{cfg.group_size} completions each, loss_type {cfg.loss_type}.

P prompts · G completions of each · T prompt tokens · R completion tokens · V vocabulary · D width. A group is
axis 1, always.

`job.load_model()` gives {n_weights:,} weights, and a vocabulary of V = {V}: the characters of the sums,
`{''.join(job.tokenizer.chars)}`, an end token ({eos}), and some that are never sampled.
""")

# -----------------------------------------------------------------------------
# phase 1

batch = job.batch(0)
say("""
## Prompts: `batch = job.batch(0)`

The prompts of iteration 0, a function of the seed and the iteration alone, so that a resumed run has no state
to restore here.
""")
shapes(('prompts', batch['prompts'], '(P, T)', 'token ids, padded on the right'),
       ('prompt_lengths', batch['prompt_lengths'], '(P,)',
        'true lengths: masks come from these, never from token values'),
       ('seeds', batch['seeds'], '(P,)',
        "each prompt's own noise: a completion depends on its prompt, seed and place in the group alone"),
       ('record', batch['record'], '(P,)', 'which record it is: its right answer is looked up by this'))

rollout = grpo.generate_rollouts(policy, batch, cfg, reference)
grpo.compute_rewards(policy, rollout, job.rewards)
p = int(rollout.rewards.sum(dim=1).argmax())  # the group with most right completions is the one to look at
g, t = int(rollout.rewards[p].argmax()), 1    # a right completion, and its second token
texts, record, G = policy.texts(rollout)[p], job.records[batch['record'][p]], cfg.group_size
n_tokens, n_places = int(rollout.mask.sum()), rollout.mask.numel()
ids, real = batch['prompts'][p].tolist(), batch['prompt_lengths'][p]
say(f"Prompt {p}, the one to follow, is `{record['text']}`, ids `{ids}`, of which {real} are real.")
say("""
## Completions: `rollout = generate_rollouts(policy, batch, cfg, reference)`

Each prompt is read once (prefill), and its G completions are sampled side by side from the same keys and
values. The reference, here a copy of the start, scores the same tokens at once, however many epochs follow.
""")
shapes(('tokens', rollout.tokens, '(P, G, R)', 'ids, padded on the right; the end token is one of them'),
       ('lengths', rollout.lengths, '(P, G)', 'true lengths, end token included'),
       ('ended', rollout.ended, '(P, G)', 'False where max_new_tokens cut the completion off'),
       ('mask', rollout.mask, '(P, G, R)', 'position < length'),
       ('logps', rollout.logps, '(P, G, R)',
        'log-prob of each token when it was sampled: the old policy of the ratio'),
       ('ref_logps', rollout.ref_logps, '(P, G, R)',
        "the reference's; kl_estimator exact keeps its hidden states instead"))
say(f"Of {n_places:,} places {n_tokens:,} hold a token. The group of `{record['text']}` (completion {g} is "
    "followed from here):")
rows = []
for i in range(G):
    mask = rollout.mask[p, i]
    bits, log_prob = ''.join('01'[bit] for bit in mask), rollout.logps[p, i][mask].sum()
    rows.append((i, f'`{texts[i]}`', rollout.tokens[p, i].tolist(), bits, f'{log_prob:.3f}'))
table(('g', 'completion', 'tokens', 'mask', 'log-prob'), rows)

# -----------------------------------------------------------------------------
# phases 2 and 3

rollout.advantages = grpo.compute_advantages(rollout.rewards, cfg.advantage)
rewards = rollout.rewards[p].tolist()
mean = sum(rewards) / G
squares = [(reward - mean) ** 2 for reward in rewards]
std = math.sqrt(sum(squares) / (G - 1))
mixed = int((rollout.rewards.amax(dim=1) > rollout.rewards.amin(dim=1)).sum())
say(f"""
## Rewards and advantages: `compute_rewards(...)`, `compute_advantages(rollout.rewards)`

The reward is a function of the text: `exact_answer` is 1 where it is `{record['answer']}`. An advantage
compares a completion with its group, A = (r - mean) / (std + 0.0001), with the standard deviation of a sample
(G - 1).
""")
shapes(('rewards', rollout.rewards, '(P, G)', 'weighted sum of the parts; NaN where none applies'),
       ("reward_parts['exact_answer']", rollout.reward_parts['exact_answer'], '(P, G)',
        'the only part here, unweighted'),
       ('advantages', rollout.advantages, '(P, G)',
        "how much better than its group; one number for all of a completion's tokens"))
say(f"This group: mean = {sum(rewards):g} / {G} = {same(mean, rollout.rewards[p].mean())}, "
    f"std = sqrt(({' + '.join(f'{square:.4f}' for square in squares)}) / {G - 1}) = "
    f"{same(std, rollout.rewards[p].std())}.")
rows = []
for i, reward in enumerate(rewards):
    by_hand = f'({reward:g} - {mean:g}) / ({std:.4f} + 0.0001)'
    advantage = same((reward - mean) / (std + 1e-4), rollout.advantages[p, i])
    rows.append((i, f'`{texts[i]}`', f'{reward:g}', by_hand, advantage))
table(('g', 'completion', 'reward', 'by hand', 'advantage'), rows)
say(f"""
{mixed} of {len(rollout.rewards)} groups have right and wrong completions; in the others all rewards are
equal, all advantages exactly 0, and nothing is learned from them. Without a reference they would not even be
looked at.
""")

# -----------------------------------------------------------------------------
# phase 4, first epoch

A, token = rollout.advantages[p, g].item(), int(rollout.tokens[p, g, t])
sampled = rollout.logps[p, g, t].item()
hidden = policy.hidden(rollout.pick(slice(p, p + 1))).detach()
logits = [(row @ hidden[0, g, t]).item() / cfg.temperature for row in model.lm_head.weight.detach()]
log_sum = math.log(sum(math.exp(z) for i, z in enumerate(logits) if not policy.forbidden[i]))
by_hand = logits[token] - log_sum


def loss_of_token(logp):
    """policy_loss of the one token as a share of the step's, and its slope in the token's log-prob."""
    leaf, one = torch.tensor([[logp]], requires_grad=True), torch.ones(1, 1, dtype=torch.bool)
    old, advantage = rollout.logps[p, g, t].view(1, 1), rollout.advantages[p, g].view(1)
    loss, _ = grpo.policy_loss(leaf, old, advantage, one, cfg.loss_type, cfg.clip_low, cfg.clip_high,
                               n_completions=1, n_tokens=n_tokens)
    loss.backward()
    return loss.item(), leaf.grad.item()


first_loss, first_slope = loss_of_token(sampled)
counts = rollout.mask.any(dim=-1).sum(), rollout.mask.sum()
whole, _ = grpo.rollout_loss(policy, rollout, *counts, cfg)
by_lengths = -(rollout.advantages.double() * rollout.lengths).sum().item() / n_tokens
before = copy.deepcopy(list(model.parameters()))
stats = grpo.train_on_rollout(policy, rollout, optimizer, cfg)
moves = [(new - old).abs().max().item() for new, old in zip(model.parameters(), before, strict=False)]
n_sampled = int((~policy.forbidden).sum())
say("""
## The first step: `train_on_rollout(policy, rollout, optimizer, cfg)`

The policy reads prompts and completions again, now with gradients, and the fused head turns hidden states
into log-probs, entropy and loss without ever holding all logits.
""")
shapes(('policy.hidden(rollout.pick(slice(p, p + 1)))', hidden, '(1, G, R, D)',
        "the states that predict the completions' tokens: the first is the prompt's last"),
       ('lm_head.weight', model.lm_head.weight, '(V, D)', 'the head'),
       ('forbidden', policy.forbidden, '(V,)', 'ids that are never sampled: at -infinity'))
say(f"""
Token {t} of completion {g}, counted from 0, is `{decode([token])}`, id {token}. Its logit is
{logits[token]:.4f}, the logarithm of the sum of all exponentials {log_sum:.4f}, so its log-prob is
{by_hand:.4f}; the sampler had noted {same(by_hand, sampled)}. Nothing has been learned since, so the ratio of
new to old policy is exp(0) = 1, inside [1 - {cfg.clip_low}, 1 + {cfg.clip_high}], and the token's term is
-min(1 A, 1 A) = -A = {-A:.4f}. {cfg.loss_type} divides by all {n_tokens:,} tokens of the step:
{same(-A / n_tokens, first_loss)}. Its slope in the log-prob, -A / {n_tokens:,} =
{same(-A / n_tokens, first_slope)}, is REINFORCE's. The log-ratio to the reference is 0 too, and so is the KL.

- `pg_loss` is minus the sum of advantage times length, over {n_tokens:,}:
  {same(by_lengths, stats['pg_loss'])}. With completions of one length it would be 0, for a group's advantages
  sum to 0; that says nothing about its gradient.
- `loss` is `pg_loss` + {cfg.kl_beta} x KL:
  {same(stats['pg_loss'] + cfg.kl_beta * stats['mean_kl'], whole.item())}, with `mean_kl`
  {stats['mean_kl']:.4f}. `clip_frac_low` and `clip_frac_high`: {stats['clip_frac_low']:.4f} and
  {stats['clip_frac_high']:.4f}.
- `grad_norm` is {stats['grad_norm']:.3f}, before it is clipped to {cfg.grad_clip:g}; `entropy`
  {stats['entropy']:.3f} nats a token, of at most ln {n_sampled} = {math.log(n_sampled):.3f}; `mean_log_prob`
  {stats['mean_log_prob']:.3f}.
- `sampler_gap_max`, the largest difference between the sampler's and the trainer's log-prob of a token, is
  {'below' if stats['sampler_gap_max'] < 1e-5 else 'NOT below'} 1e-5.
- AdamW's first step moves a weight by the learning rate, whatever its gradient: {same(rate, max(moves))} at
  most. That is learning_rate / {cfg.warmup_iters + 1}: the warm-up's first.
""")

# -----------------------------------------------------------------------------
# phase 4, second epoch

with torch.no_grad():
    logps, entropy = grpo.completion_logps(policy, rollout)
change = ((logps - rollout.logps) * rollout.mask).sum(dim=-1)
right = change[rollout.rewards == 1].mean()
wrong = change[(rollout.rewards == 0) & (rollout.advantages < 0)].mean()
ratios = (logps - rollout.logps).exp()
new, old, ref = logps[p, g, t].item(), sampled, rollout.ref_logps[p, g, t].item()
ratio, d = math.exp(new - old), new - ref
gain, clipped_gain = ratio * A, min(max(ratio, 1 - cfg.clip_low), 1 + cfg.clip_high) * A
k3 = grpo.kl_estimate(torch.tensor(new), torch.tensor(ref), 'k3').item()
second_loss, second_slope = loss_of_token(new)
_, clipped_slope = loss_of_token(old + math.log(1.5))
stats = grpo.train_on_rollout(policy, rollout, optimizer, cfg)
say(f"""
## What has changed: `completion_logps(policy, rollout)`

The same completions, read by the policy after its step. Over all groups the log-prob of right ones has
changed by {right:+.3f} on average, that of the wrong ones in the same groups by {wrong:+.3f}.
""")
shapes(('logps', logps, '(P, G, R)', 'log-probs now, 0 in padding'),
       ('entropy', entropy, '(P, G, R)',
        'of the distribution that each token was drawn from, 0 in padding'),
       ('ratio', ratios, '(P, G, R)', 'exp(logps - old logps)'))
rows = []
for i in range(G):
    of_tokens = ', '.join(f'{x:.3f}' for x in ratios[p, i][rollout.mask[p, i]])
    rows.append((i, f'`{texts[i]}`', f'{rollout.advantages[p, i]:.3f}', f'{change[p, i]:+.3f}', of_tokens))
table(('g', 'completion', 'advantage', 'change of its log-prob', 'ratio of each token'), rows)
say(f"""
## A second step on the same completions

With num_epochs_per_rollout = 2 the old policy stays the sampler's, and the ratio counts. The token from
above: log-prob {old:.4f} -> {new:.4f}, ratio {ratio:.4f}.

- Its term is -min(ratio A, clip(ratio) A) = -min({gain:.4f}, {clipped_gain:.4f}), over {n_tokens:,}:
  {same(-min(gain, clipped_gain) / n_tokens, second_loss)}.
- Its slope is -ratio A / {n_tokens:,}: {same(-gain / n_tokens, second_slope)}. Were it half as likely again
  as when it was sampled, the term would be -min(1.5 A, {1 + cfg.clip_high:g} A) and the slope
  {same(0.0, clipped_slope)}: clipped, for one rollout shall not carry the policy further.
- Its KL to the reference by k3, with the log-ratio d = {d:.4f}: exp(-d) - 1 + d =
  {same(math.exp(-d) - 1 + d, k3)}.
- Over all tokens `mean_kl` is {stats['mean_kl']:.4f}, `clip_frac_low` {stats['clip_frac_low']:.4f},
  `clip_frac_high` {stats['clip_frac_high']:.4f}, `pg_loss` {stats['pg_loss']:.4g}, `grad_norm`
  {stats['grad_norm']:.3f}.

`grpo_training_step` is these phases in a row, and train_grpo.py calls it max_iters times.
""")

path = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, 'docs', 'walkthrough.md')
with open(path, 'w', encoding='utf-8') as f:
    f.write('\n'.join(page))
