"""
Several ways to train, several seeds each, side by side: a table and a picture, by one command.
$ python -m tools.compare config/compare_advantages.py

Runs of train_grpo.py are processes, `processes` at a time with `threads` threads each. A finished run with
the same settings, files and code is not repeated; one that was stopped starts again.
"""
import concurrent.futures
import glob
import hashlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

from runtime.config import Count, configure

ROOMS = ('tasks', 'data', 'rewards', 'sandbox', 'runtime', 'formats', 'report')
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def digest(*paths):
    """A hash of the files' contents."""
    total = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as f:
            total.update(f.read())
    return total.hexdigest()


def fingerprint(arguments):
    """The arguments, the contents of the files that they name, and of the code that a run executes."""
    named = []
    for argument in arguments:
        path = argument.rpartition('=')[2]
        named.append([argument, digest(path)] if os.path.isfile(path) else [argument])
    code = glob.glob(os.path.join(ROOT, '*.py'))
    for room in ROOMS:
        code += glob.glob(os.path.join(ROOT, room, '**', '*.py'), recursive=True)
    return [*named, ['code', digest(*sorted(code))]]


running = set()


def stop_running(*_):
    for process in list(running):
        process.terminate()


def stop_with_children():
    """From now on SIGTERM also ends the processes of train()."""
    def stop(*_):
        stop_running()
        sys.exit(143)

    signal.signal(signal.SIGTERM, stop)


def train(arguments, out_dir, threads=1):
    """
    Run train_grpo.py with the arguments into out_dir, unless out_dir holds that run, finished.

    Returns {'arguments', 'metrics': the rows of metrics.jsonl, 'seconds'}, or None if the run failed; its
    output is in out_dir + '.log'.
    """
    command = [*arguments, f'--out_dir={out_dir}']
    asked = fingerprint(command)
    done_path = os.path.join(out_dir, 'done.json')
    if os.path.exists(done_path):
        with open(done_path, encoding='utf-8') as f:
            done = json.load(f)
        if done['arguments'] == asked:
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
    with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
        if metrics[-1]['iter'] != json.load(f)['max_iters']:
            return None  # stopped by a signal, which exits with 0
    done = {'arguments': asked, 'metrics': metrics, 'seconds': seconds}
    with open(done_path + '.tmp', 'w', encoding='utf-8') as f:
        json.dump(done, f)
    os.replace(done_path + '.tmp', done_path)
    return done


def last_words(out_dir):
    """The last line that a run printed."""
    with open(out_dir + '.log', encoding='utf-8', errors='replace') as log:
        lines = [line.strip() for line in log if line.strip()]
    return lines[-1][:300] if lines else 'it printed nothing'


def train_all(jobs, processes, threads=1, tell=None):
    """
    train() for each (arguments, out_dir) of jobs, several at a time; the results in the order of jobs.

    tell(number, result) is called as each ends.
    """
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(train, *job, threads): number for number, job in enumerate(jobs)}
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


def value_of(result, column):
    """A run's figure, None without one: the last of an evaluation, else the mean of the run's last sixth."""
    if column == 'seconds':
        return result['seconds']
    points = [(m['iter'], m[column]) for m in result['metrics'] if column in m]
    if not points or column.startswith('eval/'):
        return points[-1][1] if points else None
    late = [value for it, value in points if it >= result['metrics'][-1]['iter'] * 5 / 6]
    return statistics.fmean(late or [points[-1][1]])


def table(results, columns):
    """Markdown, a row for each arm. results: {arm: [what train() returned for each seed]}."""
    lines = ['| | ' + ' | '.join(columns.values()) + ' |', '|---' * (len(columns) + 1) + '|']
    for arm, runs in results.items():
        cells = [cell(runs, column) for column in columns]
        lines.append(f'| {arm} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def cell(runs, column):
    """Mean and standard deviation of a figure over the runs that have it."""
    values = [value_of(run, column) for run in runs]
    values = [value for value in values if value is not None]
    digits = 0 if column == 'seconds' else 3
    spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.{digits}f}{spread}' if values else ''


def curves_of(runs, metric):
    """The iterations at which all runs have the metric, and its values in each run there."""
    of_runs = []
    for run in runs:
        of_runs.append({m['iter']: m[metric] for m in run['metrics'] if metric in m})
    at = sorted(set.intersection(*map(set, of_runs)))
    values = []
    for it in at:
        values.append([curve[it] for curve in of_runs])
    return at, values


