"""The same tensors through TRL's loss: value to 1e-5, gradient to 1e-5 of its norm. By default its KL is weighted with the ratio."""
import pytest
import torch

from grpo import Rollout, Settings, completion_logps, minibatches, train_on_rollout
from model import GPT
from policy import CausalPolicy, prompt_batch
from tools.bench import SIZES, WordTokenizer, llama_gradient, llamas, trl_trainer

pytest.importorskip('trl')
pytest.importorskip('transformers')

P, G, T, R = 2, 4, 6, 9


@pytest.fixture(scope='module')
def both():
    return llamas(SIZES['tiny'])


@pytest.mark.parametrize('loss_type, options, theirs_options', [
    ('grpo', {}, {}), ('dr_grpo', {}, {}),
    ('grpo', dict(kl_beta=0.1, kl_estimator='k3'), dict(beta=0.1, use_bias_correction_kl=False)),
    ('dapo', dict(clip_high=0.28), dict(epsilon_high=0.28)), ('cispo', dict(clip_high=0.1), dict(epsilon_high=1.1)),
    ('gspo', dict(clip_low=0.01, clip_high=0.01),
     dict(loss_type='grpo', importance_sampling_level='sequence', epsilon=0.01))])
def test_loss_equals_trl(both, tmp_path, loss_type, options, theirs_options):
    """Ragged answers, old log-probs that differ so that clips bite on both sides, a reference that differs."""
    ours, theirs = both
    torch.manual_seed(0)
    tokens, lengths = torch.randint(2, 512, (P, G, R)), torch.randint(1, R + 1, (P, G))
    lengths[0, 0] = R
    prompts = torch.randint(2, 512, (P, T)).tolist()
    policy = CausalPolicy(ours, WordTokenizer(512), R)
    rollout = Rollout(prompt_batch(prompts, [0] * P), tokens, lengths, torch.zeros(P, G, R), advantages=torch.randn(P, G))
    with torch.no_grad():
        logps = completion_logps(policy, rollout)[0]
    rollout.logps = logps + 0.3 * torch.randn(P, G, R)
    if 'kl_beta' in options:
        rollout.ref_logps = logps + 0.3 * torch.randn(P, G, R)

    trainer = trl_trainer(theirs, prompts, G, R, str(tmp_path), **{'loss_type': loss_type, **theirs_options})
    theirs.train()
    theirs.zero_grad()
    ref_logps = None if rollout.ref_logps is None else rollout.ref_logps.flatten(0, 1)
    inputs = {'prompt_ids': torch.tensor(prompts).repeat_interleave(G, 0), 'completion_ids': tokens.flatten(0, 1),
              'prompt_mask': torch.ones(P * G, T, dtype=torch.long), 'ref_per_token_logps': ref_logps,
              'completion_mask': rollout.mask.flatten(0, 1).long(), 'advantages': rollout.advantages.flatten(),
              'num_items_in_batch': lengths.sum(), 'old_per_token_logps': rollout.logps.flatten(0, 1)}
    loss = trainer.compute_loss(theirs, inputs)
    loss.backward()
    cfg = Settings(**{'grad_clip': 0, 'loss_type': loss_type, 'kl_beta': 0.0, **options})
    stats = train_on_rollout(policy, rollout, torch.optim.SGD(ours.parameters(), lr=0.0), cfg)
    assert stats['loss'] == pytest.approx(loss.item(), abs=1e-5) and stats['clip_frac_high'] > 0
    grads = llama_gradient(theirs)
    error = sum((p.grad - grads[name]).square().sum() for name, p in ours.named_parameters()).sqrt()
    assert error < 1e-5 * sum(g.square().sum() for g in grads.values()).sqrt()


def test_minibatches_equal_steps_per_generation(tmp_path, monkeypatch):
    """
    Four steps on the completions of 8 prompts, 2 prompts a step, old log-probs those before the first: the weights after them are TRL's
    to 1e-5. TRL shuffles completions and not prompts, so it is given our order.
    """
    P, size = 8, 2
    ours, theirs = llamas(SIZES['tiny'])
    torch.manual_seed(1)
    prompts = torch.randint(2, 512, (P, T)).tolist()
    batch = prompt_batch(prompts, list(range(P))) | {'row': torch.arange(P)}
    cfg = Settings(grad_clip=0, kl_beta=0.0, minibatch_size=size)
    blank = Rollout(batch, torch.zeros(P, G, R, dtype=torch.long), torch.full((P, G), R), torch.zeros(P, G, R))
    rows = torch.cat([part.batch['row'] for part in minibatches(blank, cfg, 0)])
    order = (rows[:, None] * G + torch.arange(G)).flatten()

    def our_order(generated):
        return {name: value[order] if torch.is_tensor(value) and value.dim() else value for name, value in generated.items()}

    monkeypatch.setattr('trl.trainer.grpo_trainer.shuffle_sequence_dict', our_order)
    trainer = trl_trainer(theirs, prompts[:size], G, R, str(tmp_path), loss_type='grpo', steps_per_generation=P // size)
    their_optimizer = torch.optim.SGD(theirs.parameters(), lr=0.3)
    theirs.train()
    examples = [{'prompt': ' '.join(f't{i}' for i in ids)} for ids in prompts for _ in range(G)]
    parts = []
    for step in range(P // size):
        trainer._step = step
        parts.append(trainer._prepare_inputs(examples))
        assert parts[-1]['old_per_token_logps'] is not None
        their_optimizer.zero_grad()
        trainer.compute_loss(theirs, parts[-1]).backward()
        their_optimizer.step()

    def in_place(name, *shape):
        values = torch.cat([part[name] for part in parts])
        return torch.empty_like(values).index_copy(0, order, values).view(P, G, *shape)

    assert torch.equal(in_place('prompt_ids', T)[:, 0], batch['prompts'])
    policy = CausalPolicy(ours, WordTokenizer(512), R)
    rollout = Rollout(batch, in_place('completion_ids', R), torch.full((P, G), R), in_place('old_per_token_logps', R),
                      advantages=in_place('advantages'))
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    stats = train_on_rollout(policy, rollout, torch.optim.SGD(ours.parameters(), lr=0.3), cfg)
    theirs.save_pretrained(tmp_path / 'theirs')
    wanted = dict(GPT.from_pretrained(tmp_path / 'theirs').named_parameters())
    assert stats['clip_frac_low'] + stats['clip_frac_high'] > 0
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p, wanted[name], rtol=0, atol=1e-5)
    assert max((p - before[name]).abs().max() for name, p in ours.named_parameters()) > 0.01
