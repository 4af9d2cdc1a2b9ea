"""Masks, and the fill-in policy: exact likelihoods, G fills from one forward, K steps."""
import collections
import itertools

import pytest
import torch

import grpo
import kernels
from formats.tokenizer import CharTokenizer
from grpo import gather_logps, generate_rollouts, grpo_training_step, head_log_probs
from model import GPT
from plain import plain
from policy import uniforms
from runtime.masters import configure_optimizers
from tasks.fill_in import FillInPolicy, choose_slots, corrupt_like_bert, exact_match, fill, filler_config, make_batch

TOKENIZER = CharTokenizer('abcdefgh')


def share_of_a(policy, rollout):
    return (rollout.tokens == 0).where(rollout.mask, False).sum(-1) / rollout.lengths


SHARE_OF_A = [('a', share_of_a, 1.0)]


def tiny_policy(tokenizer=TOKENIZER, seed=0, **options):
    torch.manual_seed(seed)
    model = GPT(filler_config(tokenizer, 16, 2, 2, 16)).eval()
    for p in model.parameters():  # blocks start as the identity; make them do something
        torch.nn.init.normal_(p, std=0.3)
    return FillInPolicy(model, tokenizer, **options)


def tiny_batch(P=4, T=12, lengths=None, ratio=(0.3, 0.6), kind='random', tokenizer=TOKENIZER, seed=0):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.full((P,), T) if lengths is None else torch.tensor(lengths)
    tokens = torch.randint(len(tokenizer.chars), (P, T), generator=generator)
    return make_batch(tokens, lengths, choose_slots(kind, lengths, T, ratio, generator), tokenizer.mask_id, seed)


def adam(policy, learning_rate=1e-3):
    return configure_optimizers(policy.model.parameters(), 0, learning_rate, (0.9, 0.99))


@pytest.mark.parametrize('steps, top_p', [(1, 1.0), (3, 0.8)])
def test_sampling_from_a_forward_that_is_known(steps, top_p):
    """Greedy and sampled fills can share the first forward, and it is left as it was."""
    policy, given = tiny_policy(unmask_steps=steps, top_p=top_p), tiny_batch(lengths=[12, 5, 9, 3])
    first = policy.first(given)
    kept, alone = first.clone(), policy.sample(given, 4)
    shared = policy.sample(given, 4, first)
    assert torch.equal(alone.tokens, shared.tokens) and torch.equal(alone.logps, shared.logps)
    assert torch.equal(first, kept) and torch.equal(policy.greedy(given), first.argmax(dim=-1))


@pytest.mark.parametrize('kind', ['random', 'sticky', 'span'])
def test_mask_share_and_padding(kind):
    """Each text's share is what was asked for, to within half a character; nothing in padding; never empty."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([40, 25, 3, 1] * 50)
    for ratio in ((0.25, 0.25), (0.01, 0.01), (1.0, 1.0)):
        chosen = choose_slots(kind, lengths, 40, ratio, generator)
        assert torch.equal(chosen.sum(1), (lengths * ratio[0]).round().clamp(min=1).long())
        assert not (chosen & (torch.arange(40) >= lengths[:, None])).any()
    shares = choose_slots(kind, torch.full((400,), 40), 40, (0.1, 0.5), generator).float().mean(1)
    assert shares.min() >= 0.1 - 1e-6 and shares.max() <= 0.5 + 1e-6 and abs(shares.mean() - 0.3) < 0.03


def test_mask_kinds_differ_in_clumping():
    """Of masked positions, the share whose right neighbour is masked too: about the ratio for random, far more for the others."""
    generator = torch.Generator().manual_seed(0)
    share = {}
    for kind in ('random', 'sticky', 'span'):
        chosen = choose_slots(kind, torch.full((500,), 48), 48, (0.25, 0.25), generator)
        share[kind] = (chosen[:, :-1] & chosen[:, 1:]).sum().item() / chosen[:, :-1].sum().item()
    assert abs(share['random'] - 0.25) < 0.03 and share['sticky'] > 0.35 and share['span'] > 0.7


def test_every_position_can_be_masked():
    generator = torch.Generator().manual_seed(0)
    for kind in ('random', 'sticky', 'span'):
        often = choose_slots(kind, torch.full((2000,), 12), 12, (0.3, 0.3), generator).float().mean(0)
        assert often.min() > 0.08, (kind, often)  # a run of 4 among 12 reaches an end in 1 of 9 places


def test_bert_corruption_is_80_10_10():
    generator = torch.Generator().manual_seed(0)
    tokens, chosen = torch.zeros(200, 100, dtype=torch.long), torch.rand(200, 100, generator=generator) < 0.5
    inputs = corrupt_like_bert(tokens, chosen, TOKENIZER, generator)
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    masked, same = (inputs[chosen] == TOKENIZER.mask_id).float().mean(), (inputs[chosen] == 0).float().mean()
    assert abs(masked - 0.8) < 0.02 and abs(same - (0.1 + 0.1 / 8)) < 0.02 and inputs.max() <= TOKENIZER.mask_id


def test_likelihood_is_exact():
    """Three characters, two slots: the nine fills' probabilities sum to 1, and sampling draws them at those rates (3 sigma)."""
    tokenizer = CharTokenizer('abc')
    policy = tiny_policy(tokenizer, temperature=0.8)
    tokens = torch.randint(3, (1, 6))
    chosen = torch.tensor([[False, True, False, False, True, False]])
    batch = make_batch(tokens, torch.tensor([6]), chosen, tokenizer.mask_id)
    rollout = policy.sample(batch, 40000)
    log_probs = head_log_probs(policy, policy.hidden(rollout))
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))[None]
    probs = gather_logps(log_probs, every).sum(-1).exp()[0]
    assert probs.sum().item() == pytest.approx(1, abs=1e-5)
    seen = torch.bincount(rollout.tokens[0, :, 0] * 3 + rollout.tokens[0, :, 1], minlength=9) / 40000
    assert ((seen - probs).abs() < 3.5 * (probs * (1 - probs) / 40000).sqrt() + 1e-6).all()


