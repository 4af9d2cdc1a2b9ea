"""The policy of completion: what is sampled is what is trained, a prompt read once is a prompt read G times, and rewards move it."""
import copy
import math
import threading
import types

import pytest
import torch

from data.prompts import say_how_prompts_are_read
from formats.tokenizer import CharTokenizer
from grpo import (
    Rollout,
    completion_logps,
    compute_advantages,
    generate_rollouts,
    grpo_training_step,
    micro_batches,
    overlong,
    train_on_rollout,
)
from model import GPT, GPTConfig
from plain import plain
from policy import CausalPolicy, prompt_batch, text_log_prob
from runtime.lora import add_lora
from runtime.masters import AdamW, compute_in, configure_optimizers, copy_masters, update_reference

TOKENIZER = CharTokenizer('abcdefghij', end=True)
QWEN3 = {'norm': 'rmsnorm', 'position': 'rope', 'mlp': 'swiglu', 'bias': False, 'n_kv_head': 2, 'qk_norm': True, 'tied': False}
KINDS = {'gpt2': {}, 'qwen3': QWEN3}
FIRST = [('first', lambda policy, rollout: rollout.tokens[..., 0].float(), 1.0)]  # a reward: the id of the first token


def tiny(kind='qwen3', std=0.2, seed=0):
    torch.manual_seed(seed)
    config = GPTConfig(block_size=64, vocab_size=TOKENIZER.vocab_size + 2, n_layer=2, n_head=4, n_embd=32, **KINDS[kind])
    model = GPT(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    return model


def batch(seed=0):
    return prompt_batch([[1, 2, 3], [4], [5, 6, 7, 8, 9], [0, 0]], [10 * seed + p for p in range(4)])


def with_advantages(rollout, seed=0):
    rollout.rewards = torch.randn(rollout.lengths.shape, generator=torch.Generator().manual_seed(seed))
    rollout.advantages = compute_advantages(rollout.rewards)
    return rollout


def still(model):
    """An optimizer that leaves gradients behind and moves nothing."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('options', [{}, {'temperature': 0.7}, {'top_k': 5, 'top_p': 0.8, 'temperature': 1.3}])
def test_sampler_and_trainer_agree(kind, options):
    """Promise 3: to 1e-5 in fp32; special tokens and rows that only pad the embedding are never drawn."""
    policy = CausalPolicy(tiny(kind), TOKENIZER, 20, **options)
    rollout = policy.sample(batch(), 8)
    logps, entropy = completion_logps(policy, rollout)
    assert (logps - rollout.logps).abs().max() < 1e-5 and (entropy[rollout.mask] > 0).all()
    assert set(rollout.tokens[rollout.mask].tolist()) <= {*range(10), TOKENIZER.eos_id}
    assert 'top_k' in options or len(rollout.lengths.unique()) > 4
    assert [len(group) for group in policy.texts(rollout)] == [8] * 4


@pytest.mark.parametrize('kind', KINDS)
def test_shared_prompts_give_the_gradient_of_whole_rows(kind):
    """Against the plain way, G whole rows of prompt + completion through the model, in micro-batches of any size, checkpointed or not."""
    model = tiny(kind)
    policy = CausalPolicy(model, TOKENIZER, 20, temperature=0.9)
    rollout = with_advantages(policy.sample(batch(), 4))
    loss = 0
    for p, prompt in enumerate([[1, 2, 3], [4], [5, 6, 7, 8, 9], [0, 0]]):
        for g in range(4):
            tokens = rollout.tokens[p, g, :rollout.lengths[p, g]]
            logits = model.logits(torch.tensor(prompt + tokens.tolist())[None])[0, len(prompt) - 1:-1] / 0.9
            logps = logits.masked_fill(policy.forbidden, -torch.inf).log_softmax(-1).gather(-1, tokens[:, None])
            loss = loss - rollout.advantages[p, g] * logps.sum()
    (loss / rollout.lengths.sum()).backward()
    whole = gradient(model)
    for size in (None, 1, 3):
        model.gradient_checkpointing = size == 3
        train_on_rollout(policy, rollout, still(model), plain(micro_batch_size=size, grad_clip=0, loss_type='dapo'))
        assert (gradient(model) - whole).norm() < 1e-5 * whole.norm()
    model.gradient_checkpointing, seen = False, []
    model.norm_f.register_forward_hook(lambda m, i, o: seen.append(len(o)))
    train_on_rollout(policy, rollout, still(model), plain(micro_batch_tokens=80, grad_clip=0, loss_type='dapo'))
    assert (gradient(model) - whole).norm() < 1e-5 * whole.norm()
    read = [prompt + completions for prompt, completions in zip(seen[::2], seen[1::2], strict=True)]
    assert len(read) > 1 and max(read) <= 80


def test_micro_batches_by_tokens():
    """As many neighbours as there is room for, a prompt above it alone; the ranks of a sharded model have equally many parts."""
    lengths = torch.tensor([[1, 2], [3, 3], [9, 9], [2, 1], [1, 1]])
    rollout = Rollout({'prompt_lengths': torch.tensor([1, 2, 1, 1, 1])}, torch.zeros(5, 2, 9), lengths, torch.zeros(5, 2, 9))

    def parts(room, **options):
        return [part.lengths.sum(dim=1).tolist() for part in micro_batches(rollout, plain(micro_batch_tokens=room), **options)]

    assert rollout.tokens_of_prompts() == [4, 8, 19, 4, 3]
    assert parts(12) == [[3, 6], [18], [3, 2]] and parts(7) == [[3], [6], [18], [3, 2]]
    assert parts(1) == [[3], [6], [18], [3], [2]] and parts(100) == [[3, 6, 18, 3, 2]]


def test_groups_without_a_signal_are_left_out_of_the_forward_but_not_of_the_counts():
    """Half the groups have equal rewards: the same gradient, half the prompts; with a KL they are back."""
    model = tiny()
    policy = CausalPolicy(model, TOKENIZER, 12)
    rollout = with_advantages(policy.sample(batch(), 4))
    rollout.advantages[1] = rollout.advantages[2] = 0.0
    seen = []
    model.norm_f.register_forward_hook(lambda m, i, o: seen.append(o.shape[0]))
    stats = train_on_rollout(policy, rollout, still(model), plain(grad_clip=0))
    lengths, prompt_lengths = rollout.lengths[[0, 3]], rollout.batch['prompt_lengths'][[0, 3]]
    assert seen == [prompt_lengths.sum(), (lengths - 1).clamp(min=0).sum()]
    short = gradient(model)
    train_on_rollout(policy, rollout, still(model), plain(grad_clip=0, entropy_coef=1e-12))
    all_lengths = (rollout.lengths - 1).clamp(min=0)
    assert seen[2:] == [rollout.batch['prompt_lengths'].sum(), all_lengths.sum()] and (gradient(model) - short).norm() < 1e-6 * short.norm()
    mixed = rollout.pick(torch.tensor([0, 3]))
    logps = completion_logps(policy, mixed)[0]
    assert stats['mean_log_prob'] == pytest.approx(logps[mixed.mask].mean().item(), rel=1e-5)
    rollout.advantages.zero_()
    train_on_rollout(policy, rollout, still(model), plain(grad_clip=0))
    assert gradient(model).abs().max() == 0


def test_the_end_token_is_trained_and_shorter_pays():
    """reward = -length: within 30 iterations every completion is the end token alone. Taken for padding it would never be learned."""
    policy = CausalPolicy(tiny(std=0.1), TOKENIZER, 16)
    optimizer = configure_optimizers(policy.model.parameters(), 0, 2e-2, (0.9, 0.99))
    reward = [('shorter', lambda policy, rollout: -rollout.lengths.float(), 1.0)]
    lengths = [grpo_training_step(policy, batch(it), optimizer, reward, plain())[0]['mean_length'] for it in range(30)]
    assert lengths[0] > 5 and lengths[-1] == 1.0, lengths


def test_adamw_is_torchs():
    """It leaves out wrappers alone: the same weights to the bit, its hooks are called, and each goes on with the other's state."""
    def take(optimizer, p, n):
        for step in range(n):
            p.grad = torch.sin(p.detach() * 7 + step)
            optimizer.step()
            optimizer.zero_grad()
            assert p.grad is None
        return p

    start, calls = torch.randn(5, 3), []
    options = {'lr': 0.1, 'weight_decay': 0.2, 'betas': (0.8, 0.9), 'fused': True}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    pair = AdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    pair[0].register_step_post_hook(lambda *_: calls.append(1))
    assert torch.equal(take(pair[0], ours, 3), take(pair[1], theirs, 3)) and len(calls) == 3 and not torch.equal(ours, start)
    states = [optimizer.state_dict() for optimizer in pair]
    for optimizer, state in zip(pair, reversed(states), strict=True):
        optimizer.load_state_dict(state)
    assert torch.equal(take(pair[0], ours, 2), take(pair[1], theirs, 2))


def test_kl_in_reward_by_hand():
    """kl_beta times the summed log-ratio comes off each completion's reward before the group is compared, and none is in the loss."""
    model = tiny()
    policy, reference = CausalPolicy(model, TOKENIZER, 12), CausalPolicy(tiny(seed=1), TOKENIZER, 12)
    reward = [('length', lambda policy, rollout: rollout.lengths.float(), 1.0)]
    cfg = plain(group_size=4, kl_beta=0.3, kl_in_reward=True, advantage='dr_grpo')
    metrics, rollout = grpo_training_step(policy, batch(), still(model), reward, cfg, reference)
    log_ratio = rollout.logps - completion_logps(reference, rollout)[0]
    wanted = rollout.lengths - 0.3 * log_ratio.masked_fill(~rollout.mask, 0.0).sum(-1)
    torch.testing.assert_close(rollout.rewards, wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(rollout.advantages, compute_advantages(wanted, 'dr_grpo'), atol=1e-4, rtol=1e-4)
    assert metrics['kl_penalty'] == 0 and metrics['mean_kl'] > 0 and metrics['reward/length'] > metrics['mean_reward']


def test_ppo_learns_when_to_stop():
    """Shorter pays: with GAE completions shrink, the value head learns what to expect, and a policy that rests stays as it is."""
    model = tiny()
    model.value_head = torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(model.value_head.weight)
    policy, optimizer = CausalPolicy(model, TOKENIZER, 16), configure_optimizers(model.parameters(), 0.0, 1e-2, (0.9, 0.99))
    cfg = plain(advantage='gae', loss_type='dapo', micro_batch_size=2)
    reward = [('short', lambda policy, rollout: -rollout.lengths.float() / 16, 1.0)]
    before = copy.deepcopy(model.state_dict())
    metrics, rollout = grpo_training_step(policy, batch(), optimizer, reward, plain(advantage='gae'), learn=False)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items()) and 'loss' not in metrics
    whitened = rollout.advantages[rollout.mask]
    assert whitened.mean().abs() < 1e-5 and whitened.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    first, *_, last = [grpo_training_step(policy, batch(seed), optimizer, reward, cfg)[0] for seed in range(30)]
    assert last['mean_length'] < 2 < first['mean_length'] and last['value_loss'] < first['value_loss'] / 4


def test_completions_that_no_reward_applies_to_are_not_trained_on():
    """
    Every third completion has none: the gradient is that of the others alone, by hand as in grpo's formula, and the metrics are theirs;
    with a value head they are as little in the loss.
    """
    policy = CausalPolicy(tiny(), TOKENIZER, 6)

    def sparse(policy, rollout):
        rows = FIRST[0][1](policy, rollout).tolist()
        for p, row in enumerate(rows):
            for g in range((-p) % 3, 8, 3):
                row[g] = None
        return rows

    reward = [('sparse', sparse, 1.0)]
    cfg = plain(grad_clip=0, loss_type='dapo', micro_batch_size=3)
    metrics, rollout = grpo_training_step(policy, batch(), still(policy.model), reward, cfg)
    whole = gradient(policy.model)
    judged = ~rollout.rewards.isnan()
    assert rollout.rewards.isnan().sum() == 11 and metrics['reward_missing/sparse'] == pytest.approx(11 / 32)
    assert metrics['mean_reward'] == pytest.approx(rollout.rewards[judged].mean().item())
    logps, loss = completion_logps(policy, rollout)[0], 0
    for p in range(4):
        rewards = rollout.rewards[p, judged[p]]
        advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
        for logp, mask, A in zip(logps[p, judged[p]], rollout.mask[p, judged[p]], advantages, strict=True):
            loss = loss - A * logp[mask].sum()
    policy.model.zero_grad()
    (loss / rollout.mask[judged].sum()).backward()
    assert whole.norm() > 0.01 and (gradient(policy.model) - whole).norm() < 1e-4 * whole.norm()
    policy.model.value_head = torch.nn.Linear(32, 1)
    metrics, rollout = grpo_training_step(policy, batch(), still(policy.model), reward, plain(advantage='gae', kl_in_reward=True))
    left_out = rollout.rewards.isnan()
    assert left_out.sum() == 11 and (rollout.advantages[left_out] == 0).all()
    assert all(math.isfinite(value) for value in metrics.values())


def test_completions_that_were_cut_off():
    """They count as truncated and are trained on; with mask_truncated they leave the loss and its counts."""
    policy = CausalPolicy(tiny(), TOKENIZER, 6)
    rollout = policy.sample(batch(), 8)
    cut = ~rollout.ended
    assert cut.any() and rollout.ended.any()
    assert (rollout.lengths[cut] == 6).all() and (rollout.tokens[..., -1][cut] != TOKENIZER.eos_id).all()
    optimizer, gradients = still(policy.model), {}
    everything_cut = CausalPolicy(policy.model, TOKENIZER, 1)
    everything_cut.tokenizer = type('Endless', (), {'eos_ids': (), 'decode': TOKENIZER.decode})()
    grpo_training_step(everything_cut, batch(), optimizer, FIRST, plain(mask_truncated=True, micro_batch_size=1))
    assert gradient(policy.model).abs().max() == 0  # nothing left to learn from
    for masked in (False, True):
        cfg = plain(mask_truncated=masked, grad_clip=0, loss_type='dapo')
        metrics, again = grpo_training_step(policy, batch(), optimizer, FIRST, cfg)
        assert metrics['frac_truncated'] == pytest.approx(cut.float().mean().item()) and torch.equal(again.tokens, rollout.tokens)
        gradients[masked] = gradient(policy.model)
    policy.model.zero_grad()
    logps, mask = completion_logps(policy, again)[0], again.mask & again.ended[..., None]
    (-(logps * again.advantages[..., None])[mask].sum() / mask.sum()).backward()
    torch.testing.assert_close(gradients[True], gradient(policy.model), atol=1e-6, rtol=1e-4)
    assert (gradients[True] - gradients[False]).norm() > 0.01 * gradients[False].norm()


def test_reference_modes_by_hand():
    """ema with alpha .9 from 0 towards 1, 1, 2: .1, .19, .371. periodic every 2: 0, 1, 1. static: 0."""
    for mode, wanted in (('ema', (0.1, 0.19, 0.371)), ('periodic', (0.0, 1.0, 1.0)), ('static', (0.0, 0.0, 0.0))):
        reference = [torch.zeros(2)]
        for it, (value, after) in enumerate(zip((1.0, 1.0, 2.0), wanted, strict=True), start=1):
            update_reference(mode, it, reference, [torch.full((2,), value)], ema_alpha=0.9, update_freq=2)
            torch.testing.assert_close(reference[0], torch.full((2,), after))


def test_the_reference_of_lora_is_the_model_without_its_adapters():
    """No second copy, and the same log-probs as a copy made before; a learned adapter makes the KL positive."""
    model = tiny()
    frozen = copy.deepcopy(model)
    add_lora(model, 4, 8.0)
    policy = CausalPolicy(model, TOKENIZER, 10)
    optimizer = configure_optimizers(model.parameters(), 0, 1e-2, (0.9, 0.99))
    cfg = plain(group_size=4, kl_beta=0.1)
    for it in range(3):
        metrics, _ = grpo_training_step(policy, batch(it), optimizer, FIRST, cfg, policy.without_adapters())
        assert (metrics['mean_kl'] == pytest.approx(0, abs=1e-6)) == (it == 0)
    without, copied = (generate_rollouts(policy, batch(), cfg, one) for one in (policy.without_adapters(), policy.with_model(frozen)))
    torch.testing.assert_close(without.ref_logps, copied.ref_logps)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_rewards_beside_the_sampling_change_nothing():
    """
    Prompts sampled in parts, each part's rewards in a thread: completions, rewards and weights after the step are those of all at once.
    The first reward of a part but the last waits until the next part's sampling has begun: without a thread it would wait in vain.
    """
    def step(size):
        model = tiny()
        policy, begun = CausalPolicy(model, TOKENIZER, 10), []
        sample, events, parts = policy.sample, [threading.Event() for _ in range(5)], iter(range(4))

        def counted(batch, group_size):
            events[len(begun)].set()
            begun.append(len(batch['prompts']))
            return sample(batch, group_size)

        def patient(policy, rollout):
            assert size is None or sum(begun) == 4 or events[next(parts) + 1].wait(60), 'the sampler waits for the reward'
            return rollout.tokens[..., 0].float()

        policy.sample = counted
        optimizer = configure_optimizers(model.parameters(), 0, 1e-2, (0.9, 0.99))
        rewards = [('first', patient, 1.0), ('length', lambda policy, rollout: rollout.lengths.float(), 0.5)]
        metrics, rollout = grpo_training_step(policy, batch(), optimizer, rewards, plain(group_size=4, sampling_batch_size=size))
        assert begun == {None: [4], 2: [2, 2], 3: [3, 1]}[size]
        return metrics, rollout, model.state_dict()

    wanted_metrics, wanted, wanted_weights = step(None)
    for size in (2, 3):
        metrics, rollout, weights = step(size)
        assert torch.equal(rollout.tokens, wanted.tokens) and torch.equal(rollout.rewards, wanted.rewards)
        assert rollout.batch.keys() == wanted.batch.keys()
        torch.testing.assert_close(rollout.logps, wanted.logps, atol=1e-6, rtol=0)
        assert metrics['grad_norm'] == pytest.approx(wanted_metrics['grad_norm'], rel=1e-4)
        assert all(torch.allclose(weights[name], p, atol=1e-4) for name, p in wanted_weights.items())


@pytest.mark.parametrize('kl_estimator', ['exact', 'k3'])
def test_dynamic_sampling(kl_estimator):
    """
    Groups whose rewards are all equal give way to those of other, longer prompts, each at the same place: the step is that on a batch
    with the right prompts from the start. The others are as they were, half the batch alone does the same with its half, and after as
    many rounds as were allowed what is still equal stays.
    """
    first, further = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [0, 0]], [[9, 8, 7, 6, 5, 4, 3, 2], [3, 3], [1, 1, 1], [2, 0]]
    everything = slice(None)
    rare = [('rare', lambda policy, rollout: (rollout.tokens[..., 0] < 3).float(), 1.0)]

    def batches(attempt, rows):
        prompts = further if attempt else first
        return prompt_batch(prompts[rows], [100 * attempt + p for p in range(4)][rows])

    def step(rounds, rows=everything, prompts=None):
        model = tiny()
        policy, reference = CausalPolicy(model, TOKENIZER, 6), CausalPolicy(tiny(seed=1), TOKENIZER, 6)
        cfg = plain(group_size=4, kl_beta=0.1, kl_estimator=kl_estimator, loss_type='dapo', dynamic_sampling=rounds)
        prompts = prompts or batches(0, rows)
        return grpo_training_step(policy, prompts, still(model), rare, cfg, reference, lambda attempt: batches(attempt, rows))

    (_, once), (metrics, again) = step(0), step(1)
    flat = (once.rewards == once.rewards[:, :1]).all(dim=1)
    assert 0 < flat.sum() < 4 and metrics['resampled_groups'] == flat.sum()
    chosen = prompt_batch([further[p] if flat[p] else first[p] for p in range(4)], [100 * int(flat[p]) + p for p in range(4)])
    wanted, whole = step(0, prompts=chosen)
    assert torch.equal(again.tokens[again.mask], whole.tokens[whole.mask]) and torch.equal(again.rewards, whole.rewards)
    assert torch.equal(again.batch['prompt_lengths'], chosen['prompt_lengths'])
    comparable = [key for key in wanted if not key.startswith(('time_', 'tokens_per_s', 'sampler_gap'))]
    assert all(metrics[key] == pytest.approx(wanted[key], rel=1e-4, abs=1e-6) for key in comparable)
    halves = [step(1, rows)[1] for rows in (slice(0, 2), slice(2, 4))]
    assert torch.equal(torch.cat([half.rewards for half in halves]), again.rewards)
    assert torch.equal(torch.cat([half.lengths for half in halves]), again.lengths)
    left = int((again.rewards == again.rewards[:, :1]).all(dim=1).sum())
    assert metrics['frac_reward_zero_std'] == left / 4 and step(2)[0]['resampled_groups'] == flat.sum() + left


