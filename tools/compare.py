"""
Several ways to train, several seeds each, side by side: a table and a picture, by one command.
$ python -m tools.compare config/compare_advantages.py

Runs of train_grpo.py are processes, `processes` at a time with `threads` threads each. A finished run with
the same settings, files and code is not repeated; one that was stopped starts again.
"""
import atexit
import concurrent.futures
import glob
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

from formats.text_files import read_json, read_text, write_text
from runtime.config import Count, configure, locate
from runtime.made import content_of, content_of_path

ROOMS = ('tasks', 'data', 'rewards', 'sandbox', 'runtime', 'formats', 'kernels', 'report')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
running = set()


def fingerprint(arguments):
    """A hash of the arguments, the files that they name, and the code that a run executes."""
    paths = [locate(argument.rpartition('=')[2]) or '' for argument in arguments]
    for path in [path for path in paths if path.endswith('.py')]:
        for name in re.findall(r'^from config\.(\w+) import', read_text(path), re.MULTILINE):
            paths.append(os.path.join(ROOT, 'config', f'{name}.py'))
    for pattern in ('*.py', *(f'{room}/**/*.py' for room in ROOMS)):
        paths += sorted(glob.glob(os.path.join(ROOT, pattern), recursive=True))
    return content_of(arguments, list(map(content_of_path, filter(os.path.isfile, paths))))


def stop_running():
    for process in list(running):
        process.terminate()


def train(arguments, out_dir, threads):
    """
    Run train_grpo.py with the arguments into out_dir, unless out_dir holds that run, finished. Returns
    {'fingerprint', 'metrics': the rows of metrics.jsonl, 'seconds'}, or None if the run failed.
    """
    command = [*arguments, f'--out_dir={out_dir}']
    asked, done_path = fingerprint(command), os.path.join(out_dir, 'done.json')
    done = read_json(done_path) if os.path.exists(done_path) else {}
    if done.get('fingerprint') == asked:
        return done
    os.makedirs(os.path.dirname(out_dir) or '.', exist_ok=True)
    start = time.perf_counter()
    with open(out_dir + '.log', 'w', encoding='utf-8') as log:
        program = [sys.executable, os.path.join(ROOT, 'train_grpo.py'), *command]
        environment = os.environ | {'OMP_NUM_THREADS': str(threads)}
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
        running.add(process)
        code = process.wait()
        running.discard(process)
    if code:
        return None
    seconds = time.perf_counter() - start
    with open(os.path.join(out_dir, 'metrics.jsonl'), encoding='utf-8') as f:
        metrics = [json.loads(line) for line in f]
    if metrics[-1]['iter'] != read_json(os.path.join(out_dir, 'config.json'))['max_iters']:
        return None  # stopped by a signal, which exits with 0
    done = {'fingerprint': asked, 'metrics': metrics, 'seconds': seconds}
    write_text(done_path, json.dumps(done))
    return done


def train_start(cfg, arguments):
    """The start that all runs have in common, made before they run. From now on SIGTERM ends runs too."""
    atexit.register(stop_running)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if '{' in cfg.out_dir:
        raise ValueError(f"out_dir is {cfg.out_dir!r}: here arms and seeds have folders of their own in it")
    out_dir = os.path.join(cfg.out_dir, 'start')
    start = train([cfg.base, *arguments, '--max_iters=0'], out_dir, cfg.threads * cfg.processes)
    if not start:
        raise RuntimeError(f"the start failed; {last_words(out_dir)}")
    return start


def last_words(out_dir):
    """The last line that a run printed, and where."""
    with open(out_dir + '.log', encoding='utf-8', errors='replace') as log:
        *_, last = ['nothing', *filter(None, map(str.strip, log))]
    return f"{out_dir}.log ends with: {last[:300]}"


def train_all(jobs, cfg, tell=None):
    """What train() returns for the jobs (arguments, out_dir); tell(number, result) is called as each ends."""
    with concurrent.futures.ThreadPoolExecutor(cfg.processes) as pool:
        futures = {pool.submit(train, *job, cfg.threads): number for number, job in enumerate(jobs)}
        try:
            for future in concurrent.futures.as_completed(futures):
                result = future.result()
                if tell:
                    tell(futures[future], result)
        except BaseException:  # running jobs are stopped, waiting jobs do not start
            pool.shutdown(wait=False, cancel_futures=True)
            stop_running()
            raise
        return [future.result() for future in futures]