@pytest.mark.parametrize('top_p, unmask_steps', [(1.0, 1), (0.7, 1), (1.0, 3), (0.7, 3)])
def test_sampler_and_trainer_agree(top_p, unmask_steps):
    """Log-probs noted while sampling are those that training recomputes, with nucleus, steps and ragged texts; no special is ever drawn."""
    policy = tiny_policy(temperature=0.8, top_p=top_p, unmask_steps=unmask_steps)
    batch = tiny_batch(lengths=[12, 7, 3, 10])
    rollout = generate_rollouts(policy, batch, plain(group_size=5))
    logps = gather_logps(head_log_probs(policy, policy.hidden(rollout), rollout.allowed), rollout.tokens)
    assert (logps - rollout.logps)[rollout.mask].abs().max() < 1e-5
    assert torch.isfinite(rollout.logps[rollout.mask]).all() and rollout.tokens[rollout.mask].max() < len(TOKENIZER.chars)
    texts = fill(batch, rollout.tokens)
    outside = (batch['tokens'] != TOKENIZER.mask_id)[:, None].expand_as(texts)
    assert torch.equal(texts[outside], batch['tokens'][:, None].expand_as(texts)[outside])
    assert not (texts == TOKENIZER.mask_id).any()


def test_one_step_is_the_plain_case():
    """
    unmask_steps=1 written out: softmax of the tempered logits at the slots; a fill is the first character whose cumulated probability
    lies above its number.
    """
    policy = tiny_policy(temperature=0.8)
    batch = tiny_batch(lengths=[12, 12, 12, 12])
    rollout = policy.sample(batch, 5)
    hidden = policy.model(batch['tokens']).gather(1, batch['slots'][..., None].expand(-1, -1, 16))
    probs = (policy.model.lm_head(hidden) / 0.8).masked_fill(policy.forbidden, -torch.inf).log_softmax(-1).exp()
    u = uniforms(batch['seeds'].tolist(), 6, probs.shape[1])[:, 1:]             # the first row deals slots into steps
    for p, g, m in itertools.product(range(4), range(5), range(probs.shape[1])):
        cumulated = list(itertools.accumulate(probs[p, m, :len(TOKENIZER.chars)].tolist()))
        assert rollout.tokens[p, g, m] == next(v for v, mass in enumerate(cumulated) if mass > u[p, g, m])


@pytest.mark.parametrize('unmask_steps', [1, 3])
def test_a_fill_depends_on_its_text_its_seed_and_its_place_alone(unmask_steps):
    """
    Some of the texts, in another order and padded otherwise, with more fills each, get the fills that they got among the others: so
    ranks and parts of a rollout do not matter.
    """
    policy = tiny_policy(unmask_steps=unmask_steps)
    batch = tiny_batch(lengths=[12, 5, 9, 7])
    together = policy.sample(batch, 3)
    picked = torch.tensor([3, 1])
    M = int(batch['n_slots'][picked].max())
    fewer = {name: values[picked] for name, values in batch.items()}
    alone = policy.sample(fewer | {'slots': fewer['slots'][:, :M]}, 4)
    mask = alone.mask[:, :3]
    assert M < batch['slots'].shape[1] and torch.equal(alone.tokens[:, :3][mask], together.tokens[picked][:, :, :M][mask])
    assert not torch.equal(together.tokens[0, 0], together.tokens[0, 1])


