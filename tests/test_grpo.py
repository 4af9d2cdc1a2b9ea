"""The arithmetic of the step against hand-worked numbers and brute-force enumeration (float64)."""
import itertools
import math
import types

import pytest
import torch

from grpo import (
    LOSS_TYPES,
    Rollout,
    aggregate,
    compute_advantages,
    compute_rewards,
    gae,
    gather_logps,
    head_log_probs,
    kl_estimate,
    minibatches,
    part_means,
    policy_loss,
    train_on_rollout,
)
from mirror import MirrorMap
from plain import plain

torch.manual_seed(0)


class TablePolicy:
    """A policy that is a table of hidden states: its completions' tokens are independent, its head is the identity. V = width."""
    max_new_tokens, mirror = None, None

    def __init__(self, P, R, V, temperature=1.0):
        self.model = torch.nn.Module()
        self.model.table = torch.nn.Parameter(torch.randn(P, R, V, dtype=torch.float64))
        self.model.lm_head = torch.nn.Linear(V, V, bias=False, dtype=torch.float64)
        self.model.lm_head.weight = torch.nn.Parameter(torch.eye(V, dtype=torch.float64), requires_grad=False)
        self.temperature, self.forbidden = temperature, torch.zeros(V, dtype=torch.bool)
        self.still = torch.optim.SGD([self.model.table], lr=0.0)

    def hidden(self, rollout):
        return self.model.table[rollout.batch['row']][:, None]


def table_rollout(policy, G, lengths=None):
    P, R, V = policy.model.table.shape
    tokens = torch.randint(V, (P, G, R))
    log_probs = head_log_probs(policy, policy.model.table.detach()[:, None])
    lengths = torch.full((P, G), R) if lengths is None else lengths
    rollout = Rollout({'row': torch.arange(P)}, tokens, lengths, gather_logps(log_probs, tokens))
    rollout.advantages = compute_advantages(torch.randn(P, G), 'rloo')
    return rollout


def fixed(name, values, weight=1.0):
    """A reward that says these values of whatever it is asked about."""
    return name, lambda policy, rollout: values, weight


# --- advantages

def test_advantages_by_hand():
    r = torch.tensor([[1., 0., 0., 1.]])
    sign = torch.tensor([[1., -1., -1., 1.]])
    torch.testing.assert_close(compute_advantages(r, 'grpo'), 0.865875 * sign, atol=1e-6, rtol=0)  # .5 / (.57735 + 1e-4)
    torch.testing.assert_close(compute_advantages(r, 'rloo'), 2 / 3 * sign)
    torch.testing.assert_close(compute_advantages(r, 'dr_grpo'), 0.5 * sign)
    both = torch.tensor([[1., 0., 0., 1.], [4., 0., 0., 4.]])  # mean 1.25, squared deviations sum 21.5, std sqrt(21.5 / 7)
    torch.testing.assert_close(compute_advantages(both, 'batch')[0], 0.5 * sign[0] / ((21.5 / 7) ** 0.5 + 1e-4))


@pytest.mark.parametrize('kind', ['grpo', 'dr_grpo', 'batch', 'rloo'])
def test_equal_rewards_give_exactly_zero(kind):
    """0.1 + 0.2 style residue divided by a tiny std once made advantages of thousands."""
    rewards = torch.tensor([[0.1] * 7, [0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.5]])
    advantages = compute_advantages(rewards, kind)
    assert (advantages[0] == 0).all() and (advantages[1] != 0).any()


