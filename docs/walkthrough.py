"""
One iteration of config/arithmetic.py, phase by phase, with the shape and the meaning of every tensor: writes docs/walkthrough.md, or the file that is named.
$ python docs/walkthrough.py                # a quarter of a minute on one core
Each worked equality is computed twice, by hand here and by the code, and the script stops where the two differ.
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
from grpo import (
    completion_logps,
    compute_advantages,
    compute_rewards,
    generate_rollouts,
    kl_estimate,
    policy_loss,
    rollout_loss,
    train_on_rollout,
)
from runtime import config, console
from runtime.masters import configure_optimizers
from tasks import TASKS
from tasks.completion import Completion

ROOT = sys.path[0]
page = []


def say(text):
    page.append(text.strip() + '\n')


def table(*rows):
    """The first row is the header."""
    say('\n'.join(f"| {' | '.join(map(str, row))} |" for row in (rows[0], ['---'] * len(rows[0]), *rows[1:])))


def shapes(*rows):
    """(name, tensor, its axes, its meaning)..."""
    table(('tensor', 'shape', 'axes', 'type', 'meaning'), *((f'`{name}`', tuple(x.shape), axes, str(x.dtype).removeprefix('torch.'), meaning) for name, x, axes, meaning in rows))


def same(by_hand, by_code):
    """The number as text, once both are known to be equal."""
    assert math.isclose(by_hand, by_code, rel_tol=1e-4, abs_tol=1e-7), f"by hand {by_hand}, by the code {by_code}"
    return f'{float(by_code):.4g}'


def settings(*arguments):
    """What train_grpo.py would work with: its defaults, then config files and overrides."""
    path = os.path.join(ROOT, 'train_grpo.py')
    with open(path, encoding='utf-8') as f:
        source = f.read()
    found = vars(config) | {'__file__': path, 'Literal': Literal, 'Annotated': Annotated}
    exec(source[source.index("task: "):source.index('cfg = configure(')], found)
    return config.configure(found, grpo.Settings, tasks=TASKS, argv=arguments)


# ---------------------------------------------------------------------------------------------------------------------
# the start

torch.set_num_threads(1)
folder = tempfile.TemporaryDirectory()
s = settings(os.path.join(ROOT, 'config', 'arithmetic.py'), '--n_layer=2', '--n_embd=64', '--pretrain_iters=60', '--eval_prompts_n=50', '--kl_beta=0.05', '--kl_estimator=k3', f'--generator_checkpoint={folder.name}/start.pt')
console.quiet = True
job = Completion(s, 'cpu')
model = job.load_model().eval()
policy, reference = job.policy(model), job.policy(copy.deepcopy(model).requires_grad_(False))
rate = s.learning_rate / (s.warmup_iters + 1)  # of iteration 0
optimizer = configure_optimizers(model.parameters(), s.weight_decay, rate, (s.beta1, s.beta2))
decode, eos = job.tokenizer.decode, job.tokenizer.eos_id
say(f"""
# One iteration, tensor by tensor

Written by `python docs/walkthrough.py`, which does one iteration of `config/arithmetic.py` with the public functions of grpo.py; tests/test_walkthrough.py runs it again and compares. Every number below is that run's, and
where two are said to be equal the script has computed both. So that it takes seconds, the model is smaller ({s.n_layer} layers, width {s.n_embd}) and its supervised start shorter ({s.pretrain_iters} steps), so
that it is nearly always wrong; and so that there is a reference to look at, kl_beta is {s.kl_beta} with the estimator {s.kl_estimator}. All else is the config's: {s.batch_size} prompts, {s.group_size} answers each, loss_type {s.loss_type}.

P prompts · G answers to each · T prompt tokens · R answer tokens · V vocabulary · D width. A group is axis 1, always.

