"""
The same run, the same numbers: on 1, 2 and 4 processes, sharded or not, in micro-batches of any size, with and without gradient
checkpointing. Real processes, gloo on the CPU. What happens to the others when one process dies or hangs is in test_faults.py.
"""
import json
import os
import pathlib
import socket
import subprocess

import pytest
import torch

from warm import PYTHON

ROOT = pathlib.Path(__file__).parent.parent
ENV = os.environ | {'OMP_NUM_THREADS': '1'}

WORKER = '''
import sys
sys.path.insert(0, sys.argv[1])
import copy, itertools, types
import torch, torch.distributed as dist
from grpo import LOSS_TYPES, Rollout, Settings, gae, join, train_on_rollout
from model import GPT, GPTConfig
from policy import CausalPolicy
from runtime.lora import add_lora
from runtime.shard import shard_model, whole

sharded, ranks = sys.argv[3] == 'shard', sys.argv[3] != 'one'
if ranks:
    dist.init_process_group('gloo')
rank, world = (dist.get_rank(), dist.get_world_size()) if ranks else (0, 1)

def fresh(tied=True, value_head=False, r=0):
    torch.manual_seed(0)
    llama = dict(norm='rmsnorm', position='rope', mlp='swiglu', bias=False)
    kind = {} if tied else llama
    model = GPT(GPTConfig(vocab_size=23, block_size=32, n_layer=2, n_head=2, n_embd=16, tied=tied, **kind))
    if r:
        add_lora(model, r, 2 * r)
    if value_head:
        model.value_head = torch.nn.Linear(16, 1)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model

def policy_of(model):
    return CausalPolicy(model, types.SimpleNamespace(eos_ids=(0,), vocab_size=23, special_ids=[]), 6)

def rollout_of(policy, value_head):
    """4 prompts with 3 answers each; the answers to the first all got the same reward, and one answer is empty but for its end."""
    g = torch.Generator().manual_seed(1)
    tokens, lengths = torch.randint(1, 23, (4, 3, 6), generator=g), torch.tensor([[6, 2, 4], [1, 3, 6], [5, 5, 1], [1, 1, 1]])
    batch = {'prompts': torch.randint(1, 23, (4, 5), generator=g), 'prompt_lengths': torch.tensor([5, 2, 3, 4])}
    rollout = Rollout(batch=batch, tokens=tokens, lengths=lengths,
                      logps=-3 + torch.randn(4, 3, 6, generator=g) * 0.3, ref_logps=-3 + torch.randn(4, 3, 6, generator=g) * 0.3)
    rollout.advantages = torch.randn(4, 3, generator=g)
    rollout.advantages[0] = 0.0
    if value_head:
        rollout.values, rollout.advantages = torch.randn(4, 3, 6, generator=g), torch.randn(4, 3, 6, generator=g)
        rollout.returns = rollout.values + rollout.advantages
    return rollout

kinds = [(loss, {}, {}) for loss in LOSS_TYPES]
kinds += [('dapo', dict(kl_beta=0.3, entropy_coef=0.1), {}), ('grpo', {}, dict(value_head=True))]
kinds += [('dr_grpo', {}, dict(r=2)), ('grpo', dict(kl_beta=0.1), dict(tied=False)), ('grpo', dict(minibatch_size=4), {})]
results = {}
every = sys.argv[4] == 'every'
cuts = list(itertools.product((None, 1, 3), (False, True))) if every else [(None, False), (1, True), (3, False)]
for (n, (loss_type, options, made)), (micro, again) in itertools.product(enumerate(kinds), cuts):
    model = fresh(**made)
    model.gradient_checkpointing = again
    params = shard_model(model, torch.float32, 'cpu') if sharded else dict(model.named_parameters())
    params = {name: p for name, p in params.items() if p.requires_grad}
    policy = policy_of(model)
    rollout = rollout_of(policy, 'value_head' in made)
    if 'kl_beta' not in options:
        rollout.ref_logps = None
    if 'minibatch_size' in options:
        rollout = join([rollout, rollout])
        rollout.batch['seeds'] = torch.arange(8)
    if 'tied' in made:  # completions that ask: not all of a completion is the policy's
        rollout.own = (torch.arange(6) % 3 != 1).expand(4, 3, 6)
    P = len(rollout.tokens)
    mine = rollout.pick(slice(rank * P // world, (rank + 1) * P // world))
    optimizer, gradients = torch.optim.SGD(params.values(), lr=0.1), {}
    def keep_first(*_):
        if not gradients:
            gradients.update(whole({name: p.grad.clone() for name, p in params.items()}))
    optimizer.register_step_pre_hook(keep_first)
    settings = {'kl_beta': 0.0} | options
    cfg = Settings(num_epochs_per_rollout=2, micro_batch_size=micro, grad_clip=1.0, loss_type=loss_type, kl_estimator='k3', **settings)
    stats = train_on_rollout(policy, mine, optimizer, cfg)
    learned = whole({name: p.detach().clone() for name, p in params.items()})
    results[n, micro, again] = {'gradients': gradients, 'params': learned, 'stats': stats}
if rank == 0:
    torch.save(results, sys.argv[2])
if ranks:
    dist.barrier()
    dist.destroy_process_group()
'''