def test_overlong_by_hand():
    """The ramp; and in a step it is added to the reward, but a completion that no reward applies to stays out."""
    lengths = torch.tensor([[10, 80, 81], [90, 99, 100]])
    torch.testing.assert_close(overlong(lengths, 100, 20), torch.tensor([[0, 0, -0.05], [-0.5, -0.95, -1]]))
    model = tiny()
    policy = CausalPolicy(model, TOKENIZER, 8)
    reward = [('half', lambda policy, rollout: [[None, 0.5, 0.5, 0.5]] * 4, 1.0)]
    for advantage in ('grpo', 'gae'):
        model.value_head = torch.nn.Linear(32, 1)
        cfg = plain(group_size=4, advantage=advantage, overlong_penalty=6, gamma=1.0, gae_lambda=1.0)
        metrics, rollout = grpo_training_step(policy, batch(), still(model), reward, cfg)
        penalty = -(rollout.lengths - 2).clamp(min=0) / 6
        assert rollout.rewards[:, 0].isnan().all() and (rollout.advantages[:, 0] == 0).all()
        assert metrics['overlong_penalty'] == pytest.approx(penalty.mean().item()) and penalty.min() == -1 < penalty.max()
        rewarded = rollout.rewards
        if advantage == 'gae':  # what a completion's last token should have expected
            rewarded = rollout.returns.gather(-1, rollout.lengths[..., None] - 1)[..., 0]
        torch.testing.assert_close(rewarded[:, 1:], 0.5 + penalty[:, 1:])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_learns_in_fp32(dtype):
    """Steps too small for a 16-bit weight add up in its master, where gradients arrive as fp32; sampler and trainer stay close."""
    model = tiny()
    masters = compute_in(model, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype} and {p.dtype for p in masters.values()} == {torch.float32}
    start = {name: p.detach().clone() for name, p in masters.items()}
    optimizer = configure_optimizers(masters.values(), 0, 1e-6, (0.9, 0.99))
    optimizer.register_step_post_hook(lambda *_: copy_masters(masters, model))
    optimizer.scaler = torch.amp.GradScaler('cpu', enabled=dtype == torch.float16)
    policy = CausalPolicy(model, TOKENIZER, 8)
    stats = train_on_rollout(policy, with_advantages(policy.sample(batch(), 4)), optimizer, plain(micro_batch_size=2))
    assert stats['sampler_gap_mean'] < 0.05
    assert all((p != start[name]).any() for name, p in masters.items()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, masters[name].to(dtype)) for name, p in model.named_parameters())