`job.load_model()` gives {sum(p.numel() for p in model.parameters()):,} weights, and a vocabulary of V = {model.config.vocab_size}: the characters of the sums, `{''.join(job.tokenizer.chars)}`, an end token ({eos}), and some that are never sampled.
""")

# ---------------------------------------------------------------------------------------------------------------------
# phase 1

batch = job.batch(0)
say("## Prompts: `batch = job.batch(0)`\n\nThe prompts of iteration 0, a function of the seed and the iteration alone, so that a resumed run has no state to restore here.")
shapes(('prompts', batch['prompts'], '(P, T)', 'token ids, padded on the right'), ('prompt_lengths', batch['prompt_lengths'], '(P,)', 'true lengths: masks come from these, never from token values'),
       ('seeds', batch['seeds'], '(P,)', "each prompt's own noise: an answer depends on its prompt, seed and place in the group, not on the rest of the batch"),
       ('record', batch['record'], '(P,)', 'which record it is: its reference answer is looked up by this'))

rollout = generate_rollouts(policy, batch, s, reference)
compute_rewards(policy, rollout, job.rewards)
p = int(rollout.rewards.sum(dim=1).argmax())  # the group with most right answers is the one to look at
g, t = int(rollout.rewards[p].argmax()), 1    # a right answer, and its second token
texts, record, G = policy.texts(rollout)[p], job.records[batch['record'][p]], s.group_size
n_tokens = int(rollout.mask.sum())
say(f"Prompt {p}, the one to follow, is `{record['text']}`, ids `{batch['prompts'][p].tolist()}`, of which {batch['prompt_lengths'][p]} are real.")
say("""
## Completions: `rollout = generate_rollouts(policy, batch, cfg, reference)`

Each prompt is read once (prefill), and its G answers are sampled side by side from the same keys and values. The reference, here a copy of the start, scores the same tokens at once, however many epochs follow.
""")
shapes(('tokens', rollout.tokens, '(P, G, R)', 'answer ids, padded on the right; the end token is one of them'), ('lengths', rollout.lengths, '(P, G)', 'true lengths, end token included'),
       ('ended', rollout.ended, '(P, G)', 'False where max_new_tokens cut the answer off'), ('mask', rollout.mask, '(P, G, R)', 'position < length'),
       ('logps', rollout.logps, '(P, G, R)', 'log-prob of each token when it was sampled: the old policy of the ratio'), ('ref_logps', rollout.ref_logps, '(P, G, R)', "the reference's; kl_estimator exact keeps its hidden states instead"))
say(f"Of {rollout.mask.numel():,} places {n_tokens:,} hold a token. The group of `{record['text']}` (answer {g} is followed from here):")
table(('g', 'answer', 'tokens', 'mask', 'log-prob'), *((i, f'`{texts[i]}`', rollout.tokens[p, i].tolist(), ''.join('01'[m] for m in rollout.mask[p, i]), f'{rollout.logps[p, i][rollout.mask[p, i]].sum():.3f}') for i in range(G)))

# ---------------------------------------------------------------------------------------------------------------------
# phases 2 and 3

rollout.advantages = compute_advantages(rollout.rewards, s.advantage)
rewards = rollout.rewards[p].tolist()
mean = sum(rewards) / G
std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (G - 1))
mixed = int((rollout.rewards.amax(dim=1) > rollout.rewards.amin(dim=1)).sum())
say(f"""
## Rewards and advantages: `compute_rewards(policy, rollout, job.rewards)`, `compute_advantages(rollout.rewards, '{s.advantage}')`