def torchrun(n):
    return PYTHON, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={n}'


@pytest.mark.parametrize('cuts', ['some', pytest.param('every', marks=pytest.mark.slow)])
def test_any_number_of_ranks_makes_the_same_step(tmp_path, cuts):
    """
    A fixed rollout: the gradient of the first of two epochs, the parameters after both and every metric are those of one process with one
    micro-batch, for all loss types, a KL with entropy, a value head, LoRA, a Llama that asks and minibatches, micro-batches of 1 and 3
    prompts, with checkpointing and without (all pairs of these when slow), 2 and 4 ranks, sharded (one rank too) and not. One group is
    dead, so that ranks differ in what counts.
    """
    script = tmp_path / 'worker.py'
    script.write_text(WORKER)
    ways = [((PYTHON,), 'one'), (torchrun(1), 'shard')] + [(torchrun(n), kind) for n in (2, 4) for kind in ('whole', 'shard')]
    results = []
    for i, (launcher, kind) in enumerate(ways):
        command = [*launcher, str(script), str(ROOT), str(tmp_path / f'{i}.pt'), kind, cuts]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(torch.load(tmp_path / f'{i}.pt'))
    worst = {'gradients': 0.0, 'params': 0.0, 'stats': 0.0}
    for result in results:
        assert len(result) == 11 * (6 if cuts == 'every' else 3)
        for (n, *_), found in result.items():
            wanted = results[0][n, None, False]
            assert wanted['gradients'].keys() == found['gradients'].keys() and any(
                g.abs().max() > 1e-3 for g in wanted['gradients'].values()
            )
            for what in ('gradients', 'params'):
                scale = max(t.abs().max() for t in wanted[what].values())
                pairs = zip(found[what].values(), wanted[what].values(), strict=True)
                worst[what] = max(worst[what], *((a - b).abs().max().item() / scale for a, b in pairs))
            assert found['stats'].keys() == wanted['stats'].keys()
            worst['stats'] = max(worst['stats'], *(abs(found['stats'][k] - v) / max(1.0, abs(v)) for k, v in wanted['stats'].items()))
    assert worst['gradients'] < 1e-6 and worst['params'] < 1e-6 and worst['stats'] < 1e-5, worst


