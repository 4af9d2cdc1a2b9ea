"""Evolution strategies on functions whose gradient is known, on the state they must leave as it was, and on the real script."""
import json
import os
import subprocess

import pytest
import torch

from mirror import MirrorMap
from tasks import evolution
from tasks.evolution import centred_ranks, directions, es_step, pair_weights
from warm import PYTHON

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def test_ranks_and_weights_by_hand():
    four = centred_ranks(torch.tensor([[3.0, 1.0], [1e9, 2.0]])).tolist()
    assert four == [[pytest.approx(1 / 6), -0.5], [0.5, pytest.approx(-1 / 6)]]
    assert centred_ranks(torch.tensor([1.0, 1.0, 0.0])).tolist() == [0.25, 0.25, -0.5]
    nan = float('nan')  # half a pair tells nothing
    weights = pair_weights(torch.tensor([[1.0, 0.0], [nan, 5.0], [2.0, 3.0]])).tolist()
    assert weights == pytest.approx([(-1 / 6 + 0.5) / 4, 0, (1 / 6 - 0.5) / 4])
    assert pair_weights(torch.full((2, 2), nan)).tolist() == [0, 0]


def es_gradient(noise, fitness):
    """The direction of rising fitness (d,) that a step goes, from noise (N, d) and fitness (N, 2) at + and -."""
    return pair_weights(fitness) @ noise


def test_constant_fitness_has_no_gradient():
    assert (es_gradient(torch.randn(50, 20), torch.full((50, 2), 0.7)) == 0).all()


def test_the_gradient_of_a_quadratic():
    """1,000 pairs in 30 dimensions: the cosine with the true gradient is above 0.9."""
    generator = torch.Generator().manual_seed(0)
    x, scales = torch.randn(30, generator=generator), torch.rand(30, generator=generator) + 0.5
    noise = torch.randn(1000, 30, generator=generator)

    def f(x):
        return -(scales * x.square()).sum(dim=-1)

    estimate = es_gradient(noise, torch.stack((f(x + 0.1 * noise), f(x - 0.1 * noise)), dim=1))
    assert torch.cosine_similarity(estimate, -2 * scales * x, dim=0) > 0.9


def parameters():
    return [torch.nn.Parameter(x) for x in (torch.full((3, 4), 1 / 3), torch.full((3, 4), 0.1), torch.ones(5))]


def test_noise_differs_between_tensors_of_one_shape_and_comes_again():
    a, b = list(directions(parameters(), 7)), list(directions(parameters(), 7))
    assert all(map(torch.equal, a, b)) and not torch.equal(a[0], a[1])
    assert not torch.equal(a[0], next(directions(parameters(), 8)))


def test_a_step_by_hand_and_exact_restoring(monkeypatch):
    """
    Both sides by hand; with equal rewards the parameters come back bit for bit; else the step is the weighted noise; ranks share the pairs.
    """
    params, seen = parameters(), []
    before = [p.detach().clone() for p in params]
    es_step(params, lambda: seen.append([p.detach().clone() for p in params]) or 1.0, seed=3, pairs=4, sigma=0.05)
    assert all(map(torch.equal, params, before)) and len(seen) == 8
    for plus, minus in zip(seen[::2], seen[1::2], strict=True):
        for p, m, b in zip(plus, minus, before, strict=True):
            torch.testing.assert_close(p + m, 2 * b)
            assert not torch.equal(p, m)

    def value():
        return params[0].sum().item() - params[2].square().sum().item()

    fitness = es_step(params, value, seed=3, pairs=4, sigma=0.05, learning_rate=2.0)
    wanted = [b.clone() for b in before]
    for n, weight in enumerate(pair_weights(fitness).tolist()):
        for w, noise in zip(wanted, directions(before, 3 * 1_000_003 + n), strict=True):
            w += 2.0 * weight * noise
    for p, w in zip(params, wanted, strict=True):
        torch.testing.assert_close(p.detach(), w)
    asked = []
    monkeypatch.setattr(evolution, 'own_pairs', lambda pairs: range(1, pairs, 2))  # rank 1 of 2
    es_step(parameters(), lambda: asked.append(1) or 0.0, seed=3, pairs=4)
    assert len(asked) == 4


SMALL = ['--n_layer=1', '--n_embd=32', '--pretrain_iters=150', '--pretrain_until=1', '--group_size=2', '--generator_checkpoint=start.pt']
ARITHMETIC = [os.path.join(ROOT, 'config', 'arithmetic.py'), *SMALL, '--optimizer=es', '--batch_size=16', '--es_pairs=4',
              '--learning_rate=0.05', '--max_iters=4', '--eval_interval=2', '--eval_prompts_n=20', '--save_interval=2',
              '--log_interval=1', '--lr_schedule=constant']


