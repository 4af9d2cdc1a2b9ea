"""The scripts as a user runs them: real processes, files and signals, at toy size."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TEXT = 'the cat sat on the mat and the dog sat on the log; a man saw the cat and the dog run to the hill. ' * 60
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'WANDB_SILENT': 'true'}
TOY = ['--dataset=toy.txt', '--block_size=20', '--n_layer=1', '--n_head=2', '--n_embd=16', '--pretrain_iters=30', '--judge_iters=10', '--batch_size=4', '--group_size=4',
       '--eval_prompts_n=16', '--eval_show=1', '--log_interval=1', '--eval_interval=4', '--save_interval=3', '--max_iters=8', '--device=cpu', '--precision=fp32']


def run(folder, *arguments, script='train_grpo.py', launcher=(sys.executable,)):
    return subprocess.run([*launcher, str(ROOT / script), *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)


def refused(done, *words):
    """It stopped with one line on stderr that holds these words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and len(lines) == 1 and lines[0].startswith('error: '), done.stderr[-2000:]
    assert all(word in lines[0] for word in words), lines[0]


def metrics(folder, out_dir='out-grpo'):
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in open(folder / out_dir / 'metrics.jsonl')]
    return [{k: v for k, v in line.items() if not k.startswith('time_') and k != 'tokens_per_s'} for line in lines]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder in which one run has gone from nothing to the end."""
    folder = tmp_path_factory.mktemp('made')
    (folder / 'toy.txt').write_text(TEXT)
    done = run(folder, *TOY)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def copy(made, tmp_path):
    """Its text and its pretrained models, nothing of its run."""
    shutil.copy(made[0] / 'toy.txt', tmp_path)
    shutil.copytree(made[0] / 'out-toy', tmp_path / 'out-toy')
    return tmp_path


def test_first_run(made):
    folder, printed = made
    assert 'there is no generator at out-toy/generator.pt' in printed and printed.count('there is no judge at') == 2
    assert 'held-out AUC' in printed and 'generator 30/30' in printed and re.search(r'\n +[ x^]*[x^]', printed)
    lines = metrics(folder)
    assert [line['iter'] for line in lines] == list(range(9))
    wanted = {'loss', 'pg_loss', 'kl_penalty', 'mean_reward', 'std_reward', 'mean_advantage', 'mean_kl', 'mean_log_prob', 'entropy', 'clip_frac_low', 'clip_frac_high',
              'frac_reward_zero_std', 'mean_length', 'frac_truncated', 'sampler_gap_mean', 'sampler_gap_max', 'grad_norm', 'lr', 'reward/judge'}
    assert all(wanted <= line.keys() for line in lines[:-1])
    assert [line['iter'] for line in lines if 'eval/gold_reward' in line] == [0, 4, 8]
    assert {'eval/judge_reward', 'eval/exact_match_greedy', 'eval/exact_match_sampled'} <= lines[-1].keys()
    assert lines[0]['mean_kl'] == pytest.approx(0, abs=1e-6) and all(line['sampler_gap_max'] < 1e-5 for line in lines[:-1])
    samples = [json.loads(line) for line in open(folder / 'out-grpo' / 'samples.jsonl')]
    assert len(samples) == 8 * 4 and samples[0].keys() == {'iter', 'prompt', 'completion', 'reward/judge', 'advantage'}
    assert json.load(open(folder / 'out-grpo' / 'config.json'))['group_size'] == 4
    assert {'ckpt.pt', 'ckpt_best.pt'} <= set(os.listdir(folder / 'out-grpo'))


def test_later_run_reuses_the_models_and_keeps_the_earlier_run(copy):
    first = run(copy, *TOY, '--keep_checkpoints=2', '--wandb_log=True', '--wandb_mode=offline')
    assert first.returncode == 0 and 'training one' not in first.stdout, first.stderr
    assert sorted(f for f in os.listdir(copy / 'out-grpo') if f[5:11].isdigit()) == ['ckpt_000006.pt', 'ckpt_000008.pt']
    assert any(name.startswith('offline-run') for name in os.listdir(copy / 'out-grpo' / 'wandb'))
    second = run(copy, *TOY)
    assert 'moved to out-grpo.1' in second.stdout
    assert metrics(copy) == metrics(copy, 'out-grpo.1')  # same seed, same numbers


def test_kill_and_resume_is_bit_identical(made, copy):
    """kill -9 in the middle, go on from the last checkpoint: metrics.jsonl is that of the run that was left alone."""
    process = subprocess.Popen([sys.executable, '-u', str(ROOT / 'train_grpo.py'), *TOY], cwd=copy, env=ENV, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('iter 5: reward'):
            process.send_signal(signal.SIGKILL)
            break
    process.communicate()
    with open(copy / 'out-grpo' / 'metrics.jsonl', 'a') as f:
        f.write('{"iter": 6, "lo')  # a line torn by the kill
    done = run(copy, *TOY, '--init_from=resume')
    assert done.returncode == 0, done.stderr
    assert metrics(copy) == metrics(made[0]) and 'resuming with' not in done.stdout
    a, b = (torch.load(folder / 'out-grpo' / 'ckpt.pt', weights_only=True) for folder in (copy, made[0]))
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(made, copy, number):
    process = subprocess.Popen([sys.executable, '-u', str(ROOT / 'train_grpo.py'), *TOY], cwd=copy, env=ENV, stdout=subprocess.PIPE, text=True)
    printed = ''
    for line in process.stdout:
        printed += line
        if line.startswith('iter 1: reward'):
            process.send_signal(number)
    assert process.wait() == 0 and '--init_from=resume' in printed and 'stopped before iteration' in printed
    assert run(copy, *TOY, '--init_from=resume').returncode == 0
    assert metrics(copy) == metrics(made[0])


WORKER = '''
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + '/tests')
from grpo import compute_advantages, train_on_rollout
from model import configure_optimizers
from test_fill_in import tiny_batch, tiny_policy
if len(sys.argv) > 3:
    dist.init_process_group('gloo')
rank, world = (dist.get_rank(), dist.get_world_size()) if len(sys.argv) > 3 else (0, 1)
results = {}
for loss_type in ('grpo', 'dapo', 'dr_grpo', 'gspo', 'cispo', 'reinforce'):
    policy = tiny_policy()
    optimizer = configure_optimizers(policy.model, 0.1, 1e-2, (0.9, 0.99))
    for step in range(3):
        rollout = policy.sample(tiny_batch(lengths=[12, 5, 9, 3]), 6)
        rollout.advantages = compute_advantages(torch.randn(4, 6, generator=torch.Generator().manual_seed(step)))
        rollout.ref_log_probs = rollout.logps - 0.2
        share = rollout.rows(4 * rank // world, 4 * (rank + 1) // world)
        train_on_rollout(policy, share, optimizer, loss_type=loss_type, kl_beta=0.1, kl_estimator='k2', grad_clip=0, max_new_tokens=12)
        if step == 0:
            results[loss_type + ' gradient'] = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
    results[loss_type + ' parameters'] = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
torch.save(results, f'{sys.argv[2]}.{rank}')
if dist.is_initialized():
    dist.barrier()
    dist.destroy_process_group()
    import os
    os._exit(0)  # as train_grpo.py does, and for its reason
'''


def test_two_processes_are_one(tmp_path):
    """torchrun with 2 processes: the gradient of one process on the same batch (1e-6), parameters equal after 3 steps."""
    (tmp_path / 'worker.py').write_text(WORKER)
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
    for launcher, name, more in (((sys.executable,), 'one', []), (torchrun, 'two', ['ddp'])):
        done = run(tmp_path, str(ROOT), name, *more, script=tmp_path / 'worker.py', launcher=launcher)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name) for name in ('one.0', 'two.0', 'two.1'))
    for key in one:
        assert torch.equal(first[key], second[key]), key
        if 'gradient' in key:
            torch.testing.assert_close(first[key], one[key], atol=1e-6, rtol=0, msg=key)
            assert one[key].abs().max() > 1e-3
        else:
            torch.testing.assert_close(first[key], one[key], atol=1e-4, rtol=0, msg=key)  # Adam divides by the gradient's own size


def test_torchrun_trains_and_resumes(copy):
    torchrun = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
    done = run(copy, *TOY, launcher=torchrun)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = metrics(copy)
    assert run(copy, *TOY, '--out_dir=out-b', '--max_iters=4', '--lr_schedule=constant', launcher=torchrun).returncode == 0
    assert run(copy, *TOY, '--out_dir=out-c', '--lr_schedule=constant', launcher=torchrun).returncode == 0
    done = run(copy, *TOY, '--out_dir=out-b', '--lr_schedule=constant', '--init_from=resume', launcher=torchrun)
    assert done.returncode == 0 and 'resuming with max_iters = 8 (it was 4)' in done.stdout
    assert metrics(copy, 'out-b') == metrics(copy, 'out-c') and len(whole) == 9
    assert len(torch.load(copy / 'out-b' / 'ckpt.pt', weights_only=True)['noise_rngs']) == 2


@pytest.mark.parametrize('more', [['--mask_kinds=("sticky","span")', '--top_p=0.9', '--unmask_steps=2', '--num_epochs_per_rollout=2', '--loss_type=gspo', '--micro_batch_size=3', '--lr_schedule=linear'],
                                  ['--loss_type=dapo', '--advantage=batch', '--kl_estimator=k2', '--entropy_coef=0.01', '--dual_clip=3'],
                                  ['--loss_type=reinforce', '--advantage=rloo', '--kl_beta=0', '--precision=bf16'], ['--loss_type=cispo', '--kl_estimator=k3', '--grad_clip=0'],
                                  ['--loss_type=dr_grpo', '--advantage=dr_grpo', '--kl_estimator=k1']])
def test_options(copy, more):
    done = run(copy, *TOY, '--max_iters=3', *more)
    assert done.returncode == 0, done.stderr
    assert ('warning: k1' in done.stdout) == ('--kl_estimator=k1' in more)


def test_bad_settings_stop_early(copy):
    for argument, words in (('--group_size=1', ['group_size is 1', 'at least 2']), ('--mask_ratio=(0,0)', ['mask_ratio is (0, 0)', 'nothing to fill in']),
                            ('--loss_type=ppo', ["loss_type is 'ppo'", 'dapo']), ('--dataset=nowhere.txt', ["'nowhere.txt'", 'stdlib_char']), ('--kl_bata=1', ["'kl_beta'"]),
                            ('--generator_checkpoint=out-toy/judge.pt', ['out-toy/judge.pt', 'holds a judge checkpoint', 'generator']),
                            ('--judge_checkpoint=out-toy/generator.pt', ['out-toy/generator.pt', 'holds a generator checkpoint', 'judge']),
                            ('--block_size=30', ['judge', 'at most 20', 'block_size is 30']), ('--init_from=resume', ['out-grpo/ckpt.pt', 'resume']),
                            ('--mask_kinds=("line",)', ["'line'", 'random, sticky, span']), ('--unmask_steps=0', ['unmask_steps is 0']), ('--top_p=0', ['top_p'])):
        refused(run(copy, *TOY, argument), *words)
    assert not (copy / 'out-grpo').exists()


def test_bad_files_stop_early(copy):
    (copy / 'empty.txt').write_text('')
    refused(run(copy, *TOY, '--dataset=empty.txt'), 'empty.txt is empty')
    (copy / 'short.txt').write_text('too short')
    refused(run(copy, *TOY, '--dataset=short.txt'), 'fewer than one text of block_size')
    (copy / 'other.txt').write_text('0123456789' * 100)
    refused(run(copy, *TOY, '--dataset=other.txt', '--generator_checkpoint=out-toy/generator.pt'), 'out-toy/generator.pt', 'another vocabulary')
    whole = (copy / 'out-toy' / 'judge.pt').read_bytes()
    (copy / 'out-toy' / 'judge.pt').write_bytes(whole[:len(whole) // 2])
    refused(run(copy, *TOY), 'out-toy/judge.pt', 'torn')


def test_nan_stops_and_nothing_saved_is_lost(copy):
    done = run(copy, *TOY, '--learning_rate=1e30', '--min_lr=1e30', '--warmup_iters=0', '--save_interval=1')
    refused(done, 'NaN')
    saved = torch.load(copy / 'out-grpo' / 'ckpt_best.pt', weights_only=True)
    assert all(torch.isfinite(v).all() for v in saved['model'].values())


def test_sample(made):
    folder, _ = made
    done = run(folder, '--text=the c_t s_t', '--num_samples=4', script='sample.py')
    assert done.returncode == 0, done.stderr
    rows = [re.match(r' *(-[\d.]+) +(0\.\d+|1\.000)  (the c.t s.t)$', line) for line in done.stdout.splitlines()[3:]]
    assert 1 <= len(rows) <= 4 and all(rows), done.stdout
    assert [float(r[1]) for r in rows] == sorted((float(r[1]) for r in rows), reverse=True)
    assert run(folder, '--text=the cat sat', '--mask_ratio=0.4', '--checkpoint=out-toy/generator.pt', script='sample.py').returncode == 0
    for arguments, words in ((['--text=the c_t!!'], ["'!'", 'position 7']), (['--text=the cat'], ['no slot']), ([], ['--text=']), (['--text=' + 'a_' * 20], ['40 characters', 'reads 20']),
                             (['--text=a_', '--checkpoint=nowhere.pt'], ['nowhere.pt']), (['--text=a_', '--judge_checkpoint=out-toy/generator.pt'], ['generator', 'judge'])):
        refused(run(folder, *arguments, script='sample.py'), *words)


def test_pretrain_script(copy):
    small = ['--dataset=toy.txt', '--block_size=20', '--n_layer=1', '--n_head=2', '--n_embd=16', '--max_iters=10']
    assert run(copy, *small, '--checkpoint=g.pt', script='pretrain.py').returncode == 0
    done = run(copy, *small, '--stage=judge', '--generator_checkpoint=g.pt', '--checkpoint=j.pt', script='pretrain.py')
    assert done.returncode == 0 and 'auc' in done.stdout, done.stderr
    refused(run(copy, *small, '--stage=jugde', script='pretrain.py'), 'jugde')


def test_help():
    done = run(ROOT, '--help')
    assert done.returncode == 0 and '--kl_beta=0.1' in done.stdout and 'the leash' in done.stdout