The reward is a function of the text: `exact_answer` is 1 where it is `{record['answer']}`. An advantage compares an answer with its group, A = (r - mean) / (std + 0.0001), with the standard deviation of a sample (G - 1).
""")
shapes(('rewards', rollout.rewards, '(P, G)', 'weighted sum of the parts; NaN where none applies'), ("reward_parts['exact_answer']", rollout.reward_parts['exact_answer'], '(P, G)', 'the only part here, unweighted'),
       ('advantages', rollout.advantages, '(P, G)', "how much better than its group; one number for all of an answer's tokens"))
say(f"This group: mean = {sum(rewards):g} / {G} = {same(mean, rollout.rewards[p].mean())}, std = sqrt(({' + '.join(f'{(r - mean) ** 2:.4f}' for r in rewards)}) / {G - 1}) = {same(std, rollout.rewards[p].std())}.")
table(('g', 'answer', 'reward', 'by hand', 'advantage'), *((i, f'`{texts[i]}`', f'{r:g}', f'({r:g} - {mean:g}) / ({std:.4f} + 0.0001)', same((r - mean) / (std + 1e-4), rollout.advantages[p, i])) for i, r in enumerate(rewards)))
say(f"{mixed} of {len(rollout.rewards)} groups have right and wrong answers; in the others all rewards are equal, all advantages exactly 0, and nothing is learned from them. Without a reference they would not even be looked at.")

# ---------------------------------------------------------------------------------------------------------------------
# phase 4, first epoch

A, token, sampled = rollout.advantages[p, g].item(), int(rollout.tokens[p, g, t]), rollout.logps[p, g, t].item()
hidden = policy.hidden(rollout.pick(slice(p, p + 1))).detach()
logits = [(row @ hidden[0, g, t]).item() / s.temperature for row in model.lm_head.weight.detach()]
log_sum = math.log(sum(math.exp(z) for i, z in enumerate(logits) if not policy.forbidden[i]))
clip = dict(loss_type=s.loss_type, clip_low=s.clip_low, clip_high=s.clip_high)


def loss_of_token(logp):
    """policy_loss of the one token as a share of the step's, and its slope in the token's log-prob."""
    leaf = torch.tensor([[logp]], requires_grad=True)
    loss, _ = policy_loss(leaf, rollout.logps[p, g, t].view(1, 1), rollout.advantages[p, g].view(1), torch.ones(1, 1, dtype=torch.bool), n_completions=1, n_tokens=n_tokens, **clip)
    loss.backward()
    return loss.item(), leaf.grad.item()


first_loss, first_slope = loss_of_token(sampled)
whole, _ = rollout_loss(policy, rollout, rollout.mask.any(dim=-1).sum(), rollout.mask.sum(), s)
per_answer = -(rollout.advantages.double() * rollout.lengths).sum().item() / n_tokens
weights = copy.deepcopy(list(model.parameters()))
stats = train_on_rollout(policy, rollout, optimizer, s)
say("## The first step: `train_on_rollout(policy, rollout, optimizer, cfg)`\n\nThe policy reads prompts and answers again, now with gradients, and the fused head turns hidden states into log-probs, entropy and loss without ever holding all logits.")
shapes(('policy.hidden(rollout.pick(slice(p, p + 1)))', hidden, '(1, G, R, D)', "the states that predict the answers' tokens: the first is the prompt's last"), ('lm_head.weight', model.lm_head.weight, '(V, D)', 'the head'), ('forbidden', policy.forbidden, '(V,)', 'ids that are never sampled: at -infinity'))
say(f"""
Token {t} of answer {g}, counted from 0, is `{decode([token])}`, id {token}. Its logit is {logits[token]:.4f}, the logarithm of the sum of all exponentials {log_sum:.4f}, so its log-prob is {logits[token] - log_sum:.4f}; the sampler had noted {same(logits[token] - log_sum, sampled)}.
Nothing has been learned since, so the ratio of new to old policy is exp(0) = 1, inside [1 - {s.clip_low}, 1 + {s.clip_high}], and the token's term is -min(1 A, 1 A) = -A = {-A:.4f}. {s.loss_type} divides by all {n_tokens:,} tokens of the step: {same(-A / n_tokens, first_loss)}.
Its slope in the log-prob, -A / {n_tokens:,} = {same(-A / n_tokens, first_slope)}, is REINFORCE's. The log-ratio to the reference is 0 too, and so is the KL.