def test_fp16_gives_up_in_the_end():
    """A scaler lowers its scale while gradients overflow, which is no bad step; once the scale is below 1 it is."""
    model = tiny()
    policy, optimizer = CausalPolicy(model, TOKENIZER, 8), torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.scaler = torch.amp.GradScaler('cpu', init_scale=2.0)
    rollout = with_advantages(policy.sample(batch(), 4))
    rollout.advantages[0, 0] = torch.inf
    before = copy.deepcopy(model.state_dict())
    assert [train_on_rollout(policy, rollout, optimizer, plain())['bad_steps'] for _ in range(4)] == [0, 0, 1, 1]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_full_precision_keeps_no_second_copy():
    model = tiny()
    masters = compute_in(model, torch.float32)
    assert all(masters[name] is p for name, p in model.named_parameters())


def test_text_log_prob_by_hand():
    model, ids = tiny(), [1, 5, 2]
    log_probs = model.logits(torch.tensor([ids])).log_softmax(-1)[0]
    assert text_log_prob(model, ids) == pytest.approx((log_probs[0, 5] + log_probs[1, 2]).item() / 2, rel=1e-6)


def test_temperature_0_is_refused():
    with pytest.raises(ValueError, match='temperature 0'):
        CausalPolicy(tiny(), TOKENIZER, 8, temperature=0)