def test_gae_against_its_definition():
    """
    The sum over all later tokens of a completion, O(R^2); lambda 0 leaves the TD error, gamma = lambda = 1 what is still to come minus
    what was expected. NaN in padding counts for nothing.
    """
    lengths = torch.tensor([[5, 1], [3, 4]])
    mask = torch.arange(5) < lengths[..., None]
    rewards, values = torch.randn(2, 2, 5, 2, dtype=torch.double).masked_fill(~mask[..., None], torch.nan).unbind(-1)
    advantages = {pair: gae(rewards, values, mask, *pair) for pair in ((0.9, 0.7), (0.9, 0.0), (1.0, 1.0))}
    for p, g in itertools.product(range(2), repeat=2):
        n, r, v = lengths[p, g], rewards[p, g], values[p, g]
        td = [r[t] + 0.9 * (v[t + 1] if t + 1 < n else 0) - v[t] for t in range(n)]
        for t in range(n):
            discounted = sum((0.9 * 0.7) ** (s - t) * td[s] for s in range(t, n))
            assert advantages[0.9, 0.7][p, g, t].item() == pytest.approx(discounted.item())
            assert advantages[0.9, 0.0][p, g, t].item() == pytest.approx(td[t].item())
            assert advantages[1.0, 1.0][p, g, t].item() == pytest.approx((r[t:n].sum() - v[t]).item())
        assert all((x[p, g, n:] == 0).all() for x in advantages.values())
    # the reward at the end and the group's mean as value: Dr. GRPO's advantages at every token
    final, mean = torch.tensor([[1.0, 0.0, 0.0, 1.0]]), 0.5
    last = torch.nn.functional.one_hot(torch.tensor(2), 3) * final[..., None]
    everywhere = gae(last, torch.full_like(last, mean), torch.ones_like(last, dtype=torch.bool), 1.0, 1.0)
    assert torch.equal(everywhere, compute_advantages(final, 'dr_grpo')[..., None].expand(1, 4, 3))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match='group_size is 1'):
        compute_advantages(torch.zeros(3, 1))


# --- losses

def test_losses_by_hand():
    """Two completions, lengths 2 and 1, ratio 1: -A at every token, aggregated four ways. The mask hides a NaN."""
    logps = torch.log(torch.tensor([[0.5, 0.25], [0.2, 0.9]]))
    old = logps.clone()
    old[1, 1] = float('nan')
    mask = torch.tensor([[True, True], [True, False]])
    A = torch.tensor([1.0, -2.0])
    weighted = logps[0].sum() - 2 * logps[1, 0]
    for loss_type, wanted in (('grpo', (-1 + 2) / 2), ('gspo', (-1 + 2) / 2), ('dapo', (-1 - 1 + 2) / 3),
                              ('dr_grpo', (-1 - 1 + 2) / (2 * 10)), ('cispo', -weighted / 3), ('reinforce', -weighted / 2)):
        loss, _ = policy_loss(logps, old, A, mask, loss_type, max_new_tokens=10)
        torch.testing.assert_close(loss, torch.as_tensor(wanted, dtype=loss.dtype), msg=loss_type)


def test_clipping_by_hand():
    """ratio 1.5: with A > 0 the loss is -1.2 A and flat; with A < 0 it is -1.5 A and not. ratio 0.5 the other way round."""
    for ratio, A, value, flat in ((1.5, 1.0, -1.2, True), (1.5, -1.0, 1.5, False), (0.5, 1.0, -0.5, False), (0.5, -1.0, 0.8, True)):
        logps = torch.tensor([[ratio]], dtype=torch.float64).log().requires_grad_()
        loss, stats = policy_loss(logps, torch.zeros(1, 1), torch.tensor([A]), torch.ones(1, 1, dtype=torch.bool))
        loss.backward()
        assert loss.item() == pytest.approx(value) and (logps.grad.item() == 0) == flat
        assert (stats['clip_frac_high'] + stats['clip_frac_low']).item() == float(flat)
    likely, mask = torch.tensor([[10.0]]).log(), torch.ones(1, 1, dtype=torch.bool)
    loss, _ = policy_loss(likely, torch.zeros(1, 1), torch.tensor([-1.0]), mask, dual_clip=3.0)
    assert loss.item() == pytest.approx(3.0)