- `pg_loss` is minus the sum of advantage times length, over {n_tokens:,}: {same(per_answer, stats['pg_loss'])}. With answers of one length it would be 0, for a group's advantages sum to 0; that says nothing about its gradient.
- `loss` is `pg_loss` + {s.kl_beta} x KL: {same(stats['pg_loss'] + s.kl_beta * stats['mean_kl'], whole.item())}, with `mean_kl` {stats['mean_kl']:.4f}. `clip_frac_low` and `clip_frac_high`: {stats['clip_frac_low']:.4f} and {stats['clip_frac_high']:.4f}.
- `grad_norm` is {stats['grad_norm']:.3f}, before it is clipped to {s.grad_clip:g}; `entropy` {stats['entropy']:.3f} nats a token, of at most ln {int((~policy.forbidden).sum())} = {math.log(int((~policy.forbidden).sum())):.3f}; `mean_log_prob` {stats['mean_log_prob']:.3f}.
- `sampler_gap_max`, the largest difference between the sampler's and the trainer's log-prob of a token, is {'below' if stats['sampler_gap_max'] < 1e-5 else 'NOT below'} 1e-5.
- AdamW's first step moves a weight by the learning rate, whatever its gradient: {same(rate, max((new - old).abs().max().item() for new, old in zip(model.parameters(), weights, strict=False)))} at most. That is learning_rate / {s.warmup_iters + 1}: the warm-up's first.
""")

# ---------------------------------------------------------------------------------------------------------------------
# phase 4, second epoch

with torch.no_grad():
    logps, entropy = completion_logps(policy, rollout)
change = ((logps - rollout.logps) * rollout.mask).sum(dim=-1)
new, old, ref = logps[p, g, t].item(), sampled, rollout.ref_logps[p, g, t].item()
ratio, d = math.exp(new - old), new - ref
gain, clipped_gain = ratio * A, min(max(ratio, 1 - s.clip_low), 1 + s.clip_high) * A
second_loss, second_slope = loss_of_token(new)
_, clipped_slope = loss_of_token(old + math.log(1.5))
stats = train_on_rollout(policy, rollout, optimizer, s)
say(f"""
## What has changed: `completion_logps(policy, rollout)`

The same answers, read by the policy after its step. Over all groups the log-prob of right answers has changed by {change[rollout.rewards == 1].mean():+.3f} on average, that of the wrong ones beside them by {change[(rollout.rewards == 0) & (rollout.advantages < 0)].mean():+.3f}.
""")
shapes(('logps', logps, '(P, G, R)', 'log-probs now, 0 in padding'), ('entropy', entropy, '(P, G, R)', 'of the distribution that each token was drawn from, 0 in padding'), ('ratio', (logps - rollout.logps).exp(), '(P, G, R)', 'exp(logps - old logps)'))
table(('g', 'answer', 'advantage', 'change of its log-prob', 'ratio of each token'), *((i, f'`{texts[i]}`', f'{rollout.advantages[p, i]:.3f}', f'{change[p, i]:+.3f}', ', '.join(f'{x:.3f}' for x in (logps - rollout.logps)[p, i][rollout.mask[p, i]].exp())) for i in range(G)))
say(f"""
## A second step on the same answers

With num_epochs_per_rollout = 2 the old policy stays the sampler's, and the ratio counts. The token from above: log-prob {old:.4f} -> {new:.4f}, ratio {ratio:.4f}.

- Its term is -min(ratio A, clip(ratio) A) = -min({gain:.4f}, {clipped_gain:.4f}), over {n_tokens:,}: {same(-min(gain, clipped_gain) / n_tokens, second_loss)}.
- Its slope is -ratio A / {n_tokens:,}: {same(-gain / n_tokens, second_slope)}. Were it half as likely again as when it was sampled, the term would be -min(1.5 A, {1 + s.clip_high:g} A) and the slope {same(0.0, clipped_slope)}: clipped, for one rollout shall not carry the policy further.
- Its KL to the reference by k3, with the log-ratio d = {d:.4f}: exp(-d) - 1 + d = {same(math.exp(-d) - 1 + d, kl_estimate(torch.tensor(new), torch.tensor(ref), 'k3').item())}.
- Over all tokens `mean_kl` is {stats['mean_kl']:.4f}, `clip_frac_low` {stats['clip_frac_low']:.4f}, `clip_frac_high` {stats['clip_frac_high']:.4f}, `pg_loss` {stats['pg_loss']:.4g}, `grad_norm` {stats['grad_norm']:.3f}.

`grpo_training_step` is these phases in a row, and train_grpo.py calls it max_iters times.
""")

with open(sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, 'docs', 'walkthrough.md'), 'w', encoding='utf-8') as f:
    f.write('\n'.join(page))
