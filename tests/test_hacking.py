"""
The patches of docs/hacking.md: each applies to today's code, is as small as the page says, trains, and computes what it says, worked out by
hand here.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
PATCHES = sorted((ROOT / 'docs' / 'patches').glob('*.patch'))
# An untrained model never adds right: here an answer is right when it begins with an even digit, so that groups have both kinds.
CONFIG = """
def even(text, **fields):
    return float(text[:1] in '02468')

rewards = [even]
"""
TOY = [
    'config/arithmetic.py',
    'toy.py',
    '--n_layer=1',
    '--n_head=2',
    '--n_embd=16',
    '--pretrain_iters=20',
    '--pretrain_until=1.0',
    '--batch_size=8',
    '--max_iters=6',
    '--log_interval=1',
    '--save_interval=6',
    '--eval_interval=6',
    '--eval_prompts_n=8',
    '--eval_show=1',
    '--device=cpu',
    '--precision=fp32',
]


@pytest.fixture
def patched(tmp_path):
    """patched(name): a copy of the code with that patch, and how many lines it adds to which files."""
    def apply(name):
        shutil.copytree(ROOT, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.*', 'out-*', 'tests', '__pycache__'))
        (tmp_path / 'toy.py').write_text(CONFIG)
        patch = ROOT / 'docs' / 'patches' / f'{name}.patch'
        environment = {
            **os.environ,
            'GIT_CEILING_DIRECTORIES': str(tmp_path.parent),
        }  # inside some other checkout, git would apply nothing and say nothing
        for option in ('--numstat', '--verbose'):
            done = subprocess.run(['git', 'apply', option, patch], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{patch.name} no longer applies; make the change by hand and keep `git diff -U1`: {done.stderr}"
            if option == '--numstat':
                lines = [line.split('\t') for line in done.stdout.splitlines()]
        return tmp_path, {file: int(added) for added, _, file in lines}
    return apply


def start(folder, *arguments):
    return subprocess.run(
        [PYTHON, 'train_grpo.py', *arguments],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=240,
    )


def train_in(folder, *arguments):
    """The run's metrics and samples."""
    done = start(folder, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    out = next(argument.partition('=')[2] for argument in arguments if argument.startswith('--out_dir='))
    return [[json.loads(line) for line in open(folder / out / name)] for name in ('metrics.jsonl', 'samples.jsonl')]


def train(folder, *arguments):
    return train_in(folder, *TOY, *arguments, '--out_dir=out-arithmetic-grpo')


def load(path):
    """The module in this file, beside the one of its name that is not patched."""
    spec = importlib.util.spec_from_file_location(f'patched_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_patches():
    """docs/hacking.md holds each patch word for word, and there is none that no test below runs."""
    page = (ROOT / 'docs' / 'hacking.md').read_text()
    assert [path.stem for path in PATCHES] == ['digit_sum', 'hellinger', 'maxrl', 'no_repeats', 'sapo']
    for path in PATCHES:
        added = [line for line in path.read_text().splitlines() if line.startswith(('+', '-')) and not line.startswith(('+++', '---'))]
        assert added and '\n'.join(added) in page, f"docs/hacking.md does not show {path.name} as it is"


def test_a_new_advantage(patched):
    folder, added = patched('maxrl')
    assert added.keys() == {'grpo.py'} and added['grpo.py'] <= 10
    compute_advantages = load(folder / 'grpo.py').compute_advantages
    # 1 of 4 right: (1 - 1/4) / (1/4) = 3 and (0 - 1/4) / (1/4) = -1; 3 of 4: 1/3 and -1; none, or all: nothing to learn
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    wanted = torch.tensor([[3.0, -1, -1, -1], [1 / 3, 1 / 3, 1 / 3, -1], [0, 0, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(compute_advantages(rewards, 'maxrl'), wanted)
    with pytest.raises(ValueError, match='must be 0 or 1'):
        compute_advantages(torch.tensor([[0.5, 1.0]]), 'maxrl')
    _, samples = train(folder, '--advantage=maxrl', '--group_size=4')
    groups = [samples[start:start + 4] for start in range(0, len(samples), 4)]
    mixed = 0
    for group in groups:
        right = sum(sample['reward/even'] for sample in group)
        mixed += 0 < right < 4
        for sample in group:
            assert sample['advantage'] == pytest.approx((4 / right - 1 if sample['reward/even'] else -1.0) if right else 0.0, abs=1e-6)
    assert len(groups) == 6 and mixed >= 2


def test_a_new_divergence(patched):
    folder, added = patched('hellinger')
    assert added.keys() == {'mirror.py'} and added['mirror.py'] <= 10
    token_divergence = load(folder / 'mirror.py').token_divergence
    p, p_ref = torch.tensor([0.64, 0.36, 1e-12, 1.0]).log(), torch.tensor([0.36, 0.64, 1.0, 1.0]).log()
    # 2 (0.8 - 0.6)^2 = 0.08 both ways round; 2 (0 - 1)^2 = 2; over p: 0.08 / 0.64 = 0.125
    torch.testing.assert_close(token_divergence(p, p_ref, 'hellinger'), torch.tensor([0.08, 0.08, 2.0, 0.0]), atol=1e-5, rtol=0)
    assert token_divergence(p[:1], p_ref[:1], 'hellinger', 'is').item() == pytest.approx(0.125)
    # of a coin, by the sum over its sides: near the KL, 0.28 ln(16 / 9) = 0.1611
    assert token_divergence(p[:2], p_ref[:2], 'hellinger').sum().item() == pytest.approx(0.16) and 0.28 * math.log(16 / 9) == pytest.approx(
        0.1611, abs=1e-4
    )
    lines, _ = train(folder, '--divergence=hellinger', '--mirror_weighting=is', '--kl_estimator=k3', '--mirror_coefficient=0.5')
    assert lines[0]['mirror_penalty'] == pytest.approx(0, abs=1e-9)  # the policy is the reference
    for line in lines[2:-1]:
        assert line['mean_kl'] > 1e-6 and line['mirror_penalty'] == pytest.approx(0.5 * line['mean_kl'], rel=0.1)


def test_a_new_reward(patched, monkeypatch):
    folder, added = patched('no_repeats')
    assert added.keys() == {'rewards/form.py'} and added['rewards/form.py'] <= 10
    monkeypatch.setattr('rewards.reward.REWARDS', {})  # the patched file enters its rewards here
    no_repeats = load(folder / 'rewards' / 'form.py').no_repeats
    assert no_repeats('the cat sat and the cat sat', n=2) == 4 / 6  # the cat, cat sat, sat and, and the; then two of them again
    assert no_repeats('1212', n=2, words=False) == 2 / 3            # 12, 21, 12
    assert no_repeats('too short') == 1.0
    _, samples = train(folder, "--rewards=[('no_repeats', 1.0, {'n': 1, 'words': False})]")
    values = [sample['reward/no_repeats'] for sample in samples]
    assert (
        values == [pytest.approx(len(set(s['completion'])) / max(1, len(s['completion'])) if s['completion'] else 1.0) for s in samples]
        and len(set(values)) > 2
    )


def test_a_new_loss(patched):
    folder, added = patched('sapo')
    assert added.keys() == {'grpo.py'} and added['grpo.py'] <= 10
    policy_loss = load(folder / 'grpo.py').policy_loss
    ratio, A = torch.tensor([[1.0, 1.5], [1.0, 0.5]], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64)
    logps = ratio.log().requires_grad_()
    loss, _ = policy_loss(logps, torch.zeros(2, 2, dtype=torch.float64), A, torch.ones(2, 2, dtype=torch.bool), 'sapo')
    # sigmoid(0) = 1/2, so at ratio 1 the gain is 2 A / tau; each completion is averaged over its 2 tokens, then both over 2
    first = 2.0 * 4 * (0.5 + 1 / (1 + math.exp(-0.5))) / 2
    second = -1.0 * 4 / 1.05 * (0.5 + 1 / (1 + math.exp(1.05 * 0.5))) / 2
    assert loss.item() == pytest.approx(-(first + second) / 2, abs=1e-7)
    loss.backward()
    assert logps.grad[:, 0].tolist() == pytest.approx([-2.0 / 4, 1.0 / 4])  # at ratio 1: minus A, a share of 1/4
    faded = 1 / (1 + math.exp(-0.5))
    assert logps.grad[0, 1].item() == pytest.approx(-2.0 / 4 * 1.5 * 4 * faded * (1 - faded))
    lines, _ = train(folder, '--loss_type=sapo', '--num_epochs_per_rollout=2')
    assert all(math.isfinite(line['loss']) for line in lines[:-1])


def test_a_new_task(patched):
    folder, added = patched('digit_sum')
    assert len(added) <= 3 and added.keys() == {'tasks/digit_sum.py', 'tasks/__init__.py', 'train_grpo.py'}
    sizes = [argument for argument in TOY if argument.startswith('--')]
    arguments = [
        '--task=digit_sum',
        *sizes,
        '--digits=2',
        '--max_new_tokens=2',
        '--block_size=16',
        '--group_size=4',
        '--generator_checkpoint=start.pt',
    ]
    metrics, samples = train_in(folder, *arguments, '--out_dir=out-task')
    assert 'eval/accuracy_greedy' in metrics[-1] and len(samples) == 6 * 4
    for sample in samples:
        text, wanted = sample['completion'], int(sample['prompt'][0]) + int(sample['prompt'][1])
        assert int(sample['answer']) == wanted
        assert sample['reward/nearness'] == pytest.approx(1 / (1 + abs(int(text) - wanted)) if text.isdecimal() else 0.0)
    for wrong, words in (
        ('--task=completion', "digits is not a setting of task 'completion', it is for digit_sum"),
        ("--rewards=['exact_answer']", "rewards is not a setting of task 'digit_sum'"),
    ):
        done = start(folder, *arguments, wrong)
        assert done.returncode == 1 and words in done.stderr and done.stderr.count('\n') == 1, done.stderr