SMALL = [
    '--block_size=16',
    '--n_layer=2',
    '--n_head=2',
    '--n_embd=16',
    '--pretrain_iters=40',
    '--batch_size=4',
    '--group_size=4',
    '--temperature=1',
    '--eval_prompts_n=8',
    '--eval_show=0',
    '--log_interval=1',
    '--eval_interval=2',
    '--max_iters=3',
    '--micro_batch_size=1',
    '--reference_mode=ema',
    '--kl_estimator=exact',
    '--kl_beta=0.1',
    '--device=cpu',
    '--precision=fp32',
]
JOBS = {
    'completion': [
        '--task=completion',
        '--train_prompts=sums.jsonl',
        '--eval_prompts=held_out.jsonl',
        '--generator_checkpoint=start.pt',
        '--max_new_tokens=4',
        '--eval_samples=1',
        '--advantage=gae',
        'ones.py',
    ],
    'fill_in': [
        '--dataset=text.txt',
        '--generator_checkpoint=start.pt',
        '--judge_checkpoint=judge.pt',
        '--gold_checkpoint=gold.pt',
        '--judge_iters=10',
        '--unmask_steps=2',
        '--top_p=0.9',
    ],
}


def prepare(folder):
    (folder / 'text.txt').write_text('to be, or not to be: that is the question.\n' * 100)
    sums = [{'prompt': f'{a}+{b}=', 'answer': str(a + b)} for a in range(8) for b in range(5)]
    for name, records in (('sums', sums), ('held_out', sums[::5])):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    (folder / 'ones.py').write_text('def ones(text, **_):\n    return text.count("1") / 4\n\nrewards = [ones]\n')


def metrics_of(folder):
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith('time_') and k != 'tokens_per_s'}
        for line in open(folder / 'metrics.jsonl')
    ]


def test_two_nodes(tmp_path):
    """
    Two torchruns that meet, as on two machines: the metrics of one process, groups that were sampled again among them, and what it says of
    going on starts two again.
    """
    prepare(tmp_path)
    command = [str(ROOT / 'train_grpo.py'), *SMALL, *JOBS['completion'], '--advantage=grpo', '--dynamic_sampling=1', '--overlong_penalty=2']
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        meeting = f'--rdzv_endpoint=127.0.0.1:{s.getsockname()[1]}'
    one = subprocess.run([PYTHON, *command, '--out_dir=one'], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert one.returncode == 0, one.stderr[-3000:]
    nodes = [
        subprocess.Popen(
            [
                PYTHON,
                '-m',
                'torch.distributed.run',
                '--nnodes=2',
                '--nproc_per_node=1',
                '--rdzv_backend=c10d',
                meeting,
                *command,
                '--out_dir=two',
            ],
            cwd=tmp_path,
            env=ENV,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    printed = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    assert any('go on: torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=' in said for said, _ in printed), printed
    for ours, theirs in zip(metrics_of(tmp_path / 'two'), metrics_of(tmp_path / 'one'), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert any(line['resampled_groups'] > 0 for line in metrics_of(tmp_path / 'one')[:-1])


@pytest.mark.parametrize('task', JOBS)
def test_a_sharded_run_is_the_same_run(tmp_path, task):
    """
    Completions or fills, rewards, metrics and weights of a whole run, whose reference moves and, for answers, whose value head learns: one
    process, two, two sharded, and two that collect block by block to sample.
    """
    prepare(tmp_path)
    logs, weights = [], []
    for name, launcher, more in (
        ('one', (PYTHON,), []),
        ('two', torchrun(2), []),
        ('sharded', torchrun(2), ['--shard=True']),
        ('by-block', torchrun(2), ['--shard=True', '--gather_to_sample=False']),
    ):
        done = subprocess.run(
            [*launcher, str(ROOT / 'train_grpo.py'), *SMALL, *JOBS[task], f'--out_dir={name}', *more],
            cwd=tmp_path,
            env=ENV,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        logs.append(metrics_of(tmp_path / name))
        saved = torch.load(tmp_path / name / 'ckpt.pt', weights_only=True)
        weights.append({**saved['model'], **{f'reference {k}': v for k, v in saved['reference'].items()}})
    assert any(line['grad_norm'] > 0.01 for line in logs[0][:-1])
    for log, weight in zip(logs[1:], weights[1:], strict=False):
        for ours, theirs in zip(log, logs[0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        assert weight.keys() == weights[0].keys() and all(torch.allclose(weight[k], v, atol=1e-5) for k, v in weights[0].items())