def script(cwd, *arguments, launcher=(PYTHON,)):
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': ROOT}
    return subprocess.run([*launcher, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def train(cwd, *arguments, **launcher):
    result = script(cwd, os.path.join(ROOT, 'train_grpo.py'), *arguments, **launcher)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def metrics_of(folder):
    lines = map(json.loads, (folder / 'metrics.jsonl').read_text().splitlines())
    return [without(line, 'tokens_per_s', 'time_') for line in lines]


def without(line, *starts):
    return {key: value for key, value in line.items() if not key.startswith(starts)}


def test_the_script_resumes_and_shares_between_processes(tmp_path):
    """Bit-identical after a stop, and with two processes."""
    train(tmp_path, *ARITHMETIC, '--out_dir=one')
    train(tmp_path, *ARITHMETIC, '--out_dir=parted', '--max_iters=2')
    train(tmp_path, *ARITHMETIC, '--out_dir=parted', '--init_from=resume')
    torchrun = PYTHON, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'
    train(tmp_path, *ARITHMETIC, '--out_dir=two', launcher=torchrun)
    one, parted, two = (metrics_of(tmp_path / name) for name in ('one', 'parted', 'two'))
    kept = [[without(line, 'eval/', 'mean_length') for line in lines] for lines in (one, parted, two)]
    assert kept[0] == kept[1] == kept[2] and len(one) == 5
    assert one[-1] == parted[-1] == two[-1] and len({line['mean_fitness'] for line in one[:-1]}) > 1


TINY = [*SMALL, '--batch_size=8', '--kl_estimator=k3', '--divergence=neural_mirror', '--mirror_normalize=True',
        '--mirror_coefficient=200', '--learning_rate=0.02', '--max_iters=5', '--eval_prompts_n=60', '--retain_text=12+34=46',
        '--entropy_coef=1', '--eval_show=0']
ARMS = f'''
base = 'config/arithmetic.py'
_tiny = [*{TINY!r}, '--eval_interval=1']
arms = {{'learned': [*_tiny, '--mirror_checkpoint=whole/mirror.pt'], 'none': [*_tiny, '--divergence=kl']}}
start_settings = {TINY!r}
seeds = (1,)
start_row = True
columns = {{'eval/accuracy_greedy': 'greedy', 'mean_kl': 'KL'}}
plot_path = 'curve.png'
'''


def test_a_mirror_is_learned_the_same_in_parts_and_in_parallel_and_then_compared(tmp_path):
    """The search in one go with two processes equals the one that goes on with one; tools.compare trains with what it has learned."""
    os.symlink(os.path.join(ROOT, 'config'), tmp_path / 'config')
    search = ['-m', 'tools.learn_mirror', '--base=config/arithmetic.py', f'--settings={TINY!r}', '--pairs=1', '--sigma=2',
              '--fitness_metric=eval/text_log_prob']
    whole = script(tmp_path, *search, '--generations=2', '--out_dir=whole')
    assert whole.returncode == 0 and 'generation 1: eval/text_log_prob' in whole.stdout, whole.stdout + whole.stderr
    assert script(tmp_path, *search, '--generations=1', '--processes=1', '--out_dir=parted').returncode == 0
    first = (tmp_path / 'parted' / 'candidates' / '0-0-0' / 'metrics.jsonl').stat().st_mtime_ns
    more = script(tmp_path, *search, '--generations=2', '--processes=1', '--out_dir=parted')
    assert more.returncode == 0 and more.stdout.splitlines()[:2] == whole.stdout.splitlines()[:2]
    assert (tmp_path / 'parted' / 'candidates' / '0-0-0' / 'metrics.jsonl').stat().st_mtime_ns == first  # not repeated
    one, parted = (torch.load(tmp_path / name / 'mirror.pt', weights_only=True)['mirror']['logs'] for name in ('whole', 'parted'))
    assert torch.equal(one, parted) and not torch.equal(one, MirrorMap().logs)

    (tmp_path / 'arms.py').write_text(ARMS)
    done = script(tmp_path, '-m', 'tools.compare', 'arms.py')
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout
    last = (tmp_path / 'out-compare' / 'learned' / 'seed-1' / 'metrics.jsonl').read_text().splitlines()[-1]
    rows = f"| learned | {json.loads(last)['eval/accuracy_greedy']:.3f} | ", '| none | ', '| before training | '
    assert all(row in text for row in rows)
    assert (tmp_path / 'curve.png').read_bytes()[:4] == b'\x89PNG'
    again = script(tmp_path, '-m', 'tools.compare', 'arms.py')  # nothing is run again
    assert sorted(again.stdout.splitlines()) == sorted(done.stdout.splitlines())

    os.remove(tmp_path / 'whole' / 'mirror.pt')  # a run that goes on has its mirror in its checkpoint
    train(tmp_path, 'config/arithmetic.py', *TINY, '--mirror_checkpoint=whole/mirror.pt', '--eval_interval=1', '--seed=1',
          '--out_dir=out-compare/learned/seed-1', '--init_from=resume', '--max_iters=6')
