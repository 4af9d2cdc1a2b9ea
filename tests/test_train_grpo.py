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

from model import GPT
from runtime.checkpoint import tokenizer_of
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
TEXT = 'the cat sat on the mat and the dog sat on the log; a man saw the cat and the dog run to the hill. ' * 60
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'WANDB_SILENT': 'true'}
SMALL = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--batch_size=4', '--group_size=4', '--eval_show=1', '--log_interval=1',
         '--eval_interval=4', '--save_interval=3', '--device=cpu', '--precision=fp32']
TOY = [*SMALL, '--dataset=toy.txt', '--block_size=20', '--pretrain_iters=30', '--judge_iters=10', '--eval_prompts_n=16', '--max_iters=8']
WAITS = str(ROOT / 'tests' / 'waits.py')
TORCHRUN = (PYTHON, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')


SAMPLE = {'iter', 'prompt', 'answer', 'completion', 'advantage', 'tokens', 'logps', 'logp_changes'}


def run(folder, *arguments, script='train_grpo.py', launcher=(PYTHON,)):
    return subprocess.run([*launcher, str(ROOT / script), *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)


def until(folder, start, number, *arguments, launcher=(PYTHON, '-u')):
    """A run that waits for a signal once it has printed a line that starts so, and gets it: its exit status and what it printed."""
    command = [*launcher, str(ROOT / 'train_grpo.py'), WAITS, *arguments]
    process = subprocess.Popen(command, cwd=folder, env=ENV | {'WAIT_AT': start}, stdout=subprocess.PIPE, text=True)
    printed = ''
    for line in process.stdout:
        printed += line
        if line.startswith(start):
            process.send_signal(number)
    return process.wait(), printed


def refused(done, *words):
    """It stopped with one line on stderr that holds these words."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode != 0 and len(lines) == 1 and lines[0].startswith('error: '), done.stderr[-2000:]
    assert all(word in lines[0] for word in words), lines[0]


def metrics(folder, out_dir='out-grpo'):
    """metrics.jsonl without its times."""
    lines = [json.loads(line) for line in open(folder / out_dir / 'metrics.jsonl')]
    for line in lines:
        for name in [*line]:
            if name.startswith(('time_', 'tokens_per_s')):
                del line[name]
    return lines


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
    shutil.copytree(made[0] / 'out-toy.txt', tmp_path / 'out-toy.txt')
    return tmp_path


def test_first_run(made):
    folder, printed = made
    assert 'making out-toy.txt/generator.pt: a generator from toy.txt' in printed and printed.count(': a judge from') == 2
    assert 'held-out AUC' in printed and 'generator 30/30' in printed and re.search(r'\n +[ x^]*[x^]', printed)
    lines = metrics(folder)
    assert [line['iter'] for line in lines] == list(range(9))
    wanted = {'loss', 'pg_loss', 'kl_penalty', 'mean_reward', 'std_reward', 'mean_advantage', 'mean_kl', 'mean_log_prob', 'entropy',
              'clip_frac_low', 'clip_frac_high', 'frac_reward_zero_std', 'mean_length', 'frac_truncated', 'sampler_gap_mean',
              'sampler_gap_max', 'grad_norm', 'lr', 'reward/judge'}
    assert all(wanted <= line.keys() for line in lines[:-1])
    assert [line['iter'] for line in lines if 'eval/gold_reward' in line] == [0, 4, 8]
    assert {'eval/judge_reward', 'eval/exact_match_greedy', 'eval/exact_match_sampled'} <= lines[-1].keys()
    assert lines[0]['mean_kl'] == pytest.approx(0, abs=1e-6) and all(line['sampler_gap_max'] < 1e-5 for line in lines[:-1])
    samples = [json.loads(line) for line in open(folder / 'out-grpo' / 'samples.jsonl')]
    assert len(samples) == 8 * 4 and samples[0].keys() == SAMPLE | {'reward/judge', 'slots'}
    for sample in samples:
        assert ''.join(sample['tokens']) == ''.join(sample['completion'][i] for i in sample['slots'])
        assert len(sample['logps']) == len(sample['logp_changes']) == len(sample['tokens'])
    assert sum(s['advantage'] * sum(s['logp_changes']) for s in samples) > 0  # what was good became likelier
    assert json.load(open(folder / 'out-grpo' / 'config.json'))['group_size'] == 4
    assert {'ckpt.pt', 'ckpt_best.pt', 'report.html'} <= set(os.listdir(folder / 'out-grpo'))


def test_later_run_reuses_the_models_and_keeps_the_earlier_run(copy):
    first = run(copy, *TOY, '--keep_checkpoints=2', '--wandb_log=True', '--wandb_mode=offline')
    assert first.returncode == 0 and 'making' not in first.stdout, first.stderr
    older = sorted(name for name in os.listdir(copy / 'out-grpo') if name[5:11].isdigit())
    assert older == ['ckpt_000003.pt', 'ckpt_000006.pt']  # ckpt.pt is of iteration 8
    assert any(name.startswith('offline-run') for name in os.listdir(copy / 'out-grpo' / 'wandb'))
    second = run(copy, *TOY)
    assert 'moved to out-grpo.1' in second.stdout
    assert metrics(copy) == metrics(copy, 'out-grpo.1')  # same seed, same numbers


def test_a_start_imports_what_it_needs(copy):
    """Torch's compiler takes a second to import, Triton a quarter: a run on a CPU needs neither."""
    env = {key: value for key, value in ENV.items() if key != 'TRITON_INTERPRET'}
    command = [sys.executable, '-X', 'importtime', str(ROOT / 'train_grpo.py'), *TOY, '--max_iters=1']
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=240)
    imported = {line.rpartition('|')[2].strip() for line in done.stderr.splitlines()}
    unwanted = {'torch._dynamo'} if torch.cuda.is_available() else {'torch._dynamo', 'triton'}
    assert done.returncode == 0 and 'torch.optim.adamw' in imported and not imported & unwanted, imported & unwanted


def test_kill_and_resume_is_bit_identical(made, copy):
    """kill -9 in the middle, go on from the last checkpoint: metrics.jsonl is that of the run that was left alone."""
    until(copy, 'iter 5: reward', signal.SIGKILL, *TOY, launcher=(sys.executable, '-u'))
    with open(copy / 'out-grpo' / 'metrics.jsonl', 'a') as f:
        f.write('{"iter": 6, "lo')  # a line torn by the kill
    os.remove(copy / 'out-grpo' / 'report.html')
    (copy / 'out-grpo' / 'report.html').mkdir()  # a report that cannot be written is no reason to stop
    done = run(copy, *TOY, '--init_from=resume', launcher=(sys.executable,))  # a hash seed of its own
    told = "report.html could not be written: OSError: cannot write 'out-grpo/report.html': Is a directory"
    assert done.returncode == 0 and told in done.stdout, done.stderr
    assert metrics(copy) == metrics(made[0]) and 'resuming with' not in done.stdout
    a, b = (torch.load(folder / 'out-grpo' / 'ckpt.pt', weights_only=True) for folder in (copy, made[0]))
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(made, copy, number):
    status, printed = until(copy, 'iter 1: reward', number, *TOY)
    assert status == 0 and '--init_from=resume' in printed and 'stopped in iteration' in printed
    assert run(copy, *TOY, '--init_from=resume').returncode == 0
    assert metrics(copy) == metrics(made[0])


WORKER = '''
import sys, torch, torch.distributed as dist
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + '/tests')
from grpo import compute_advantages, train_on_rollout
from plain import plain
from runtime.masters import configure_optimizers
from test_fill_in import tiny_batch, tiny_policy
if len(sys.argv) > 3:
    dist.init_process_group('gloo')
rank, world = (dist.get_rank(), dist.get_world_size()) if len(sys.argv) > 3 else (0, 1)
results = {}
for loss_type in ('grpo', 'dapo', 'dr_grpo', 'gspo', 'cispo', 'reinforce'):
    policy = tiny_policy(max_new_tokens=12)
    optimizer = configure_optimizers(policy.model.parameters(), 0.1, 1e-2, (0.9, 0.99))
    cfg = plain(loss_type=loss_type, kl_beta=0.1, kl_estimator='k2', grad_clip=0)
    for step in range(3):
        rollout = policy.sample(tiny_batch(lengths=[12, 5, 9, 3]), 6)
        rollout.advantages = compute_advantages(torch.randn(4, 6, generator=torch.Generator().manual_seed(step)))
        rollout.ref_logps = rollout.logps - 0.2
        share = rollout.pick(slice(4 * rank // world, 4 * (rank + 1) // world))
        train_on_rollout(policy, share, optimizer, cfg)
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
    for launcher, name, more in (((PYTHON,), 'one', []), (TORCHRUN, 'two', ['ddp'])):
        done = run(tmp_path, str(ROOT), name, *more, script=tmp_path / 'worker.py', launcher=launcher)
        assert done.returncode == 0, done.stderr[-2000:]
    one, first, second = (torch.load(tmp_path / name) for name in ('one.0', 'two.0', 'two.1'))
    for key in one:
        assert torch.equal(first[key], second[key]), key
        if 'gradient' in key:
            torch.testing.assert_close(first[key], one[key], atol=1e-6, rtol=0, msg=key)
            assert one[key].abs().max() > 1e-3
        else:
            # Adam divides by the gradient's own size
            torch.testing.assert_close(first[key], one[key], atol=1e-4, rtol=0, msg=key)


def test_torchrun_trains_and_resumes(copy):
    done = run(copy, *TOY, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-2000:]
    whole, steady = metrics(copy), [*TOY, '--lr_schedule=constant']
    assert run(copy, *steady, '--out_dir=out-b', '--max_iters=4', launcher=TORCHRUN).returncode == 0
    assert run(copy, *steady, '--out_dir=out-c', launcher=TORCHRUN).returncode == 0
    done = run(copy, *steady, '--out_dir=out-b', '--init_from=resume', launcher=TORCHRUN)
    assert done.returncode == 0 and 'resuming with max_iters = 8 (it was 4)' in done.stdout
    assert metrics(copy, 'out-b') == metrics(copy, 'out-c') and len(whole) == 9


@pytest.mark.parametrize('more', [
    ['--mask_kinds=("sticky","span")', '--top_p=0.9', '--unmask_steps=2', '--num_epochs_per_rollout=2', '--loss_type=gspo',
     '--minibatch_size=2', '--micro_batch_size=3', '--lr_schedule=linear'],
    ['--loss_type=dapo', '--advantage=batch', '--kl_estimator=k2', '--entropy_coef=0.01', '--dual_clip=3'],
    ['--loss_type=reinforce', '--advantage=rloo', '--kl_beta=0', '--precision=bf16'],
    ['--loss_type=cispo', '--kl_estimator=k3', '--grad_clip=0', '--precision=fp16'],
    ['--loss_type=dr_grpo', '--advantage=dr_grpo', '--kl_estimator=k1'],
    ['--divergence=neural_mirror', '--mirror_normalize=True', '--mirror_coefficient=0.1', '--kl_estimator=k2'],
    ['--divergence=prob_l2kl', '--mirror_weighting=is', '--kl_estimator=k3']])
def test_options(copy, more):
    done = run(copy, *TOY, '--max_iters=3', '--remake=never', *more)  # the generator of other masks will do
    assert done.returncode == 0, done.stderr
    assert ('warning: k1' in done.stdout) == ('--kl_estimator=k1' in more)


def test_bad_settings_stop_early(copy):
    for argument, words in (
            ('--minibatch_size=3', ['batch_size, 4, must be a multiple of minibatch_size, 3']),
            ('--group_size=1', ['group_size is 1', 'at least 2']), ('--mask_ratio=(0,0)', ['mask_ratio is (0, 0)', '0 < low']),
            ("--mask_ratio=('a','b')", ["mask_ratio is ('a', 'b')"]), ('--mask_ratio=()', ['mask_ratio is ()']),
            ('--loss_type=ppo', ["loss_type is 'ppo'", 'dapo']), ('--dataset=nowhere.txt', ["'nowhere.txt'", 'stdlib_char']),
            ('--dataset=sums', ["'sums' is no text file", '--task=completion', 'stdlib_char']), ('--kl_bata=1', ["'kl_beta'"]),
            ('--generator_checkpoint=out-toy.txt/judge.pt', ['out-toy.txt/judge.pt', 'is a judge', 'it must be a generator']),
            ('--judge_checkpoint=out-toy.txt/generator.pt', ['out-toy.txt/generator.pt', 'is a generator', 'it must be a judge']),
            ('--block_size=30', ['generator.pt', 'block_size: it has 20, this run wants 30', '--remake=True']),
            ('--block_size=30 --remake=never', ['judge', 'at most 20', 'block_size is 30']),
            ('--init_from=resume', ['out-grpo/ckpt.pt', 'resume']),
            ('--mask_kinds=("line",)', ["'line'", 'random, sticky, span']), ('--unmask_steps=0', ['unmask_steps is 0']),
            ('--top_p=0', ['top_p is 0', 'above 0'])):
        refused(run(copy, *TOY, *argument.split()), *words)
    assert not (copy / 'out-grpo').exists()


def test_bad_files_stop_early(copy):
    (copy / 'empty.txt').write_text('')
    refused(run(copy, *TOY, '--dataset=empty.txt'), 'empty.txt is empty')
    (copy / 'short.txt').write_text('too short')
    refused(run(copy, *TOY, '--dataset=short.txt'), 'fewer than one text of block_size')
    (copy / 'other.txt').write_text('0123456789' * 100)
    generator = 'out-toy.txt/generator.pt'
    done = run(copy, *TOY, '--dataset=other.txt', f'--generator_checkpoint={generator}', '--remake=never')
    refused(done, generator, 'another vocabulary')
    whole = (copy / 'out-toy.txt' / 'judge.pt').read_bytes()
    (copy / 'out-toy.txt' / 'judge.pt').write_bytes(whole[:len(whole) // 2])
    refused(run(copy, *TOY), 'out-toy.txt/judge.pt', 'torn')


def test_nan_stops_and_nothing_saved_is_lost(copy):
    done = run(copy, *TOY, '--learning_rate=1e15', '--min_lr=1e15', '--warmup_iters=0', '--save_interval=1')
    refused(done, 'NaN')
    saved = torch.load(copy / 'out-grpo' / 'ckpt_best.pt', weights_only=True)
    assert all(torch.isfinite(v).all() for v in saved['model'].values())


def test_sample(made):
    folder, _ = made
    done = run(folder, '--text=the c□t s□t', '--num_samples=4', script='sample.py')
    assert done.returncode == 0, done.stderr
    rows = [re.match(r' *(0\.\d+|1\.000) +(-[\d.]+) +\d+  (the c.t s.t)( |$)', line) for line in done.stderr.splitlines()[2:]]
    assert 1 <= len(rows) <= 5 and all(rows), done.stderr
    scores = [float(row[1]) for row in rows]
    assert scores == sorted(scores, reverse=True) and done.stdout == rows[0][3] + '\n'
    generator = '--checkpoint=out-toy.txt/generator.pt'
    assert run(folder, '--text=the cat sat', '--mask_ratio=0.4', generator, script='sample.py').returncode == 0
    for arguments, words in ((['--text=the c□t!!'], ["'!'", 'position 7']), (['--text=the cat'], ['no slot']), ([], ['--text=']),
                             (['--text=' + 'a□' * 20], ['40 characters', 'reads 20']),
                             (['--text=a□', '--checkpoint=nowhere.pt'], ['nowhere.pt']),
                             (['--text=a□', '--judge_checkpoint=out-toy.txt/generator.pt'], ['generator', 'judge'])):
        refused(run(folder, *arguments, script='sample.py'), *words)


def test_no_iterations_make_the_starts(copy):
    """With --max_iters=0 a run trains what it would start from, looks at it, and ends; what is already there is left as it is."""
    done = run(copy, *TOY, '--max_iters=0', '--generator_checkpoint=g.pt', '--judge_checkpoint=j.pt')
    assert done.returncode == 0 and re.search(r'saved j.pt: auc [\d.]+, r2 ', done.stdout), done.stderr
    assert 'held-out judge reward' in done.stdout and [line['iter'] for line in metrics(copy)] == [0]
    assert done.stdout.count('saved') == 2 and 'making out-toy.txt/judge_gold.pt' not in done.stdout


def test_the_start_of_completion(sums):
    """A supervised start alone; what comes out, and an export of it, are what a run starts from."""
    done = run(sums, *SUMS, '--generator_checkpoint=a.pt', '--max_iters=0')
    assert done.returncode == 0 and re.search(r'saved a.pt: loss [\d.]+, accuracy [\d.]+', done.stdout), done.stderr
    done = run(sums, *SUMS, '--generator_checkpoint=out-grpo/export', '--out_dir=on', '--max_iters=1')
    assert done.returncode == 0 and [line['iter'] for line in metrics(sums, 'on')] == [0, 1], done.stderr
    refused(run(sums, *SUMS, '--generator_checkpoint=b.pt', '--block_size=6'), '6', 'max_new_tokens')


def test_a_supervised_start_ends_once_it_is_good_enough(sums):
    done = run(sums, *SUMS, '--generator_checkpoint=soon.pt', '--pretrain_until=0.0', '--max_iters=1')
    assert done.returncode == 0 and 'model 20/40: as good as was asked' in done.stdout, done.stderr
    refused(run(sums, *SUMS, '--pretrain_until=95'), 'pretrain_until')


def test_help():
    done = run(ROOT, '--help')
    assert done.returncode == 0 and '--kl_beta=0.1' in done.stdout and 'grpo: the leash to the reference' in done.stdout


# --- completion

SUMS = [*SMALL, '--task=completion', '--train_prompts=sums.jsonl', '--eval_prompts=held_out.jsonl', '--rewards=["number_answer"]',
        '--generator_checkpoint=sums.pt', '--block_size=16', '--max_new_tokens=4', '--pretrain_iters=40', '--temperature=1',
        '--eval_prompts_n=8', '--eval_samples=2', '--max_iters=6', '--kl_estimator=k2']


def sums_without(*keys):
    """SUMS but for these settings."""
    return [argument for argument in SUMS if argument[2:].partition('=')[0] not in keys]


def write_sums(folder):
    lines = [json.dumps({'prompt': f'{a}+{b}=', 'answer': str(a + b)}) + '\n' for a in range(10) for b in range(10)]
    (folder / 'sums.jsonl').write_text(''.join(lines[10:]))
    (folder / 'held_out.jsonl').write_text(''.join(lines[:10]))


@pytest.fixture(scope='module')
def answered(tmp_path_factory):
    """A folder in which a small model was trained from nothing and then on rewards."""
    folder = tmp_path_factory.mktemp('answered')
    write_sums(folder)
    done = run(folder, *SUMS)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def sums(answered, tmp_path):
    write_sums(tmp_path)
    shutil.copy(answered[0] / 'sums.pt', tmp_path)
    return tmp_path


def test_completion_run(answered):
    folder, printed = answered
    for words in ('making sums.pt: a model from sums.jsonl', '90 prompts to train on, 8 held out', 'held-out accuracy greedy', "(wanted '"):
        assert words in printed
    lines = metrics(folder)
    assert [line['iter'] for line in lines] == list(range(7))
    assert {'reward/number_answer', 'frac_truncated', 'mean_length', 'mean_kl', 'sampler_gap_max'} <= lines[0].keys()
    assert {'eval/accuracy_greedy', 'eval/accuracy_sampled', 'eval/pass_at_k', 'eval/reward'} <= lines[4].keys()
    assert lines[0]['mean_kl'] == pytest.approx(0, abs=1e-6) and all(line['sampler_gap_max'] < 1e-5 for line in lines[:-1])
    sample = json.loads(open(folder / 'out-grpo' / 'samples.jsonl').readline())
    assert sample.keys() == SAMPLE | {'reward/number_answer'}
    assert re.fullmatch(r'\d\+\d=', sample['prompt']) and sample['answer'] == str(eval(sample['prompt'][:-1]))


def test_rewards_of_the_catalogue(sums):
    """
    A function, a dict and names in one list; fluency under the model that the run starts from; prompts that one reward does not apply
    to, and completions for which one raises.
    """
    lines = (sums / 'sums.jsonl').read_text().splitlines()
    without_answers = [json.dumps({'prompt': f'{a}+{b}='}) for a in (7, 8, 9) for b in range(10)]
    (sums / 'mixed.jsonl').write_text('\n'.join(lines[:60] + without_answers))
    (sums / 'mixed.py').write_text("""
def my_custom_reward(text, reference=None, **kwargs):
    return len(text) / 50 + 1 / (1 - text.startswith('1'))

rewards = [('math_correctness', 0.5), ('fluency', 0.2), {'type': 'diversity', 'weight': 0.1, 'params': {}},
           {'type': 'custom', 'weight': 0.5, 'params': {'reward_function': my_custom_reward}}]
train_prompts, eval_prompts, reward_errors = 'mixed.jsonl', 'held_out.jsonl', 'drop'
""")
    done = run(sums, 'mixed.py', *sums_without('rewards', 'train_prompts', 'eval_prompts'), '--max_iters=3', '--remake=never')
    assert done.returncode == 0, done.stderr
    assert 'note: the weights of the rewards sum to 1.3, not to 1' in done.stdout
    assert "'math_correctness' does not apply to 30 of 98 prompts; the first: " in done.stdout and "prompt 60 ('7+0=')" in done.stdout
    assert "left out: reward 'my_custom_reward' raised ZeroDivisionError" in done.stderr
    logged = metrics(sums)[:-1]
    assert len(logged) == 3 and all(0 < line['reward/fluency'] < 1 for line in logged)
    missing = {name: [line[f'reward_missing/{name}'] for line in logged] for name in ('math_correctness', 'fluency', 'my_custom_reward')}
    assert missing['fluency'] == missing['my_custom_reward'] and sum(missing['fluency']) > 0
    more = [a - b for a, b in zip(missing['math_correctness'], missing['fluency'], strict=True)]
    assert min(more) >= 0 < max(more)
    assert 'NaN' not in ''.join(path.read_text() for path in (sums / 'out-grpo').glob('*.jsonl'))


def test_the_export_is_what_was_trained(answered):
    """export/ in transformers: logits of the checkpoint; and our own reader takes it back, tokenizer included."""
    transformers = pytest.importorskip('transformers')
    folder = answered[0]
    checkpoint, export = (str(folder / 'out-grpo' / name) for name in ('ckpt.pt', 'export'))
    ours, again = (GPT.from_pretrained(path).eval() for path in (checkpoint, export))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(export).eval()
    tokens = torch.randint(12, (2, 7))
    torch.testing.assert_close(ours.logits(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.logits(tokens), ours.logits(tokens))
    first, second = (tokenizer_of(path) for path in (checkpoint, export))
    assert first.encode('1+2=') == second.encode('1+2=') and first.eos_id == second.eos_id == theirs.config.eos_token_id


@pytest.mark.parametrize('more', [
    ['--reference_mode=ema', '--ema_alpha=0.5', '--precision=bf16'], ['--lora_r=2', '--load_in_8bit=True', '--reference_mode=static'],
    ['--reference_mode=periodic', '--reference_update_freq=2', '--top_k=5', '--num_epochs_per_rollout=2', '--dynamic_sampling=2',
     '--overlong_penalty=2', '--minibatch_size=2']])
def test_completion_resumes_bit_identically(sums, more):
    """Every kind of reference, 16-bit weights, adapters: killed and resumed, log and weights are those of the run that was left alone."""
    whole = run(sums, *SUMS, *more, '--out_dir=whole')
    assert whole.returncode == 0, whole.stderr
    until(sums, 'iter 4: reward', signal.SIGKILL, *SUMS, *more)
    done = run(sums, *SUMS, *more, '--init_from=resume')
    assert done.returncode == 0, done.stderr
    assert metrics(sums) == metrics(sums, 'whole')
    a, b = (torch.load(sums / name / 'ckpt.pt', weights_only=True) for name in ('out-grpo', 'whole'))
    for part in ('model', 'reference'):
        assert all(torch.equal(a[part][name], b[part][name]) for name in b[part])
    assert {value.dtype for value in a['model'].values()} == {torch.float32} and bool(b['reference']) == ('--lora_r=2' not in more)
    if '--lora_r=2' in more:
        asked = '--prompt=1+2=', '--num_samples=2'
        said = [run(sums, f'--checkpoint=whole/{name}', *asked, script='sample.py') for name in ('ckpt.pt', 'export')]
        assert said[0].returncode == 0 and said[0].stderr == said[1].stderr, said[0].stderr  # its adapters on its start
        for other in ('--lora_alpha=32', '--lora_r=4', '--lora_targets=q_proj'):
            refused(run(sums, *SUMS, *more, other, '--init_from=resume'), other[2:].partition('=')[0], 'leave it as it was')
        assert {'export', 'adapter'} <= set(os.listdir(sums / 'whole')) and all(name.endswith(('.A', '.B')) for name in a['model'])


def test_completion_options(sums):
    """
    Several rewards, one a function in the config; gradient checkpointing; a text to remember; two processes, whose completions are those
    of one.
    """
    (sums / 'shorter.py').write_text("""
def shorter(text, **_):
    return 1 / (1 + len(text))

rewards = [('number_answer', 1.0), (shorter, 0.5), ('length', 0.1, {'min_length': 1})]
retain_text = '1+1=2'
""")
    options = [*sums_without('rewards'), 'shorter.py', '--gradient_checkpointing=True', '--mask_truncated=True', '--max_iters=2']
    done = run(sums, *options, launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr[-2000:]
    line = metrics(sums)[0]
    weighted = line['reward/number_answer'] + 0.5 * line['reward/shorter'] + 0.1 * line['reward/length']
    assert line['mean_reward'] == pytest.approx(weighted, rel=1e-4) and 'eval/text_log_prob' in line
    assert json.load(open(sums / 'out-grpo' / 'config.json'))['rewards'][1] == ['shorter', 0.5]
    one = run(sums, *options, '--out_dir=one')
    assert one.returncode == 0, one.stderr[-2000:]
    assert metrics(sums, 'one')[0]['mean_reward'] == pytest.approx(line['mean_reward'], rel=1e-6)


def test_completion_refuses(sums):
    """Before any training: each with one line that names what is wrong."""
    (sums / 'broken.jsonl').write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "1+2=", "answer": \n')
    (sums / 'nothing.jsonl').write_text('{"sum": "1+1=", "answer": "2"}\n')
    (sums / 'empty.jsonl').write_text('{"prompt": " ", "answer": "2"}\n')
    (sums / 'bad.py').write_text('def bad(text, **_):\n    return 1 / len(text[:0])\n\nrewards = [bad]\n')
    (sums / 'nan.py').write_text('def nan(text, **_):\n    return float("nan")\n\nrewards = [nan]\n')
    truncated = sums / 'truncated'
    truncated.mkdir()
    config = {'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 14, 'hidden_size': 16, 'num_hidden_layers': 1,
              'num_attention_heads': 2, 'intermediate_size': 32, 'max_position_embeddings': 16, 'rms_norm_eps': 1e-5}
    (truncated / 'config.json').write_text(json.dumps(config))
    (truncated / 'model.safetensors').write_bytes(b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":')
    (truncated / 'vocab.json').write_text(json.dumps({'chars': list('0123456789+='), 'end': True}))
    for argument, words in (
            ('--train_prompts=broken.jsonl', ['broken.jsonl', 'line 2']), ('--train_prompts=empty.jsonl', ['empty.jsonl', 'empty']),
            ('--train_prompts=nothing.jsonl', ['nothing.jsonl', "'prompt'", 'sum']),
            ('--train_prompts=nowhere.jsonl', ['nowhere.jsonl']), ('--rewards=["number_anser"]', ["'number_anser'", "'number_answer'"]),
            ('bad.py', ["'bad'", 'ZeroDivisionError']), ('nan.py', ["'nan'", 'nan']),
            ('--max_new_tokens=14', ['max_new_tokens 14', '16']), ('--max_prompt_length=3', ['4 tokens', 'max_prompt_length is 3']),
            ('--generator_checkpoint=truncated', ['truncated']), ('--load_in_8bit=True', ['lora_r']),
            ('--overlong_penalty=40', ['overlong_penalty is 40', 'max_new_tokens']),
            ('--dynamic_sampling=-1', ['dynamic_sampling is -1']),
            ('--retain_text=what?', ['characters: it has', 'this run wants', 'ahtw']),
            ('--reference_mode=moving', ["'moving'", 'periodic'])):
        others = sums_without('rewards' if argument.endswith('.py') else '')
        refused(run(sums, *others, argument), *words)
    refused(run(sums, *SUMS, '--reference_offload=True', '--reference_mode=ema'), 'reference_offload')
    assert not (sums / 'out-grpo').exists()


def test_a_file_alone_is_split(sums):
    """One file, no eval_prompts: what is held out was never trained on. A seed of any size will do."""
    of_one_file = [*sums_without('train_prompts', 'eval_prompts'), '--dataset=sums.jsonl', '--eval_prompts_n=10']
    done = run(sums, *of_one_file, '--max_iters=1', '--seed=123456789', '--generator_checkpoint=new.pt')
    assert done.returncode == 0 and '80 prompts to train on, 10 held out' in done.stdout, done.stderr


def test_ten_prompts_two_epochs_three_rewards(sums):
    """A tenth is held out, what applies to nothing is left out, evaluation shows the others, and what is no accuracy is not called so."""
    lines = (sums / 'sums.jsonl').read_text().splitlines(keepends=True)
    (sums / 'ten.csv').write_text('question,solution,difficulty\n' + ''.join(
        f"{record['prompt']},{record['answer']},{i}\n" for i, record in enumerate(map(json.loads, lines[:10]))))
    (sums / 'three.py').write_text(
        'def level(completions, difficulty, completion_ids, **kwargs):\n'
        '    return [int(d) / 10 + len(ids) for d, ids in zip(difficulty, completion_ids)]\n\n'
        "rewards = [(level, 0.5), ('number_answer', 0.5), ('code_correctness', 1)]\n")
    others = sums_without('train_prompts', 'eval_prompts', 'rewards', 'max_iters', 'eval_prompts_n')
    others += ['--remake=never']  # the start has learned other sums
    done = run(sums, 'three.py', *others, '--train_prompts=ten.csv', '--num_epochs=2', '--batch_size=4', '--shuffle_prompts=False')
    assert done.returncode == 0, done.stderr
    for words in ("ten.csv: taking 'question' as the prompt, 'solution' as the answer", 'only 1 of 10 prompts held out: 512 would',
                  "reward 'code_correctness' is left out", '9 prompts to train on, 1 held out', 'max_iters is 5, for 2 epochs',
                  'held-out level greedy', 'number_answer greedy'):
        assert done.stdout.count(words) >= 1, words
    assert 'accuracy' not in done.stdout
    last = metrics(sums)[-1]
    kinds = ('reward/level', 'reward/number_answer', 'reward_greedy/level', 'reward_greedy/number_answer')
    assert last['iter'] == 5 and {f'eval/{kind}' for kind in kinds} <= last.keys()
    assert last['eval/reward/level'] == last['eval/accuracy_sampled']
    (sums / 'one.jsonl').write_text(lines[0])
    done = run(sums, *sums_without('train_prompts', 'eval_prompts'), '--train_prompts=one.jsonl', '--max_iters=1',
               '--remake=never')
    assert done.returncode == 0 and 'one.jsonl has only one prompt, so evaluation uses the training prompt' in done.stdout, done.stderr


def test_a_mixture_is_resumed_where_it_was(sums):
    """Three quarters of one source, a quarter of another, whose records say which; stopped and resumed it is the run in one go."""
    (sums / 'other.txt').write_text('1+1=\n2+2=\n3+3=\n')
    (sums / 'from.py').write_text("def other(text, source):\n    return source == 'other.txt'\n\nrewards = [other]\n")
    mixed = [*sums_without('train_prompts', 'eval_prompts', 'rewards', 'max_iters'), '--seed=3', '--batch_size=4', '--dataset=sums.jsonl',
             '--remake=never', "--train_prompts={'sums.jsonl': 0.75, 'other.txt': 0.25}"]
    assert run(sums, 'from.py', *mixed, '--max_iters=4', '--out_dir=whole', '--lr_schedule=constant').returncode == 0
    for more in (['--max_iters=2'], ['--max_iters=4', '--init_from=resume']):
        done = run(sums, 'from.py', *mixed, *more, '--out_dir=parts', '--lr_schedule=constant')
        assert done.returncode == 0, done.stderr
    whole, parts = metrics(sums, 'whole'), metrics(sums, 'parts')
    assert [line['reward/other'] for line in whole[:-1]] == [0.25] * 4
    assert whole[-1] == parts[-1]
    refused(run(sums, *mixed[:-1], "--train_prompts={'sums.jsonl': 0}"), 'each source needs a share above 0')


def test_resume_with_other_settings(sums):
    """What is printed as changed is what happens: weight decay, precision, a reference that is no longer wanted; and no going back."""
    more = ['--reference_mode=ema', '--weight_decay=0.0']
    assert run(sums, *SUMS, *more, '--max_iters=3').returncode == 0
    refused(run(sums, *SUMS, *more, '--max_iters=2', '--init_from=resume'), 'max_iters is 2 and the run at 3: raise max_iters')
    refused(run(sums, *SUMS, *more, '--advantage=gae', '--init_from=resume'), "advantage 'grpo' and it is 'gae' now: leave it as it was")
    done = run(sums, *SUMS, '--kl_beta=0', '--weight_decay=0.5', '--precision=fp16', '--init_from=resume')
    assert done.returncode == 0 and 'resuming with weight_decay = 0.5 (it was 0.0)' in done.stdout, done.stderr
    optimizer = torch.load(sums / 'out-grpo' / 'ckpt.pt', weights_only=True)['optimizer']
    assert optimizer['param_groups'][0]['weight_decay'] == 0.5


def test_resume_refuses_another_start(sums):
    assert run(sums, *SUMS, '--max_iters=2').returncode == 0
    os.remove(sums / 'sums.pt')
    refused(run(sums, *SUMS, '--seed=2', '--init_from=resume'), 'sums.pt', 'not the one this run started from')


def test_sample_completes(answered):
    folder = answered[0]
    asked = ['--prompt=1+2=', '--max_new_tokens=4']
    one = run(folder, *asked, '--checkpoint=out-grpo/ckpt.pt', '--temperature=0', script='sample.py')
    assert one.returncode == 0 and re.fullmatch(r'[\d+=]{0,4}\n', one.stdout), one.stderr
    several = run(folder, *asked, '--checkpoint=out-grpo/export', '--num_samples=3', script='sample.py')
    assert several.returncode == 0, several.stderr
    assert len(several.stderr.splitlines()) == 4 and len(several.stdout.splitlines()) == 1, several.stderr


def test_gsm8k_config_with_a_tiny_qwen(tmp_path, tiny_qwen):
    """config/gsm8k.py on a Hugging Face folder with its own tokenizer and chat template; LoRA, exported for transformers and peft alike."""
    transformers, peft = (pytest.importorskip(name) for name in ('transformers', 'peft'))
    problem = {'question': 'Ann has 3 apples and buys 4 more. How many has she?', 'answer': '3 + 4 = <<3+4=7>>7\n#### 7'}
    for name in ('train', 'val'):
        (tmp_path / f'{name}.jsonl').write_text((json.dumps(problem) + '\n') * 6)
    prompts = ['--train_prompts=train.jsonl', '--eval_prompts=val.jsonl', '--column_mapping={"question": "prompt"}']
    learning = ['--lora_r=4', '--loss_type=grpo', '--learning_rate=1e-2', '--precision=fp32', '--device=cpu']
    sizes = ['--max_new_tokens=8', '--batch_size=4', '--group_size=2', '--max_iters=2', f'--generator_checkpoint={tiny_qwen}']
    done = run(tmp_path, str(ROOT / 'config' / 'gsm8k.py'), *prompts, *learning, *sizes)
    assert done.returncode == 0 and '6 prompts to train on, 6 held out' in done.stdout, done.stderr
    out = tmp_path / 'out-gsm8k'
    sample = json.loads(open(out / 'samples.jsonl').readline())
    assert sample['prompt'].startswith('<|im_start|>system\nReason step by step')
    assert sample['prompt'].endswith('<|im_start|>assistant\n')
    merged, start = (transformers.AutoModelForCausalLM.from_pretrained(path).eval() for path in (out / 'export', tiny_qwen))
    adapted = peft.PeftModel.from_pretrained(start, out / 'adapter').eval()
    tokens = torch.randint(300, (2, 9))
    torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, atol=1e-5, rtol=0)
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(path) for path in (out / 'export', tiny_qwen))
    assert ours.encode('3 apples') == theirs.encode('3 apples')
    asked = ['--checkpoint=out-gsm8k/export', '--prompt=How many?', '--chat_template=True', '--max_new_tokens=4']
    talk = run(tmp_path, *asked, script='sample.py')
    assert talk.returncode == 0, talk.stderr
