"""
Learn the shape of a mirror map (mirror.py), which no gradient within a run can, by evolution strategies
(tasks/evolution.py): a candidate's fitness is the held-out reward after a short run of train_grpo.py. Begin a
search that was stopped, or wants more generations, again: finished runs are not repeated.
$ python -m tools.learn_mirror config/learn_mirror.py
$ python train_grpo.py config/neural_mirror.py --mirror_checkpoint=out-learn-mirror/mirror.pt
"""
import math
import os

import torch

from mirror import MirrorMap
from runtime.checkpoint import save_checkpoint
from runtime.config import Count, Natural, NonNegative, Positive, configure
from tasks.evolution import move, pair_weights
from tools.compare import last_words, train_all, train_start


def learn_mirror(mirror, cfg, generation):
    """
    A generation of ES on mirror.logs, in place. Returns the fitness (pairs, 2), NaN for a run that failed,
    and the folder of the first; a candidate is a run of cfg.base with its own --mirror_checkpoint.
    """
    first = cfg.seed * 10 ** 6 + generation * 1000
    origin, seeds, jobs = mirror.logs.clone(), range(first, first + cfg.pairs), []
    for i, pair_seed in enumerate(seeds):
        for side, sign in enumerate((1, -1)):
            move([mirror.logs], [origin], pair_seed, sign * cfg.sigma)
            name = os.path.join(cfg.out_dir, 'candidates', f'{generation}-{i}-{side}')
            save_mirror(f'{name}.pt', mirror)
            run_seed = f'--seed={cfg.seed * 1000 + generation}'
            jobs.append(([cfg.base, *cfg.settings, f'--mirror_checkpoint={name}.pt', run_seed], name))
    fitness = []
    for run in train_all(jobs, cfg):
        fitness.append(math.nan if run is None else run['metrics'][-1].get(cfg.fitness_metric, math.nan))
    fitness = torch.tensor(fitness, dtype=torch.double).view(cfg.pairs, 2)
    mirror.logs.copy_(origin)
    for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds, strict=True):
        move([mirror.logs], [mirror.logs], pair_seed, cfg.learning_rate * weight)
    return fitness, jobs[0][1]


def save_mirror(path, mirror):
    save_checkpoint(path, {'kind': 'mirror', 'mirror': mirror.state_dict()})


def main(cfg):
    mirror = MirrorMap(cfg.mirror_init_scale, cfg.mirror_seed)
    metric = cfg.fitness_metric
    known = train_start(cfg, cfg.settings)['metrics'][-1]
    if metric not in known:
        raise RuntimeError(f"there is no metric {metric!r} in a run; there are: {', '.join(known)}")
    for generation in range(cfg.generations):
        fitness, first = learn_mirror(mirror, cfg, generation)
        valid = fitness[torch.isfinite(fitness)]
        if not len(valid):
            raise RuntimeError(f"generation {generation}: no run has {metric}; {last_words(first)}")
        spread = f"{metric} {valid.mean():.4f}, from {valid.min():.4f} to {valid.max():.4f}"
        failed = fitness.numel() - len(valid)
        print(f"generation {generation}: {spread}, {failed} of {fitness.numel()} runs failed", flush=True)
        save_mirror(os.path.join(cfg.out_dir, 'mirror.pt'), mirror)
    print(f"saved: train_grpo.py --mirror_checkpoint={os.path.join(cfg.out_dir, 'mirror.pt')} takes it")


if __name__ == '__main__':
    base = 'config/neural_mirror.py'  # the run that a candidate is tried in
    settings: list = []             # ['--key=value', ...] on top of it
    fitness_metric = 'eval/reward'
    generations: Count = 15
    pairs: Count = 5                # candidates of a generation: two a pair
    sigma: Positive = 0.5           # how far from the middle, in the logarithms
    learning_rate: NonNegative = 2.0
    mirror_init_scale: Positive = 0.01  # where the middle starts, as in grpo.py
    mirror_seed: Natural = 42
    seed: Natural = 1000            # of noise and runs
    processes: Count = 2            # runs at once
    threads: Count = 1              # of each; the result does not depend on `processes`
    out_dir = 'out-learn-mirror'    # mirror.pt, the last middle
    main(configure(globals()))