def test_steps_see_earlier_fills():
    """With K = M each slot's log-prob is that of its own forward, with the earlier slots filled: an any-order autoregressive model."""
    policy = tiny_policy(unmask_steps=3)
    tokens = torch.randint(8, (1, 6))
    chosen = torch.tensor([[True, False, True, False, False, True]])
    batch = make_batch(tokens, torch.tensor([6]), chosen, TOKENIZER.mask_id)
    rollout = policy.sample(batch, 4)
    order = rollout.batch['step_of_slot'][0].argsort().tolist()
    assert sorted(order) == [0, 1, 2]
    for g in range(4):
        text = batch['tokens'][0].clone()
        for m in order:
            logits = policy.model.logits(text[None])[0, batch['slots'][0, m]].masked_fill(policy.forbidden, -torch.inf)
            logp = logits.log_softmax(-1)[rollout.tokens[0, g, m]].item()
            assert logp == pytest.approx(rollout.logps[0, g, m].item(), abs=1e-5)
            text[batch['slots'][0, m]] = rollout.tokens[0, g, m]


def test_cost_does_not_grow_with_the_group(monkeypatch):
    """Policy and reference read P rows, the head's rows are slots, for 2 fills as for 16."""
    def rows(G):
        policy = tiny_policy()
        reference = policy.with_model(tiny_policy(seed=1).model)
        seen = collections.Counter()

        def counted(hidden, *arguments):
            seen['loss'] += len(hidden)
            return logits_of(hidden, *arguments)

        def sampled(hidden, *arguments):
            seen['sampler'] += len(hidden)
            return logits_of(hidden, *arguments)

        for model in (policy.model, reference.model):
            model.register_forward_hook(lambda module, inputs, output: seen.update(trunk=output.shape[0]))
        with monkeypatch.context() as patch:
            patch.setattr(kernels, 'logits_of', counted)
            patch.setattr(grpo, 'logits_of', sampled)
            cfg = plain(group_size=G, kl_beta=0.1, kl_estimator='exact')
            grpo_training_step(policy, tiny_batch(), adam(policy), SHARE_OF_A, cfg, reference)
        return seen
    batch, logits_of = tiny_batch(), kernels.logits_of
    assert rows(2) == rows(16) == {'trunk': 3 * 4, 'sampler': batch['slots'].numel(), 'loss': 2 * batch['n_slots'].sum()}


def test_padding_and_company_do_not_matter():
    """A short text among longer ones gets the hidden states it gets alone."""
    policy = tiny_policy()
    batch = tiny_batch(lengths=[12, 5, 9, 7])
    together = policy.slot_hidden(batch, None, 0)
    n = int(batch['n_slots'][1])
    alone = {name: values[1:2] for name, values in batch.items()}
    alone |= {'tokens': alone['tokens'][:, :5], 'original': alone['original'][:, :5], 'slots': alone['slots'][:, :n]}
    torch.testing.assert_close(policy.slot_hidden(alone, None, 0)[0, 0], together[1, 0, :n], atol=1e-5, rtol=1e-5)


def test_learns_what_is_rewarded_and_moves_every_parameter():
    """Reward = share of 'a' among the fills: a few steps take it from about 1/8 to nearly 1."""
    policy = tiny_policy()
    optimizer = adam(policy, 1e-2)
    before = [p.clone() for p in policy.model.parameters()]
    assert 'mean_kl' not in grpo_training_step(policy, tiny_batch(), optimizer, SHARE_OF_A, plain())[0]  # unknown, not 0
    first, *_, last = [grpo_training_step(policy, tiny_batch(seed=i), optimizer, SHARE_OF_A, plain())[0] for i in range(40)]
    assert first['mean_reward'] < 0.4 and last['mean_reward'] > 0.9
    assert all(not torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))


def test_at_the_start_ratio_is_one_and_kl_is_zero():
    policy = tiny_policy()
    reference = policy.with_model(tiny_policy().model)
    cfg = plain(kl_beta=0.1, kl_estimator='exact')
    metrics, _ = grpo_training_step(policy, tiny_batch(), adam(policy), SHARE_OF_A, cfg, reference)
    assert abs(metrics['mean_kl']) < 1e-6 and metrics['sampler_gap_max'] < 1e-5
    assert metrics['clip_frac_high'] == 0 and abs(metrics['loss']) < 1e-3


def test_exact_match_by_hand():
    texts, chosen = torch.tensor([[0, 1, 2], [3, 4, 5]]), torch.tensor([[True, False, True], [False, True, False]])
    batch = make_batch(texts, torch.tensor([3, 3]), chosen, TOKENIZER.mask_id)
    fills = torch.tensor([[[0, 2], [0, 3]], [[4, 0], [5, 7]]])  # right: 2 + 1 of text 0, 1 + 0 of text 1 (its second slot is padding)
    assert exact_match(batch, fills) == pytest.approx(4 / 6)
