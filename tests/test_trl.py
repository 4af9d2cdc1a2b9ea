"""The same tensors through TRL's loss: value to 1e-5, gradient to 1e-5 of its norm. By default its KL is weighted with the ratio."""
import pytest
import torch

from grpo import Rollout, Settings, completion_logps, train_on_rollout
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
