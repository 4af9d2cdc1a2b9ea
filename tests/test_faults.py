"""
A machine that fails: kills, signals, lost and hanging ranks, a full disk, damaged checkpoints, NaN, and rewards that raise, each with real
processes. At the end the terminal lists what was tried and survived: `python -m pytest tests/test_faults.py`.
"""
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from runtime.run import older_checkpoints
from test_train_grpo import WAITS
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, 'OMP_NUM_THREADS': '1'}
REAL = (sys.executable, '-u')  # where the test looks at the process itself
TORCHRUN = (PYTHON, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2')
TOY = [
    '--task=completion',
    '--train_prompts=sums.jsonl',
    '--eval_prompts=held_out.jsonl',
    '--generator_checkpoint=start.pt',
    '--block_size=16',
    '--max_new_tokens=4',
    '--n_layer=1',
    '--n_head=2',
    '--n_embd=16',
    '--pretrain_iters=40',
    '--batch_size=4',
    '--group_size=4',
    '--temperature=1',
    '--eval_prompts_n=8',
    '--eval_samples=1',
    '--eval_show=0',
    '--log_interval=1',
    '--hist_interval=2',
    '--eval_interval=4',
    '--save_interval=2',
    '--max_iters=12',
    '--kl_estimator=k2',
    '--reference_mode=ema',
    '--device=cpu',
    '--precision=fp32',
    'ones.py',
]


def command(*arguments, launcher=(PYTHON, '-u')):
    return [*launcher, str(ROOT / 'train_grpo.py'), *TOY, *arguments]


def run(folder, *arguments, launcher=(PYTHON, '-u')):
    return subprocess.run(command(*arguments, launcher=launcher), cwd=folder, env=ENV, capture_output=True, text=True, timeout=240)


def log_of(folder, out_dir='out-grpo'):
    """metrics.jsonl without its times, samples.jsonl and rewards.jsonl."""
    lines = {name: [json.loads(line) for line in open(folder / out_dir / f'{name}.jsonl')] for name in ('metrics', 'samples', 'rewards')}
    return lines | {
        'metrics': [{k: v for k, v in line.items() if not k.startswith('time_') and k != 'tokens_per_s'} for line in lines['metrics']]
    }


def weights_of(folder, out_dir='out-grpo'):
    return torch.load(folder / out_dir / 'ckpt.pt', weights_only=True)['model']


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A folder with the data, the start and a run that nobody disturbs."""
    folder, rng = tmp_path_factory.mktemp('undisturbed'), random.Random(0)
    for name, n in (('sums', 40), ('held_out', 8)):
        (folder / f'{name}.jsonl').write_text(
            ''.join(
                json.dumps({'prompt': f'{a}+{b}=', 'answer': str(a + b)}) + '\n'
                for a, b in ((rng.randrange(50), rng.randrange(50)) for _ in range(n))
            )
        )
    (folder / 'ones.py').write_text('def ones(text, **_):\n    return text.count("1") / 4\n\nrewards = [ones]\n')
    done = run(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def folder(undisturbed, tmp_path):
    for name in ('sums.jsonl', 'held_out.jsonl', 'ones.py', 'start.pt'):
        os.link(undisturbed / name, tmp_path / name)
    return tmp_path


def same(folder, undisturbed):
    assert log_of(folder) == log_of(undisturbed)
    ours, theirs = weights_of(folder), weights_of(undisturbed)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# One process that has loaded everything forks a child for each attempt, which is killed (SIGKILL) by itself at the n-th time that it comes
# to a place, or to any function.
KILLED = '''
import json, os, random, runpy, signal, sys
root, seed, attempts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
arguments = sys.argv[4:]
sys.path.insert(0, root)
import torch
torch.set_num_threads(1)
import kernels, policy, runtime.checkpoint, runtime.ranks, tasks
rng = random.Random(seed)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(owner, name, n, before=lambda *_: None, counts=lambda *_: True):
    real, calls = getattr(owner, name), iter(range(n))
    def counted(*arguments, **options):
        if counts(*arguments) and next(calls, None) is None:
            before(*arguments)
            die()
        return real(*arguments, **options)
    setattr(owner, name, counted)

def at_function(n):
    listen, calls = runtime.ranks.listen, iter(range(n))
    def count(*_):
        if next(calls, None) is None:
            die()
    runtime.ranks.listen = lambda: (listen(), sys.setprofile(count))  # the loop begins with it

def at_replace(most, ending):
    at_call(os, 'replace', rng.randrange(most), counts=lambda source, target: target.endswith(ending))

def half_a_file(checkpoint, f):
    import io
    real_save(checkpoint, whole := io.BytesIO())
    f.write(whole.getvalue()[:rng.randrange(len(whole.getvalue()))])
    f.flush()
    os.fsync(f.fileno())

real_save = torch.save
PLACES = {
    'a rollout': lambda: at_call(policy, 'draw_rows', rng.randrange(12)),
    'backward': lambda: at_call(kernels.GroupAttention, 'backward', rng.randrange(4)),
    'a checkpoint half written': lambda: at_call(torch, 'save', rng.randrange(3), half_a_file),
    'a checkpoint not yet renamed': lambda: at_replace(3, '.pt'),
    'a log not yet renamed': lambda: at_replace(4 if os.path.exists('out-grpo/ckpt.pt') else 1, ('.json', '.jsonl')),
    'any moment': lambda: at_function(rng.randrange(20_000)),
}
places = [place for place in PLACES for _ in range(attempts // len(PLACES))]
rng.shuffle(places)
killed = []
for place in places + [None]:
    child = os.fork()
    if child == 0:
        sys.argv = ['train_grpo.py', *arguments] + (['--init_from=resume'] if os.path.exists('out-grpo/ckpt.pt') else [])
        rng.seed(seed * 1000 + len(killed))
        os.dup2(os.open('log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        if place:
            PLACES[place]()
        runpy.run_path(os.path.join(root, 'train_grpo.py'), run_name='__main__')
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if place is None:
        print(json.dumps({'killed': killed, 'last': os.waitstatus_to_exitcode(status)}))
    elif os.waitstatus_to_exitcode(status) == -signal.SIGKILL:
        killed.append(place)
    else:
        sys.exit(f'{place}: it ended with {os.waitstatus_to_exitcode(status)}')
'''


@pytest.mark.parametrize('times', [6, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_many_times(folder, undisturbed, times, record_property):
    """
    kill -9 in rollouts, in backward, in the middle of a checkpoint's bytes, before its rename or a log's and at the n-th function that is
    called, six or thirty times in one run of 60 iterations; each time it is taken up again. In the end its log, its samples and its
    weights are those of the run that nobody disturbed, to the last bit.
    """
    longer = ['--max_iters=60', '--save_interval=1']
    calm = folder / 'calm'
    calm.mkdir()
    for name in ('sums.jsonl', 'held_out.jsonl', 'ones.py', 'start.pt'):
        os.link(folder / name, calm / name)
    assert run(calm, *longer).returncode == 0
    script = folder / 'killed.py'
    script.write_text(KILLED)
    done = subprocess.run(
        [PYTHON, str(script), str(ROOT), '1', str(times), *TOY, *longer], cwd=folder, env=ENV, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-1000:] + open(folder / 'log.txt').read()[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert len(result['killed']) == times and result['last'] == 0, result
    same(folder, calm)
    assert not [name for name in os.listdir(folder / 'out-grpo') if name.endswith('.tmp')]
    counts = {place: result['killed'].count(place) for place in sorted(set(result['killed']))}
    record_property(
        'survived',
        f"kill -9, {times} times in one run: {', '.join(f'{n} in {place}' for place, n in counts.items())}; log, samples and weights "
        f"equal to the undisturbed run's",
    )


# --- signals, and ranks that are lost

def ranks_of(folder, *arguments):
    """
    Two ranks started as a cluster does it, without torchrun, which would end one when it sees the other fail: [process of rank 0, of rank
    1].
    """
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    meet = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    return [
        subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=ENV | meet | {'RANK': str(rank), 'LOCAL_RANK': str(rank)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]


LOST = '''
import os as _os, signal as _signal, time as _time
_calls = [0]

def ones(text, **_):
    _calls[0] += 1
    if _os.environ.get("RANK") == "1" and _calls[0] > 40:  # in iteration 5
        with open("lost", "w") as f:
            f.write(str(_os.getpid()))
        WHAT_HAPPENS
    return text.count("1") / 4

rewards = [ones]
'''
WHAT_HAPPENS = {
    'dies': '_os.kill(_os.getpid(), _signal.SIGKILL)',
    'hangs': '_os.kill(_os.getpid(), _signal.SIGSTOP)',
    'has a reward that hangs': '_time.sleep(3600)',
}


@pytest.mark.parametrize('how', WHAT_HAPPENS)
def test_a_lost_rank_is_named(folder, how, record_property):
    """
    Rank 1 dies, or hangs, itself or in a reward: rank 0 stops within seconds, or after rank_timeout, and says which process on which
    machine no longer answers.
    """
    (folder / 'lost.py').write_text(LOST.replace('WHAT_HAPPENS', WHAT_HAPPENS[how]))
    first, second = ranks_of(folder, 'lost.py', '--save_interval=1', '--rank_timeout=10')
    try:
        printed = first.communicate(timeout=240)[0]
        took = time.time() - os.path.getmtime(folder / 'lost')
    finally:
        for process in (first, second):
            process.kill()
            process.wait()
    pid = (folder / 'lost').read_text()
    assert first.returncode == 1 and re.search(
        rf"rank 0 stops: no answer any more from rank 1 \(process {pid} on .+\)\. Go on from the last", printed
    ), printed[-2000:]
    record_property(
        'survived',
        f"rank 1 of 2 {how}{' (rank_timeout 10 s)' * (how != 'dies')}: rank 0 stops after {took:.0f} s and names it",
    )


def test_torchrun_ends_when_a_rank_dies(folder, record_property):
    """Under torchrun the same, and the run goes on from its checkpoint, with two ranks, with one, and sharded."""
    (folder / 'lost.py').write_text(LOST.replace('WHAT_HAPPENS', WHAT_HAPPENS['dies']))
    done = run(folder, 'lost.py', '--save_interval=1', launcher=TORCHRUN)
    assert done.returncode != 0 and re.search(r'rank +: 1', done.stderr), done.stderr[-2000:]
    iterations = torch.load(folder / 'out-grpo' / 'ckpt.pt', weights_only=True)['iter']
    for n, (launcher, more) in enumerate(
        ((TORCHRUN, []), ((PYTHON,), []), (TORCHRUN, ['--shard=True']), ((PYTHON,), ['--shard=False'])), 1
    ):
        done = run(folder, *more, '--init_from=resume', f'--max_iters={iterations + 2 * n}', launcher=launcher)
        assert done.returncode == 0, done.stderr[-2000:]
    assert [line['iter'] for line in log_of(folder)['metrics']] == list(range(iterations + 9))
    record_property(
        'survived',
        'a rank dies under torchrun, which ends and names it; the run goes on with 2 ranks, with 1, with 2 sharded and with 1 again',
    )


@pytest.mark.parametrize('launcher', [(PYTHON, '-u'), TORCHRUN])
def test_sigterm_saves(folder, undisturbed, launcher, record_property):
    """
    As a cluster ends a job: it saves, says how to go on, and one process exits with 0 (torchrun itself reports the signal); the run then
    goes on as if nothing had happened.
    """
    process = subprocess.Popen(
        command(WAITS, launcher=launcher),
        cwd=folder,
        env=ENV | {'WAIT_AT': 'iter 3: reward'},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed = ''
    for line in process.stdout:
        printed += line
        if line.startswith('iter 3: reward'):
            process.send_signal(signal.SIGTERM)
            since = time.monotonic()
    process.wait(timeout=240)
    took = time.monotonic() - since
    assert 'stopped in iteration' in printed, printed[-2000:]
    assert process.returncode == 0 or launcher == TORCHRUN
    done = run(folder, '--init_from=resume', launcher=launcher)
    assert done.returncode == 0, done.stderr[-2000:]
    if launcher != TORCHRUN:
        same(folder, undisturbed)
    assert [line['iter'] for line in log_of(folder)['metrics']] == list(range(13))
    record_property(
        'survived', f"SIGTERM to {'torchrun with two ranks' if launcher == TORCHRUN else 'one process'}: saved and gone after {took:.1f} s"
    )


ONE = (PYTHON, '-u')
FOREVER = r'''
import os as _os, time as _time, traceback as _traceback
import grpo as _grpo
from rewards import bounded as _bounded
_slow, _after, _calls, _real = _os.environ.get("SLOW"), int(_os.environ.get("AFTER", "20")), [0], _grpo.policy_loss

def _wait(phase):
    _calls[0] += phase == ("reward_values" if _slow == "a comparison" else _slow)
    while _calls[0] > _after:
        if _slow == "a comparison":
            assert _bounded.equal_in_latex("a+b", "b+a")
            _bounded.CHILD.seconds = 10 ** 6
        print("waiting", flush=True)
        if _slow == "a comparison":
            _bounded.equal_in_latex("x^2+1", r"9^{999\cdot 999\cdot 999}")
        _time.sleep(0.1)

def ones(text, **_):
    _wait(next((f.name for f in _traceback.extract_stack() if f.name in ("evaluate", "reward_values")), None))
    return text.count("1") / 4

def _loss(*arguments, **options):
    _wait("policy_loss")
    return _real(*arguments, **options)

_grpo.policy_loss = _loss
rewards = [ones]
'''


@pytest.mark.parametrize(
    'launcher, phase, more',
    [
        (ONE, 'reward_values', ['--sampling_batch_size=2']),
        (ONE, 'a comparison', []),
        (ONE, 'a comparison', ['--sampling_batch_size=2']),
        (ONE, 'evaluate', []),
        (ONE, 'policy_loss', []),
        (ONE, 'reward_values', ['--optimizer=es', '--es_pairs=4', '--kl_beta=0']),
        (TORCHRUN, 'reward_values', []),
        (TORCHRUN, 'evaluate', []),
    ],
)
def test_sigterm_does_not_wait(folder, undisturbed, launcher, phase, more, record_property):
    """
    The signal comes while a reward (in a thread beside the sampling, or of a candidate of evolution strategies), a comparison of two
    expressions, an evaluation or the loss takes forever: it is broken off, as nothing has changed yet, and the run then goes on as if
    nothing had happened.
    """
    (folder / 'slow.py').write_text(FOREVER)
    slow = ['slow.py', '--micro_batch_size=1', '--out_dir=slow', *more]
    process = subprocess.Popen(
        command(*slow, launcher=launcher),
        cwd=folder,
        env=ENV | {'SLOW': phase, 'AFTER': '200' if '--optimizer=es' in more else '20'},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    printed, since = '', None
    for line in process.stdout:
        printed += line
        if line == 'waiting\n' and since is None:
            process.send_signal(signal.SIGTERM)
            since = time.monotonic()
    process.wait(timeout=240)
    took = time.monotonic() - since
    assert re.search(r'stopped in iteration [1-9]', printed) and (process.returncode == 0 or launcher == TORCHRUN), printed[-2000:]
    assert run(folder, *slow, '--init_from=resume', launcher=launcher).returncode == 0
    if launcher != TORCHRUN:
        assert run(folder, *slow, '--out_dir=calm').returncode == 0
        assert log_of(folder, 'slow') == log_of(folder, 'calm') and all(
            torch.equal(v, weights_of(folder, 'calm')[k]) for k, v in weights_of(folder, 'slow').items()
        )
    assert [line['iter'] for line in log_of(folder, 'slow')['metrics']] == list(range(13))
    where = {
        'reward_values': "a reward of evolution strategies" if '--optimizer=es' in more else 'a reward',
        'a comparison': 'a comparison of expressions' + ' in a thread' * bool(more),
        'evaluate': 'an evaluation',
        'policy_loss': 'the loss',
    }[phase]
    record_property(
        'survived',
        f"SIGTERM to {'torchrun with two ranks' if launcher == TORCHRUN else 'one process'} while {where} takes forever: saved and gone "
        f"after {took:.1f} s",
    )


# --- disks and files

FULL = '''
import os as _os, resource as _resource
from runtime import run as _run
_save = _run.save_checkpoint

def _full(path, *rest):
    _save(path, *rest)
    if path.endswith("ckpt.pt"):
        size = _os.path.getsize(path)
        WHAT_HAPPENS

def _fill():
    try:
        with open("out-grpo/filler", "ab", buffering=0) as f:
            while f.write(bytes(4096)):
                pass
    except OSError:
        pass

_run.save_checkpoint = _full
'''
FILLED = {
    'no room': '_fill()',
    'too large a file': '_resource.setrlimit(_resource.RLIMIT_FSIZE, (size // 2, size // 2))',
    'too large a log': '_resource.setrlimit(_resource.RLIMIT_FSIZE, (size + 4096, size + 4096))',
}


@pytest.mark.parametrize('what', FILLED)
def test_a_full_disk(folder, undisturbed, what, record_property):
    """
    The disk is full when the second checkpoint comes, or a line of a log (a small tmpfs, where one can be mounted; a limit on the size of a
    file, which anyone can set): the run stops with one line, no torn file is left, the checkpoint from before is whole, and with room again
    the run goes on to the undisturbed end.
    """
    out = folder / 'out-grpo'
    out.mkdir()
    (folder / 'full.py').write_text(FULL.replace('WHAT_HAPPENS', FILLED[what]))
    size = os.path.getsize(undisturbed / 'out-grpo' / 'ckpt.pt')
    if what == 'no room':
        if subprocess.run(['mount', '-t', 'tmpfs', '-o', f'size={size * 6}', 'tmpfs', str(out)], capture_output=True).returncode:
            pytest.skip('a tmpfs can be mounted by root alone')
    try:
        rarely = ['--log_interval=1' if 'log' in what else '--log_interval=100', '--max_iters=100000', '--keep_checkpoints=0']
        done = run(folder, 'full.py', '--save_interval=2', '--eval_interval=2000', '--hist_interval=2000', *rarely)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert 'could not be written' in done.stderr and 'make room' in done.stderr, done.stderr
        assert not [name for name in os.listdir(out) if name.endswith('.tmp')]
        saved = torch.load(out / 'ckpt.pt', weights_only=True)
        if what == 'no room':
            (out / 'filler').unlink()
        done = run(folder, '--init_from=resume', f"--max_iters={saved['iter'] + 4}", '--keep_checkpoints=0')
        assert done.returncode == 0, done.stderr
        assert [line['iter'] for line in log_of(folder)['metrics']][-1] == saved['iter'] + 4
    finally:
        if what == 'no room':
            subprocess.run(['umount', '-l', str(out)])
    record_property(
        'survived', f"a disk that is full while saving ({what}): one line, the checkpoint from before whole, no torn file, and on from it"
    )


@pytest.mark.parametrize('options, words', [('ro,size=1m', 'nothing can be written at'), ('size=16k', 'make room')])
def test_a_disk_that_takes_nothing(folder, options, words, record_property):
    """Read-only, or full from the beginning: said in a line before anything is trained."""
    disk = folder / 'disk'
    disk.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(disk)], capture_output=True).returncode:
        pytest.skip('a tmpfs can be mounted by root alone')
    try:
        if 'ro' not in options:
            with pytest.raises(OSError), open(disk / 'filler', 'wb', buffering=0) as f:
                while f.write(bytes(4096)):
                    pass
        done = run(folder, '--out_dir=disk/out', '--generator_checkpoint=new.pt')
    finally:
        subprocess.run(['umount', '-l', str(disk)])
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith('error: ') and words in lines[0], done.stderr
    assert not (folder / 'new.pt').exists()
    record_property('survived', f"a disk that takes nothing ({options.partition(',')[0]}): one line, before a start is made")


def test_a_damaged_checkpoint(folder, undisturbed, record_property):
    """
    ckpt.pt cut short, empty, its end or its middle overwritten with zeros: the older one serves, with a warning, and the end is the same.
    Without an older one the run stops and names the file.
    """
    whole = (undisturbed / 'out-grpo' / 'ckpt.pt').read_bytes()
    damages = {
        'cut to half': whole[: len(whole) // 2],
        'its last byte gone': whole[:-1],
        'empty': b'',
        'its end zero': whole[:-600] + bytes(600),
        'not a checkpoint': b'GIF89a' + bytes(200),
    }
    for name, damaged in damages.items():
        shutil.rmtree(folder / 'out-grpo', ignore_errors=True)
        shutil.copytree(undisturbed / 'out-grpo', folder / 'out-grpo')
        (folder / 'out-grpo' / 'ckpt.pt').write_bytes(damaged)
        done = run(folder, '--init_from=resume')
        assert (
            done.returncode == 0
            and 'warning' in done.stdout
            and 'going on from out-grpo/ckpt_000010.pt instead, iteration 10' in done.stdout
        ), (name, done.stdout, done.stderr)
        same(folder, undisturbed)
    (folder / 'out-grpo' / 'ckpt.pt').write_bytes(b'')
    for older in folder.glob('out-grpo/ckpt_0*'):
        older.unlink()
    done = run(folder, '--init_from=resume')
    assert done.returncode == 1 and done.stderr.startswith('error: out-grpo/ckpt.pt cannot be read as a checkpoint'), done.stderr
    record_property('survived', f"a damaged ckpt.pt ({', '.join(damages)}): the older one serves, and the end is the same")


def test_damaged_logs(folder, undisturbed, record_property):
    """Half a line in the middle, a block of NULs, bytes that are no text, a last line without its end: all are left out at resume."""
    assert run(folder, '--max_iters=6').returncode == 0
    for name, damage in (('metrics', b'{"iter": 3, "mea'), ('samples', b'\0' * 512), ('rewards', b'\xff\xfe[1, 2]')):
        path = folder / 'out-grpo' / f'{name}.jsonl'
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b''.join([*lines[:2], damage + b'\n', *lines[2:], b'{"iter": 5']))
    done = run(folder, '--init_from=resume')
    assert done.returncode == 0 and done.stdout.count('damaged lines in') == 3, done.stdout + done.stderr
    same(folder, undisturbed)
    record_property('survived', 'metrics.jsonl, samples.jsonl and rewards.jsonl with torn lines, NULs and bytes that are no text')


DIES = '''
import os as _os, signal as _signal

def _dies_after(name, kept=getattr):
    real, ending = kept(_os, name), {"rename": "out-grpo", "makedirs": "out-grpo", "replace": "config.json"}[name]
    def called(first, *rest, **more):
        real(first, *rest, **more)
        if str(rest[0] if name == "replace" else first).endswith(ending):
            _os.kill(_os.getpid(), _signal.SIGKILL)
    setattr(_os, name, called)

_dies_after(_os.environ["DIES_AFTER"])
'''


def test_killed_while_the_folder_is_made(folder, undisturbed, record_property):
    """
    kill -9 after a used folder was moved aside, after the new one was made, and after its config.json: the earlier run is whole under its
    new name, nothing is there to resume, which is said in a line, and the next run goes as one that nobody disturbed.
    """
    shutil.copytree(undisturbed / 'out-grpo', folder / 'out-grpo')
    (folder / 'dies.py').write_text(DIES)
    for place in ('rename', 'makedirs', 'replace'):
        done = subprocess.run(command('dies.py'), cwd=folder, env=ENV | {'DIES_AFTER': place}, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, (place, done.stderr[-1000:])
        assert (folder / 'out-grpo').exists() == (place != 'rename') and not (folder / 'out-grpo/metrics.jsonl').exists()
        assert log_of(folder, 'out-grpo.1') == log_of(undisturbed)
        done = run(folder, '--init_from=resume')
        assert done.returncode == 1 and done.stderr.startswith('error: there is no out-grpo/ckpt.pt to resume'), done.stderr
    done = run(folder)
    assert done.returncode == 0 and 'moved to' not in done.stdout, done.stderr
    same(folder, undisturbed)
    assert not [name for name in os.listdir(folder) + os.listdir(folder / 'out-grpo') if name.endswith('.tmp')]
    record_property('survived', 'kill -9 between moving a used folder aside, making the new one and its first file')


PATIENT = '''
import os, time

def ones(text, **_):
    while not os.path.exists('go'):
        time.sleep(0.01)
    return text.count("1") / 4

rewards = [ones]
'''


@pytest.mark.parametrize('tries', [3, pytest.param(50, marks=pytest.mark.slow)])
def test_two_runs_of_one_folder_and_one_start(undisturbed, tmp_path, tries, record_property):
    """Started together with nothing there: one makes the start and has the folder, the other says who has it and changes nothing."""
    for n in range(tries):
        folder = tmp_path / str(n)
        folder.mkdir()
        for name in ('sums.jsonl', 'held_out.jsonl'):
            shutil.copy(undisturbed / name, folder)
        (folder / 'ones.py').write_text(PATIENT)
        runs = [subprocess.Popen(command('--max_iters=4', f'--out_dir={out}'), cwd=folder, env=ENV, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True) for out in ('one', './one/', 'other')]
        while all(process.poll() is None for process in runs):
            time.sleep(0.05)
        (folder / 'go').touch()  # who has the folder waited for this
        said = [''.join(process.communicate(timeout=240)) for process in runs]
        codes = [process.returncode for process in runs]
        assert sorted(codes[:2]) == [0, 1] and codes[2] == 0, said
        refused = said[codes.index(1)]
        assert re.search(r'error: in one (process \d+ on .*|another process) is still running', refused) and 'Traceback' not in refused
        assert sum(text.count('making start.pt') for text in said) == 1  # the others wait for it
        assert log_of(folder, 'one') == log_of(folder, 'other') and not (folder / 'one.1').exists()
    record_property('survived', f'two runs in one folder, and a third that needs the same start, {tries} times')


def test_the_newest_checkpoint_has_the_largest_number(tmp_path):
    for number in ('000002', '999950', '1000000', '10000000', 'best', '12x'):
        (tmp_path / f'ckpt_{number}.pt').write_text('')
    names = [os.path.basename(path) for path in older_checkpoints(str(tmp_path))]
    assert names == ['ckpt_10000000.pt', 'ckpt_1000000.pt', 'ckpt_999950.pt', 'ckpt_000002.pt']


@pytest.mark.slow
def test_two_thousand_iterations(folder, record_property):
    """Memory and open files at iteration 500 are those at 2,000, older checkpoints go, and metrics.jsonl can be read at any moment."""
    process = subprocess.Popen(
        command(
            '--max_iters=2010',
            '--save_interval=100',
            '--log_interval=10',
            '--eval_interval=500',
            '--hist_interval=100',
            '--keep_checkpoints=2',
            launcher=REAL,
        ),
        cwd=folder,
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen, files = {}, {500: [], 2000: []}
    for line in process.stdout:
        found = re.match(r'iter (\d+): reward', line)
        for end, counts in files.items():  # ten looks each, because at a single one a checkpoint may be open
            if found and end - 100 < int(found[1]) <= end:
                counts.append(len(os.listdir(f'/proc/{process.pid}/fd')))
        if found and int(found[1]) in (500, 1000, 1500, 2000):
            status = open(f'/proc/{process.pid}/status').read()
            seen[int(found[1])] = int(re.search(r'VmRSS:\s+(\d+) kB', status)[1])
            assert [json.loads(line)['iter'] for line in open(folder / 'out-grpo' / 'metrics.jsonl')][-1] >= int(found[1]) - 10
    assert process.wait() == 0, process.stderr.read()
    assert sorted(name for name in os.listdir(folder / 'out-grpo') if name.endswith('.pt')) == [
        'ckpt.pt',
        'ckpt_001900.pt',
        'ckpt_002000.pt',
        'ckpt_best.pt',
    ]
    first, last, files, files_last = seen[500], seen[2000], min(files[500]), min(files[2000])
    assert last < 1.03 * first and files_last == files, seen
    record_property(
        'survived',
        f"2,000 iterations: {first / 1024:.0f} MB at 500, {last / 1024:.0f} MB at 2,000 ({100 * (last / first - 1):+.1f} %), {files} and "
        f"{files_last} open files",
    )


# --- settings, numbers and rewards

def test_resume_with_other_settings(folder, undisturbed, record_property):
    """Differences are printed; another task, LoRA where there was none, a value head, or another start are refused."""
    shutil.copytree(undisturbed / 'out-grpo', folder / 'out-grpo')
    done = run(folder, '--init_from=resume', '--max_iters=13', '--learning_rate=1e-5', '--group_size=2')
    assert (
        done.returncode == 0
        and 'resuming with learning_rate = 1e-05 (it was 0.0006)' in done.stdout
        and 'resuming with group_size = 2 (it was 4)' in done.stdout
    ), done.stderr
    for more, words in (
        (['--task=alignment', '--scorer_url=http://127.0.0.1:9'], "task 'alignment'"),
        (['--lora_r=2'], 'has lora_r 0 and it is 2 now'),
        (['--advantage=gae'], "has advantage 'grpo' and it is 'gae' now"),
        (['--generator_checkpoint=other.pt', '--seed=7'], 'not the one this run started from'),
        (['--max_iters=5'], 'max_iters'),
    ):
        done = run(folder, '--init_from=resume', '--max_iters=20', *more)
        assert done.returncode == 1 and done.stderr.startswith('error: ') and words in done.stderr, (more, done.stderr[-1000:])
    record_property('survived', 'resuming with other settings: told of, and another task, start, LoRA or a value head refused')


def test_a_gradient_that_is_not_finite(folder, record_property):
    """
    In three iterations of a run the loss is NaN: their steps are skipped and counted, and the run ends well; five in a row end it, with its
    weights untouched.
    """
    broken = (
        'import grpo as _grpo\n_real, _calls = _grpo.policy_loss, [0]\n\ndef _broken(*arguments, **options):\n    _calls[0] += 1\n    '
        'loss, stats = _real(*arguments, **options)\n'
        '    return (loss * float("nan") if _calls[0] in BAD else loss), stats\n\n_grpo.policy_loss = _broken\n'
    )
    (folder / 'now_and_then.py').write_text(broken.replace('BAD', '(2, 3, 7)'))
    (folder / 'from_then_on.py').write_text(broken.replace('BAD', 'range(4, 100)'))
    done = run(folder, 'now_and_then.py')
    assert done.returncode == 0, done.stderr
    lines = log_of(folder)['metrics']
    assert (
        [line['bad_steps'] for line in lines[:-1]] == [0, 1, 1, 0, 0, 0, 1] + [0] * 5
        and lines[1]['loss'] is None
        and all(torch.isfinite(v).all() for v in weights_of(folder).values())
    )
    done = run(folder, 'from_then_on.py', '--out_dir=worse', '--save_interval=1')
    assert (
        done.returncode == 1
        and 'NaN or infinity' in done.stderr
        and '5 iterations in a row' in done.stderr
        and len(done.stderr.splitlines()) == 1
    ), done.stderr
    assert [line['bad_steps'] for line in log_of(folder, 'worse')['metrics']] == [0, 0, 0] + [1] * 5
    assert all(torch.isfinite(v).all() for v in weights_of(folder, 'worse').values())
    record_property(
        'survived', 'NaN in the loss of 3 of 12 iterations: skipped and counted; in 5 in a row: the run stops, its weights untouched'
    )


def test_a_reward_that_raises_in_one_rank(folder, record_property):
    """The rank says which reward raised what on which answer; the other stops too, and nothing hangs."""
    (folder / 'raises.py').write_text(
        'import os\n\ndef touchy(text, **_):\n    if os.environ.get("RANK") == "1":\n        raise KeyError("colour")\n    return '
        '0.5\n\nrewards = [touchy]\n'
    )
    since = time.monotonic()
    done = run(folder, 'raises.py', '--eval_interval=100', launcher=TORCHRUN)
    assert done.returncode != 0 and "reward 'touchy' raised KeyError: 'colour'" in done.stderr, done.stderr[-2000:]
    record_property(
        'survived', f"a reward that raises in one of two ranks: named, both end, after {time.monotonic() - since:.0f} s with their start"
    )
    (folder / 'raises.py').write_text((folder / 'raises.py').read_text().replace('== "1"', '== "0"'))
    processes = ranks_of(folder, 'raises.py')  # in the evaluation now, which rank 0 does alone
    printed = [process.communicate(timeout=240)[0] for process in processes]
    assert (
        [process.returncode for process in processes] == [1, 1]
        and "reward 'touchy' raised KeyError: 'colour'" in printed[0]
        and 'rank 0 has failed' in printed[1]
    ), printed


def test_a_scorer_that_is_gone_for_one_rank(folder, record_property):
    """
    A reward whose service one of two ranks cannot reach: both save and stop with one line, nothing is learned from half an answer, and the
    run goes on to the end it would have had.
    """
    (folder / 'gone.py').write_text(
        'import os as _os\n_calls = [0]\n\ndef _scorer(texts):\n    _calls[0] += len(texts) > 1  # not when it is tried, text by text\n   '
        ' if _calls[0] > 2 and _os.environ.get("RANK") == "1" and not _os.path.exists("back"):\n'
        '        raise ConnectionError("nobody listens")\n    return [len(text) for text in texts]\n\nrewards = '
        '[("helpfulness", 1.0, {"scorer": _scorer})]\n'
    )
    done = run(folder, 'gone.py', launcher=TORCHRUN)
    assert done.returncode != 0 and "reward 'helpfulness': nobody listens" in done.stderr and 'stopped in iteration' in done.stdout, (
        done.stderr[-2000:]
    )
    (folder / 'back').touch()
    assert run(folder, 'gone.py', '--init_from=resume', launcher=TORCHRUN).returncode == 0
    assert run(folder, 'gone.py', '--out_dir=whole', launcher=TORCHRUN).returncode == 0
    assert log_of(folder) == log_of(folder, 'whole')
    record_property('survived', 'a scorer that one of two ranks cannot reach: both save and stop, and go on to the same end')