def plot(results, metric, label, path):
    """A PNG of the metric over the iterations: the mean of each arm's seeds, their range as a band."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install matplotlib, or --plot_path=None") from None
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    for arm, runs in results.items():
        at, curves = curves_of(runs, metric)
        if len(at) > 1:
            line, = axes.plot(at, list(map(statistics.fmean, curves)), marker='.', label=arm)
            band = list(map(min, curves)), list(map(max, curves))
            axes.fill_between(at, *band, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel='iteration', ylabel=label)
    axes.grid(alpha=0.3)
    if results:
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)
    plt.close(figure)


def write_into(path, text):
    """
    Put text between the file's lines <!-- figures --> and <!-- end of figures -->; None only checks for them.

    Raises ValueError unless the file has one such place.
    """
    document = ''
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as f:
            document = f.read()
    begin, end = (f'<!-- {mark} -->' for mark in ('figures', 'end of figures'))
    place = re.compile(f'{begin}\n.*?{end}', re.DOTALL)
    written, n = place.subn(lambda _: f'{begin}\n{text}\n{end}', document)
    if n != 1:
        raise ValueError(f"{path} has {n} places for the table; it needs one: the lines {begin} and {end}")
    if text is not None:
        with open(path, 'w', encoding='utf-8') as f:
            f.write(written)


def main(cfg):
    if not cfg.base or not cfg.arms or not cfg.seeds:
        raise ValueError("base, arms and seeds must be given: see config/compare_advantages.py")
    folders = {arm: os.path.join(cfg.out_dir, re.sub(r'\W+', '-', arm).strip('-')) for arm in cfg.arms}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"two arms would share a folder: {', '.join(folders.values())}")
    if cfg.document:
        write_into(cfg.document, text=None)
    if cfg.plot_path:
        plot({}, cfg.plot_metric, cfg.plot_label, cfg.plot_path)
    stop_with_children()
    size = f"{len(cfg.arms)} arms with {len(cfg.seeds)} seeds"
    print(f"the start, then {size}; logs: {cfg.out_dir}/arm/seed.log", flush=True)
    start_dir = os.path.join(cfg.out_dir, 'start')  # the arms' common start is made once, before they run
    arguments = [cfg.base, *cfg.start_settings, f'--seed={cfg.seeds[0]}', '--max_iters=0']
    start = train(arguments, start_dir, cfg.threads * cfg.processes)
    if not start:
        raise RuntimeError(f"the start failed ({start_dir}.log ends: {last_words(start_dir)})")
    results = run_arms(cfg, folders)
    text = table(({'before training': [start]} if cfg.start_row else {}) | results, cfg.columns)
    print(text)
    if cfg.plot_path:
        plot(results, cfg.plot_metric, cfg.plot_label, cfg.plot_path)
        beside = os.path.dirname(cfg.document or cfg.plot_path) or '.'
        text += f'\n\n![{cfg.plot_label}]({os.path.relpath(cfg.plot_path, beside)})'
    if cfg.document:
        write_into(cfg.document, text)


def run_arms(cfg, folders):
    """{arm: what train() returned for each seed}."""
    jobs = []
    for seed in cfg.seeds:
        for arm, settings in cfg.arms.items():
            jobs.append(([cfg.base, *settings, f'--seed={seed}'], os.path.join(folders[arm], f'seed-{seed}')))

    def tell(number, result):
        folder = jobs[number][1]
        if result is None:
            raise RuntimeError(f"{folder} failed; its log ends: {last_words(folder)}; finished runs are kept")
        values = {heading: value_of(result, column) for column, heading in cfg.columns.items()}
        shown = [f'{heading} {value:.3f}' for heading, value in values.items() if value is not None]
        print(f"{folder}: {', '.join(shown)}", flush=True)

    finished = train_all(jobs, cfg.processes, cfg.threads, tell)
    return {arm: finished[i::len(cfg.arms)] for i, arm in enumerate(cfg.arms)}


if __name__ == '__main__':
    base = ''                               # the config file of all arms
    arms: dict = {}                         # {'name in the table': ['--key=value', ...]}
    start_row = False                       # True: a first row with the model before training
    start_settings: list = []               # ['--key=value', ...] of that one
    seeds = (1, 2, 3)
    columns: dict = {'eval/reward': 'reward', 'seconds': 'seconds'}  # {metric: heading}
    plot_metric = 'eval/reward'
    plot_label = 'held-out reward'
    plot_path: str | None = None            # a .png
    document: str | None = None             # a text file with a place for the table; None: print it only
    processes: Count = 2                    # runs at once
    threads: Count = 1                      # of each
    out_dir = 'out-compare'                 # the runs: out_dir/arm/seed
    main(configure(globals()))
