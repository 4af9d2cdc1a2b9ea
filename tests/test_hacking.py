"""The patches of docs/hacking.md: each applies to today's code, is as small as the page says, trains, and computes what it says, worked out by hand here."""
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
TOY = ['config/arithmetic.py', 'toy.py', '--n_layer=1', '--n_head=2', '--n_embd=16', '--pretrain_iters=20', '--pretrain_until=1.0', '--batch_size=8', '--max_iters=6', '--log_interval=1', '--save_interval=6', '--eval_interval=6',
       '--eval_prompts_n=8', '--eval_show=1', '--device=cpu', '--precision=fp32']


@pytest.fixture
def patched(tmp_path):
    """patched(name): a copy of the code with that patch, and how many lines it adds to which files."""
    def apply(name):
        for folder in ('.', 'config', 'data'):
            for path in (ROOT / folder).glob('*.py' if folder == '.' else '**/*.py'):
                target = tmp_path / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        (tmp_path / 'toy.py').write_text(CONFIG)
        patch = ROOT / 'docs' / 'patches' / f'{name}.patch'
        environment = {**os.environ, 'GIT_CEILING_DIRECTORIES': str(tmp_path.parent)}  # inside some other checkout, git would apply nothing and say nothing
        for option in ('--numstat', '--verbose'):
            done = subprocess.run(['git', 'apply', option, patch], cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{patch.name} no longer applies; make the change by hand and keep `git diff -U1`: {done.stderr}"
            if option == '--numstat':
                lines = [line.split('\t') for line in done.stdout.splitlines()]
        return tmp_path, {file: int(added) for added, _, file in lines}
    return apply


def train(folder, *arguments):
    """The run's metrics and samples."""
    done = subprocess.run([PYTHON, 'train_grpo.py', *TOY, *arguments], cwd=folder, env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return [[json.loads(line) for line in open(folder / 'out-arithmetic-grpo' / name)] for name in ('metrics.jsonl', 'samples.jsonl')]


def load(path):
    """The module in this file, beside the one of its name that is not patched."""
    spec = importlib.util.spec_from_file_location(f'patched_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_patches():
    """docs/hacking.md holds each patch word for word, and there is none that no test below runs."""
    page = (ROOT / 'docs' / 'hacking.md').read_text()
    assert [path.stem for path in PATCHES] == ['hellinger', 'maxrl', 'no_repeats']
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
    assert token_divergence(p[:2], p_ref[:2], 'hellinger').sum().item() == pytest.approx(0.16) and 0.28 * math.log(16 / 9) == pytest.approx(0.1611, abs=1e-4)
    lines, _ = train(folder, '--divergence=hellinger', '--mirror_weighting=is', '--kl_estimator=k3', '--mirror_coefficient=0.5')
    assert lines[0]['mirror_penalty'] == pytest.approx(0, abs=1e-9)  # the policy is the reference
    for line in lines[2:-1]:
        assert line['mean_kl'] > 1e-6 and line['mirror_penalty'] == pytest.approx(0.5 * line['mean_kl'], rel=0.1)


def test_a_new_reward(patched):
    folder, added = patched('no_repeats')
    assert added.keys() == {'rewards.py'} and added['rewards.py'] <= 10
    no_repeats = load(folder / 'rewards.py').no_repeats
    assert no_repeats('the cat sat and the cat sat', n=2) == 4 / 6  # the cat, cat sat, sat and, and the; then two of them again
    assert no_repeats('1212', n=2, words=False) == 2 / 3            # 12, 21, 12
    assert no_repeats('too short') == 1.0
    _, samples = train(folder, "--rewards=[('no_repeats', 1.0, {'n': 1, 'words': False})]")
    values = [sample['reward/no_repeats'] for sample in samples]
    assert values == [pytest.approx(len(set(s['completion'])) / max(1, len(s['completion'])) if s['completion'] else 1.0) for s in samples] and len(set(values)) > 2