def test_a_name_without_a_branch_is_refused(monkeypatch):
    """A new loss, say, that is in the choices and not yet in policy_loss: it never becomes another one's."""
    monkeypatch.setitem(LOSS_TYPES, 'topr', 'tokens')
    one = torch.ones(1, 1)
    for call in (lambda: policy_loss(one, one, one[0], one.bool(), 'topr'), lambda: compute_advantages(torch.eye(2), 'topr'),
                 lambda: kl_estimate(one, one, 'topr')):
        with pytest.raises(ValueError, match="is 'topr'; it must be one of [^']*$"):
            call()


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('temperature', [1.0, 0.7])
def test_gradient_equals_enumeration(loss_type, temperature):
    """V = 3, R = 2: the policy gradient, averaged over all 9 completions with their probabilities, is that of the expected reward."""
    policy = TablePolicy(1, 2, 3, temperature)
    tokens = torch.tensor(list(itertools.product(range(3), repeat=2)))[None]                 # (1, 9, 2)
    reward = torch.randn(9, dtype=torch.float64)
    log_probs = head_log_probs(policy, policy.model.table[:, None])
    assert log_probs.exp().sum(-1).allclose(torch.ones(1, dtype=log_probs.dtype))
    logps = gather_logps(log_probs, tokens)                                                  # (1, 9, 2)
    probs = logps.sum(-1).exp()
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-6)
    wanted, = torch.autograd.grad(-(probs * reward).sum(), policy.model.table, retain_graph=True)
    # each reward weighted by its completion's probability plays the part of the advantage; token-level averages divide by R = 2
    weighted, counts = probs.detach() * reward, {'n_completions': 1, 'n_tokens': 2, 'max_new_tokens': 2}
    loss, _ = policy_loss(logps, logps.detach(), weighted, torch.ones(1, 9, 2, dtype=torch.bool), loss_type, **counts)
    got, = torch.autograd.grad(loss, policy.model.table)
    scale = 1.0 if LOSS_TYPES[loss_type] == 'completions' else 0.5
    torch.testing.assert_close(got, scale * wanted, atol=1e-6, rtol=1e-5)


def test_the_value_loss_by_hand():
    """
    Half the squared error, or that of the value held within value_clip of the old one where this is more; averaged over tokens. An
    advantage for each token.
    """
    policy = TablePolicy(1, 2, 3)
    policy.model.value_head = torch.nn.Linear(3, 1, dtype=torch.double)
    rollout = table_rollout(policy, 1 + 1)
    with torch.no_grad():
        policy.model.value_head.weight.zero_()
        policy.model.value_head.bias.fill_(1.0)
    policy.hidden = lambda rollout: policy.model.table[rollout.batch['row']][:, None].expand(-1, 2, -1, -1)
    rollout.advantages = torch.tensor([[[1.0, -2.0], [0.5, 0.25]]], dtype=torch.double)
    rollout.values = torch.tensor([[[0.0, 1.1], [0.9, 5.0]]], dtype=torch.double)
    rollout.returns = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]], dtype=torch.double)
    optimizer = torch.optim.SGD([policy.model.table, *policy.model.value_head.parameters()], lr=0.0)
    cfg = plain(grad_clip=0, loss_type='dapo', value_coef=0.1, value_clip=0.2)
    stats = train_on_rollout(policy, rollout, optimizer, cfg)
    # values all 1: errors 1 (held at 0.2: 3.24), 1, 1, 0 (held at 4.8: 14.44)
    assert stats['value_loss'] == pytest.approx(0.5 * (3.24 + 1 + 1 + 14.44) / 4)
    assert stats['pg_loss'] == pytest.approx(-(1 - 2 + 0.5 + 0.25) / 4, abs=1e-6)
    assert policy.model.value_head.bias.grad.item() == pytest.approx(0.1 * (1 + 1) / 4)  # held values have no gradient
    cfg.value_clip = None
    stats = train_on_rollout(policy, rollout, optimizer, cfg)
    assert stats['value_loss'] == pytest.approx(0.5 * 3 / 4)


@pytest.mark.parametrize('loss_type', LOSS_TYPES)
@pytest.mark.parametrize('size', [1, 2, 5])
def test_micro_batches_do_not_change_the_gradient(loss_type, size):
    def gradient(micro_batch_size):
        torch.manual_seed(3)
        policy = TablePolicy(5, 4, 6)
        policy.max_new_tokens = 4
        rollout = table_rollout(policy, 3, lengths=torch.randint(1, 5, (5, 3)))
        rollout.ref_logps = rollout.logps + 0.3 * torch.randn_like(rollout.logps)
        cfg = plain(loss_type=loss_type, kl_beta=0.1, kl_estimator='k2', entropy_coef=0.01, grad_clip=0, micro_batch_size=micro_batch_size)
        stats = train_on_rollout(policy, rollout, policy.still, cfg)
        return policy.model.table.grad, stats['loss']
    whole, loss = gradient(None)
    parts, loss_of_parts = gradient(size)
    torch.testing.assert_close(parts, whole, atol=1e-12, rtol=1e-9)
    assert loss == pytest.approx(loss_of_parts, abs=1e-6) and whole.abs().max() > 1e-4