def test_what_is_said_of_how_prompts_are_read(capsys):
    """A begin token before plain prompts, once; settings of a template that it does not read, with what it does."""
    tokenizer = CharTokenizer('ab', end=True)
    tokenizer.prefix, tokenizer.template, tokenizer.has_chat_template = (0,), '{{ messages }}{{ thinking }}', True

    def said(prompt, **settings):
        cfg = types.SimpleNamespace(**{'chat_template': 'auto', 'chat_template_kwargs': None, 'add_special_tokens': True} | settings)
        say_how_prompts_are_read([{'prompt': prompt}], tokenizer, cfg)
        return capsys.readouterr().out.strip()

    talk = [{'role': 'user', 'content': 'a'}]
    assert said('b') == "plain prompts become 'a...', as in transformers; --add_special_tokens=False leaves that out"
    assert said('b', add_special_tokens=False) == said(talk) == said(talk, chat_template_kwargs={'thinking': False}) == ''
    other = 'note: no chat template reads thinkin of chat_template_kwargs: '
    assert said(talk, chat_template_kwargs={'thinkin': 1, 'thinking': 1}) == other + 'it reads messages, thinking'
    assert said('b', add_special_tokens=False, chat_template_kwargs={'thinkin': 1}) == other + 'no prompt goes through one'