def curve_of(run, metric):
    """{iteration: value}"""
    return {row['iter']: row[metric] for row in run['metrics'] if metric in row}


def value_of(run, column):
    """A run's figure or None: the last of an evaluation, else the mean of the run's last sixth."""
    if column == 'seconds':
        return run['seconds']
    curve = curve_of(run, column)
    if not curve:
        return None
    *_, last = curve.values()
    late = [value for it, value in curve.items() if it >= run['metrics'][-1]['iter'] * 5 / 6]
    return last if column.startswith('eval/') else statistics.fmean(late or [last])


def table(results, columns):
    """Markdown. results: {arm: [what train() returned for each seed]}."""
    rows = [['', *columns.values()], ['---'] * (len(columns) + 1)]
    for arm, runs in results.items():
        rows.append([arm, *(cell(runs, column) for column in columns)])
    return '\n'.join(f"| {' | '.join(row)} |" for row in rows)


def cell(runs, column):
    """Mean and standard deviation of a figure over the runs that have it."""
    values = [value_of(run, column) for run in runs]
    values = [value for value in values if value is not None]
    digits = 0 if column == 'seconds' else 3
    spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.{digits}f}{spread}' if values else ''


def plot(results, cfg):
    """A PNG of cfg.plot_metric over the iterations: the mean of each arm's seeds, their range as a band."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    for arm, runs in results.items():
        curves = [curve_of(run, cfg.plot_metric) for run in runs]
        at = sorted(set.intersection(*map(set, curves)))
        values = list(zip(*(map(curve.get, at) for curve in curves), strict=True))  # of all seeds, in turn
        if len(at) > 1:
            line, = axes.plot(at, list(map(statistics.fmean, values)), marker='.', label=arm)
            band = list(map(min, values)), list(map(max, values))
            axes.fill_between(at, *band, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel='iteration', ylabel=cfg.plot_label)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(cfg.plot_path, dpi=120)


def main(cfg):
    if not cfg.base or not cfg.arms or not cfg.seeds:
        raise ValueError("base, arms and seeds must be given: see config/compare_advantages.py")
    folders = {arm: os.path.join(cfg.out_dir, re.sub(r'\W+', '-', arm).strip('-')) for arm in cfg.arms}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"two arms would share a folder: {', '.join(folders.values())}")
    if cfg.plot_path and not importlib.util.find_spec('matplotlib'):
        raise ImportError("a plot needs matplotlib: pip install matplotlib, or --plot_path=None")
    size = f"{len(cfg.arms)} arms with {len(cfg.seeds)} seeds"
    print(f"the start, then {size}; logs: {cfg.out_dir}/arm/seed.log", flush=True)
    start = train_start(cfg, [*cfg.start_settings, f'--seed={cfg.seeds[0]}'])
    jobs = [([cfg.base, *settings, f'--seed={seed}'], os.path.join(folders[arm], f'seed-{seed}'))
            for seed in cfg.seeds for arm, settings in cfg.arms.items()]

    def tell(number, result):
        folder = jobs[number][1]
        if result is None:
            raise RuntimeError(f"a run failed, finished ones are kept; {last_words(folder)}")
        figures = [f'{heading} {cell([result], column)}' for column, heading in cfg.columns.items()]
        print(f"{folder}: {', '.join(figures)}", flush=True)

    finished = train_all(jobs, cfg, tell)
    results = {arm: finished[i::len(cfg.arms)] for i, arm in enumerate(cfg.arms)}
    print(table(({'before training': [start]} if cfg.start_row else {}) | results, cfg.columns))
    if cfg.plot_path:
        plot(results, cfg)


if __name__ == '__main__':
    base = ''                       # the config file of all arms
    arms: dict = {}                 # {'name in the table': ['--key=value', ...]}
    start_row = False               # True: a first row with the model before training
    start_settings: list = []       # ['--key=value', ...] of that one
    seeds = (1, 2, 3)
    columns: dict = {'eval/reward': 'reward', 'seconds': 'seconds'}  # {metric: heading}
    plot_metric = 'eval/reward'
    plot_label = 'held-out reward'
    plot_path: str | None = None    # a .png
    processes: Count = 2            # runs at once
    threads: Count = 1              # of each
    out_dir = 'out-compare'         # the runs: out_dir/arm/seed
    main(configure(globals()))