@pytest.mark.parametrize('divergence,weighting', [('neural_mirror', 'token'), ('prob_l2', 'is'), ('l2kl', 'token')])
def test_divergences_in_the_loss(divergence, weighting):
    """Loss and gradient in float64 by hand; micro-batches change nothing; at the reference itself penalty and gradient are 0."""
    mirror = MirrorMap(1.0, 3)
    cfg = plain(divergence=divergence, mirror_coefficient=0.7, mirror_weighting=weighting, grad_clip=0, loss_type='dapo', kl_beta=0.2,
                kl_estimator='k2')

    def by_hand(own, other):
        """D of each token, of log-probs (P, G, R)."""
        if divergence == 'neural_mirror':
            return mirror.divergence(own.exp(), other.exp())
        if divergence == 'prob_l2':
            return (own.exp() - other.exp()).square() / own.exp().detach()
        return (own - other).square() + 0.2 / 0.7 * (own - other).square() / 2

    def gradient(micro_batch_size=None, moved=0.3):
        torch.manual_seed(5)
        policy, reference = TablePolicy(4, 3, 6), TablePolicy(4, 3, 6)
        reference.mirror, cfg.micro_batch_size = mirror, micro_batch_size
        rollout = table_rollout(policy, 3, lengths=torch.randint(1, 4, (4, 3)))
        rollout.advantages = torch.zeros(4, 3, dtype=torch.double)
        with torch.no_grad():
            reference.model.table.copy_(policy.model.table + moved * torch.randn(4, 3, 6, dtype=torch.double))
        log_probs, ref = (head_log_probs(one, one.model.table[:, None]) for one in (policy, reference))
        rollout.ref_logps = gather_logps(ref, rollout.tokens).detach()
        stats = train_on_rollout(policy, rollout, policy.still, cfg, reference)
        D = by_hand(gather_logps(log_probs, rollout.tokens), rollout.ref_logps)
        wanted = 0.7 * D[rollout.mask].sum() / rollout.mask.sum()
        return policy.model.table.grad, stats, wanted, torch.autograd.grad(wanted, policy.model.table)[0]

    whole, stats, wanted, wanted_gradient = gradient()
    torch.testing.assert_close(whole, wanted_gradient, atol=1e-6, rtol=1e-4)
    assert stats['loss'] == pytest.approx(wanted.item(), rel=1e-4) and wanted > 1e-4
    torch.testing.assert_close(gradient(1)[0], whole, atol=1e-7, rtol=1e-5)
    still, stats, _, _ = gradient(moved=0.0)
    assert still.abs().max() < 1e-6 and stats['mirror_penalty'] == pytest.approx(0, abs=1e-9)


def test_padding_may_hold_anything():
    """Random ids and NaN log-probs behind the true lengths change nothing."""
    def gradient(poison):
        torch.manual_seed(4)
        policy = TablePolicy(2, 4, 5)
        rollout = table_rollout(policy, 3, lengths=torch.tensor([[4, 2, 1], [3, 3, 2]]))
        rollout.ref_logps = rollout.logps - 0.1
        if poison:
            rollout.tokens = rollout.tokens.where(rollout.mask, torch.randint(5, rollout.tokens.shape))
            rollout.logps = rollout.logps.masked_fill(~rollout.mask, float('nan'))
            rollout.ref_logps = rollout.ref_logps.masked_fill(~rollout.mask, float('nan'))
        train_on_rollout(policy, rollout, policy.still, plain(grad_clip=0, kl_beta=0.1))
        return policy.model.table.grad
    assert torch.equal(gradient(False), gradient(True))


