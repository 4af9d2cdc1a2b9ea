"""
Evolution strategies (arXiv 1703.03864): learn from rewards alone, without gradients. Weights are moved along random directions, both ways, and the step
goes where the reward was higher. The baseline that GRPO has to beat: `--optimizer=es` trains with the same rewards and no optimizer state. As a script it learns what no gradient inside a run can, the shape of a
mirror map (mirror.py): a candidate's fitness is the held-out reward after a short run of train_grpo.py with it.
$ python es.py config/learn_mirror.py                                   # then train_grpo.py --mirror_checkpoint=out-learn-mirror/mirror.pt
$ python es.py config/learn_mirror.py --init_from=resume

Noise is never kept: a direction is a seed. Both sides of a pair see the same prompts and the same sampling noise. What counts is the rank of a
reward among all, so that no outlier rules; a pair one side of which failed is left out whole, for half a pair would push along its noise.
Shapes: N pairs of directions · d numbers in all parameters.
"""
import json
import os

import torch

from mirror import MirrorMap
from runtime.checkpoint import save_checkpoint
from runtime.config import configure
from runtime.evolution import directions, pair_weights
from tools.compare import last_words, stop_with_children, train, train_all


def learn_mirror(mirror, candidate_arguments, generations, pairs, sigma, learning_rate, seed, out_dir, fitness_metric='eval/reward', processes=2, threads=1, start=0):
    """
    Generations start..generations of ES on mirror.logs, in place, so that the parameters stay positive; yields after each (generation, fitness (pairs, 2)). A candidate is
    run with candidate_arguments, a --mirror_checkpoint and, within a generation, one --seed; it fails with NaN. Its files lie in out_dir/candidates.
    """
    for generation in range(start, generations):
        origin, seeds, jobs = mirror.logs.clone(), [seed * 10 ** 6 + generation * 1000 + i for i in range(pairs)], []
        for i, pair_seed in enumerate(seeds):
            for side, sign in enumerate((1, -1)):
                noise, = directions([origin], pair_seed)
                mirror.logs.copy_(origin).add_(noise, alpha=sign * sigma)
                name = os.path.join(out_dir, 'candidates', f'{generation}-{i}-{side}')
                os.makedirs(os.path.dirname(name), exist_ok=True)
                save_mirror(name + '.pt', mirror)
                jobs.append(([*candidate_arguments, f'--mirror_checkpoint={name}.pt', f'--seed={seed * 1000 + generation}'], name))
        results = train_all(jobs, processes, threads)
        fitness = torch.tensor([float('nan') if result is None else result['metrics'][-1].get(fitness_metric, float('nan')) for result in results], dtype=torch.double).view(pairs, 2)
        mirror.logs.copy_(origin)
        for weight, pair_seed in zip(pair_weights(fitness).tolist(), seeds):
            noise, = directions([origin], pair_seed)
            mirror.logs.add_(noise, alpha=learning_rate * weight)
        yield generation, fitness


def save_mirror(path, mirror):
    save_checkpoint(path, {'kind': 'mirror', 'mirror': mirror.state_dict()})


if __name__ == '__main__':
    base = 'config/neural_mirror.py'                     # the run that a candidate is tried in
    settings: list = []                                  # ['--key=value', ...] on top of it
    fitness_metric = 'eval/reward'
    generations = 15
    pairs = 5                                            # candidates of a generation: two a pair
    sigma = 0.5                                          # how far they lie from the middle, in the logarithms of the parameters
    learning_rate = 2.0
    mirror_init_scale = 0.01                             # where the middle starts, as in train_grpo.py
    mirror_seed = 42
    seed = 1000                                          # of noise and runs
    processes = 2                                        # runs at once
    threads = 1                                          # of each; the result does not depend on `processes`
    init_from = 'scratch'                                # 'resume': go on after the last whole generation
    out_dir = 'out-learn-mirror'                         # mirror.pt, the last middle; state.json
    config = configure(globals())
    if init_from not in ('scratch', 'resume') or generations < 1 or pairs < 1 or sigma <= 0 or processes < 1:
        raise ValueError(f"init_from ({init_from!r}) is 'scratch' or 'resume'; generations ({generations}), pairs ({pairs}) and processes ({processes}) are at least 1, sigma ({sigma}) above 0")
    mirror, history, state_path = MirrorMap(mirror_init_scale, mirror_seed), [], os.path.join(out_dir, 'state.json')
    if init_from == 'resume':
        if not os.path.exists(state_path):
            raise FileNotFoundError(f"there is no {state_path} to resume from: name the out_dir of a started run, or leave --init_from=resume away")
        with open(state_path, encoding='utf-8') as f:
            state = json.load(f)
        for key, old in state['config'].items():
            if key != 'init_from' and old != json.loads(json.dumps(config))[key]:
                print(f"resuming with {key} = {config[key]!r} (it was {old!r})")
        mirror.logs.copy_(torch.tensor(state['logs']))
        history = state['history']
    elif os.path.exists(state_path):
        raise FileExistsError(f"{out_dir} holds an earlier search: go on with --init_from=resume, or name another --out_dir")
    stop_with_children()
    start = train([base, *settings, '--max_iters=0'], os.path.join(out_dir, 'start'), threads * processes)  # what all start from is made once
    if not start or fitness_metric not in start['metrics'][-1]:
        raise RuntimeError(f"the start failed ({os.path.join(out_dir, 'start.log')} ends: {last_words(os.path.join(out_dir, 'start'))})" if not start else f"there is no metric {fitness_metric!r} in a run; there are: {', '.join(start['metrics'][-1])}")
    for generation, fitness in learn_mirror(mirror, [base, *settings], generations, pairs, sigma, learning_rate, seed, out_dir, fitness_metric, processes, threads, len(history)):
        if not torch.isfinite(fitness).any():
            raise RuntimeError(f"all candidates of generation {generation} failed or have no {fitness_metric}; the first one's log ends: {last_words(os.path.join(out_dir, 'candidates', f'{generation}-0-0'))}")
        whole = fitness[torch.isfinite(fitness)]
        history.append({'generation': generation, 'fitness': fitness.tolist()})
        print(f"generation {generation}: {fitness_metric} {whole.mean():.4f}, from {whole.min():.4f} to {whole.max():.4f}, {fitness.numel() - len(whole)} of {fitness.numel()} runs failed", flush=True)
        save_mirror(os.path.join(out_dir, 'mirror.pt'), mirror)
        with open(state_path + '.tmp', 'w', encoding='utf-8') as f:
            json.dump({'config': config, 'logs': mirror.logs.tolist(), 'history': history}, f)  # a float's shortest text reads back as the same float
        os.replace(state_path + '.tmp', state_path)
    print(f"saved {os.path.join(out_dir, 'mirror.pt')}: train_grpo.py --divergence=neural_mirror --mirror_checkpoint=... takes it")