def test_several_epochs_clip():
    """The first epoch is on-policy; a later one, after a large step, meets the clip."""
    policy = TablePolicy(2, 3, 4)
    optimizer = torch.optim.SGD([policy.model.table], lr=5.0)
    once = train_on_rollout(policy, table_rollout(policy, 4), optimizer, plain(grad_clip=0))
    twice = train_on_rollout(policy, table_rollout(policy, 4), optimizer, plain(grad_clip=0, num_epochs_per_rollout=2))
    assert once['clip_frac_low'] == once['clip_frac_high'] == 0 and once['sampler_gap_max'] < 1e-6
    assert twice['clip_frac_low'] + twice['clip_frac_high'] > 0
    assert twice['clip_frac_low/epoch_1'] == twice['clip_frac_high/epoch_1'] == 0
    for side in ('clip_frac_low', 'clip_frac_high'):
        assert twice[side] == pytest.approx((twice[f'{side}/epoch_1'] + twice[f'{side}/epoch_2']) / 2)


def test_minibatches_are_a_shuffle():
    """12 prompts in minibatches of 4, n = 3: each prompt once an epoch, one of each 3 neighbours in every part, another order each time."""
    rollout = table_rollout(TablePolicy(12, 1, 2), 2)
    rollout.batch['seeds'] = torch.arange(12)
    orders = []
    for epoch in range(20):
        parts = minibatches(rollout, plain(minibatch_size=4), epoch)
        rows = [part.batch['row'].tolist() for part in parts]
        assert [[row // 3 for row in part] for part in rows] == [[0, 1, 2, 3]] * 3
        assert sorted(sum(rows, [])) == list(range(12))
        orders.append(rows)
    again = [part.batch['row'].tolist() for part in minibatches(rollout, plain(minibatch_size=4), 7)]
    assert again == orders[7] and len({str(rows) for rows in orders}) == 20
    # each of 3! orders of a block about as often as another: 20 draws of 4 blocks
    assert len({tuple(part[b] for part in rows) for rows in orders for b in range(4)} - {None}) == 24
    assert minibatches(rollout, plain(), 0) == [rollout] == minibatches(rollout, plain(minibatch_size=12), 0)
    with pytest.raises(ValueError, match='12 prompts on each of 1 ranks: no minibatches of 5'):
        minibatches(rollout, plain(minibatch_size=5), 0)


def test_the_second_step_by_enumeration():
    """
    Two prompts that share one distribution pi_0, a step for each. The second step's completions are pi_0's, its policy pi_1 has learned
    from the first. With A = r - mean and groups of 2 its expected gradient is -grad E[r under pi_1] / 2, whatever pi_0: the mean over all
    81 outcomes of both groups, weighted by their probability, is that mean over all first steps.
    """
    V, lr, score = 3, 0.7, torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64)
    start = torch.randn(1, 1, V, dtype=torch.float64)
    p0 = start.flatten().softmax(0)
    groups = list(itertools.product(range(V), repeat=2))
    mean_gradient, wanted = torch.zeros(V, dtype=torch.float64), torch.zeros(V, dtype=torch.float64)
    for first, second in itertools.product(groups, groups):
        policy = TablePolicy(1, 1, V)
        policy.model.table.data.copy_(start)
        tokens = torch.tensor([first, second])[..., None]                   # (2, 2, 1)
        batch = {'row': torch.tensor([0, 0]), 'seeds': torch.tensor([5, 5])}
        rollout = Rollout(batch, tokens, torch.ones(2, 2, dtype=torch.long), p0.log()[tokens])
        rollout.advantages = compute_advantages(score[tokens[..., 0]], 'dr_grpo')
        optimizer, tables = torch.optim.SGD([policy.model.table], lr=lr), []
        optimizer.register_step_pre_hook(lambda *_, to=tables, policy=policy: to.append(policy.model.table.detach().clone().flatten()))
        cfg = plain(grad_clip=0, clip_low=1.0, clip_high=1e9, minibatch_size=1, dual_clip=None)
        stats = train_on_rollout(policy, rollout, optimizer, cfg)
        assert len(tables) == 2 and stats['sampler_gap_max'] < 1e-6
        probability = p0[list(first + second)].prod()
        mean_gradient += probability * (tables[1] - policy.model.table.detach().flatten()) / lr
        p1 = tables[1].softmax(0)
        wanted -= probability * p1 * (score - p1 @ score) / 2
    torch.testing.assert_close(mean_gradient, wanted, rtol=0, atol=1e-6)
    assert wanted.abs().max() > 0.05


def test_stats_of_minibatches_are_means_over_tokens():
    """Nothing moves (lr 0): every mean over tokens is that of one step, though the parts have 2, 6, 4 and 3 tokens, and a silent group."""
    policy = TablePolicy(4, 3, 5)
    rollout = table_rollout(policy, 2, torch.tensor([[1, 1], [3, 3], [2, 2], [1, 2]]))
    rollout.batch['seeds'] = torch.arange(4)
    rollout.advantages[2] = 0.0
    cfg = plain(grad_clip=0, loss_type='dapo', num_epochs_per_rollout=2)
    once = train_on_rollout(policy, rollout, policy.still, cfg)
    cfg.minibatch_size = 1
    cut = train_on_rollout(policy, rollout, policy.still, cfg)
    assert once.keys() == cut.keys()
    log_probs = head_log_probs(policy, policy.model.table.detach()[:, None])
    teaching = rollout.mask & (rollout.advantages != 0)[..., None]
    by_hand = gather_logps(log_probs, rollout.tokens)[teaching].mean().item()
    assert once['mean_log_prob'] == pytest.approx(by_hand)
    assert once['loss'] == pytest.approx(cut['loss'])


def test_a_step_with_nan_is_skipped_and_counted():
    """Two epochs with a NaN advantage: neither steps, both are counted, and the next rollout is learned from as usual."""
    policy = TablePolicy(1, 2, 3)
    rollout = table_rollout(policy, 2)
    before, optimizer = policy.model.table.clone(), torch.optim.SGD([policy.model.table], lr=1.0, momentum=0.9)
    good = rollout.advantages.clone()
    rollout.advantages = good.index_fill(1, torch.tensor([0]), float('nan'))
    stats = train_on_rollout(policy, rollout, optimizer, plain(num_epochs_per_rollout=2))
    assert stats['bad_steps'] == 2 and torch.equal(policy.model.table, before) and not optimizer.state
    rollout.advantages = good
    stats = train_on_rollout(policy, rollout, optimizer, plain())
    assert stats['bad_steps'] == 0 and torch.isfinite(policy.model.table).all() and not torch.equal(policy.model.table, before)


def test_a_reward_that_is_nan_is_named():
    rollout = types.SimpleNamespace(lengths=torch.ones(2, 2), tokens=torch.zeros(2, 2, 1))
    with pytest.raises(FloatingPointError, match="reward 'mine' is NaN or infinite for 1 of 4"):
        compute_rewards(None, rollout, [fixed('mine', [[0.0, 1.0], [float('nan'), 0.5]])])
    compute_rewards(None, rollout, [fixed('a', torch.ones(2, 2), 0.5), fixed('b', torch.eye(2), 2.0)])
    assert rollout.rewards.tolist() == [[2.5, 0.5], [0.5, 2.5]]


def test_a_reward_that_does_not_apply_leaves_its_weight_to_the_others():
    """a and b weigh 1 and 3: where b is None a stands for both, 4 a; where both are, the completion has no reward. NaN is an error."""
    rollout = types.SimpleNamespace(lengths=torch.ones(2, 2), tokens=torch.zeros(2, 2, 1))
    rewards = [fixed('a', [[0.5, 1.0], [None, None]]), fixed('b', [[1.0, None], [None, 0.5]], 3.0)]
    assert compute_rewards(None, rollout, rewards) == {'a': 1.0, 'b': 3.0}
    assert rollout.rewards[0].tolist() == [3.5, 4.0] and rollout.rewards[1, 0].isnan() and rollout.rewards[1, 1] == 2.0
    assert part_means(rollout.reward_parts) == {'reward/a': 0.75, 'reward_missing/a': 0.5, 'reward/b': 0.75, 'reward_missing/b': 0.5}
    compute_rewards(None, rollout, [fixed('a', [[0.5, 1.0], [None, 1.0]]), fixed('cost', [[2.0, None], [1.0, 1.0]], -1.0)])
    assert rollout.rewards.tolist() == [[-1.5, 2.0], [-2.0, 0.0]]  # sizes of weights count: 1 * 2 / 1, -1 * 2 / 1
    compute_rewards(None, rollout, [fixed('a', [[0.5, 1.0], [None, 1.0]]), fixed('seen', torch.ones(2, 2), 0.0)])
    assert rollout.rewards[1].isnan().tolist() == [True, False]  # what weighs nothing does not judge
    with pytest.raises(ValueError, match="none of the rewards 'a' applies to any completion"):
        compute_rewards(None, rollout, [fixed('a', [[None] * 2] * 2)])
    assert part_means({'a': torch.full((2, 2), torch.nan)}) == {'reward_missing/a': 1.0}
    for bad in (math.nan, math.inf):
        with pytest.raises(FloatingPointError, match="'a' is NaN or infinite for 1 of 4"):
            compute_rewards(None, rollout, [fixed('a', [[None, bad], [0.0, 1.0]])])


@pytest.mark.parametrize('kind', ['grpo', 'dr_grpo', 'batch', 'rloo'])
def test_completions_without_a_reward_take_no_part_in_the_comparison(kind):
    rewards = torch.tensor([[1.0, math.nan, 3.0, 2.0], [0.0, 1.0, 0.0, 5.0], [math.nan, 4.0, math.nan, math.nan]])
    advantages = compute_advantages(rewards, kind)
    everyone = rewards[~rewards.isnan()]
    assert advantages[0, [0, 2, 3]].tolist() == compute_advantages(torch.tensor([[1.0, 3.0, 2.0]]), kind, everyone)[0].tolist()
    assert advantages[1].tolist() == compute_advantages(rewards[1:2], kind, everyone)[0].tolist()
    assert advantages[1].tolist() == compute_advantages(rewards[1:2], kind, rewards)[0].tolist()  # the NaN are other ranks'
    assert advantages[0, 1] == 0 and (advantages[2] == 0).all()


# --- KL

def test_kl_gradients_by_enumeration():
    """V = 3: the expected gradient of k1 in the loss is 0, of k2 that of KL(p||q), of k3 that of KL(q||p); exact is KL(p||q) itself."""
    z = torch.randn(3, dtype=torch.float64, requires_grad=True)
    logp, logq = z.log_softmax(0), torch.randn(3, dtype=torch.float64).log_softmax(0)
    reverse, = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), z, retain_graph=True)
    forward, = torch.autograd.grad((logq.exp() * (logq - logp)).sum(), z, retain_graph=True)
    for kind, wanted in (('k1', torch.zeros(3, dtype=torch.float64)), ('k2', reverse), ('k3', forward)):
        expected, = torch.autograd.grad((logp.exp().detach() * kl_estimate(logp, logq, kind)).sum(), z, retain_graph=True)
        torch.testing.assert_close(expected, wanted, atol=1e-12, rtol=0, msg=kind)
    exact, = torch.autograd.grad(kl_estimate(logp, logq, 'exact'), z, retain_graph=True)
    torch.testing.assert_close(exact, reverse)
    for kind in ('k1', 'k2', 'k3', 'exact'):
        assert (kl_estimate(logp, logp, kind) == 0).all()


def test_exact_kl_ignores_forbidden_ids():
    z = torch.randn(4, requires_grad=True)
    hole = torch.tensor([False, True, False, False])
    p = z.masked_fill(hole, -torch.inf).log_softmax(0)
    kl = kl_estimate(p, torch.randn(4).masked_fill(hole, -torch.inf).log_softmax(0), 'exact')
    kl.backward()
    assert kl > 0 and torch.isfinite(z.grad).all() and z.grad[1] == 0


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match='one of grpo'):
        aggregate(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), 'ppo', 1, 1)
    with pytest.raises(ValueError, match='one of k1'):
        kl_estimate(torch.zeros(1), torch.zeros(1), 'k4')
    with pytest.raises(ValueError, match='one of grpo'):
        compute_advantages(torch.zeros(2, 2), 'gae2')
