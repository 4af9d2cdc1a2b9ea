"""
Several ways to train, several seeds each, side by side: a table and a picture, by one command.
$ python compare.py config/compare_mirrors.py
Runs of train_grpo.py, each in a process of its own, `processes` at a time with `threads` threads. A run that is finished, with the same settings, files and code, is not
repeated; one that was stopped half-way begins anew.
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

from runtime.config import configure

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def fingerprint(arguments):
    """The arguments, what is in the files that they name, and the code."""
    def digest(*paths):
        found = hashlib.sha256()
        for path in paths:
            with open(path, 'rb') as f:
                found.update(f.read())
        return found.hexdigest()

    named = [[argument, digest(path)] if os.path.isfile(path := argument.rpartition('=')[2]) else [argument] for argument in arguments]
    return named + [['code', digest(*sorted(glob.glob(os.path.join(ROOT, '**', '*.py'), recursive=True)))]]


running = set()


def stop_with_children():
    """From now on SIGTERM ends what train() has started, too."""
    signal.signal(signal.SIGTERM, lambda *_: ([process.terminate() for process in list(running)], sys.exit(143)))


def train(arguments, out_dir, threads=1):
    """
    Run train_grpo.py with the arguments into out_dir, unless out_dir holds that run, finished. Returns {'metrics': the objects of its metrics.jsonl, 'seconds'}, or
    None if it failed; what it printed is in out_dir + '.log'.
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
        process = subprocess.Popen([sys.executable, os.path.join(ROOT, 'train_grpo.py'), *command], env=os.environ | {'OMP_NUM_THREADS': str(threads)}, stdout=log, stderr=log)
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
            return None  # stopped by a signal, which is not a failure of its own
    done = {'arguments': asked, 'metrics': metrics, 'seconds': seconds}
    with open(done_path + '.tmp', 'w', encoding='utf-8') as f:
        json.dump(done, f)
    os.replace(done_path + '.tmp', done_path)
    return done


def last_words(out_dir):
    """The last line that a run printed."""
    with open(out_dir + '.log', encoding='utf-8', errors='replace') as log:
        return ([line.strip() for line in log if line.strip()] or ['it printed nothing'])[-1][:300]


def train_all(jobs, processes, threads=1, tell=lambda number, result: None):
    """train() for each (arguments, out_dir) of jobs, several at a time; results in the order of the jobs. tell(number, result) hears of each when it ends."""
    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        futures = {pool.submit(train, *job, threads): number for number, job in enumerate(jobs)}
        try:
            for future in concurrent.futures.as_completed(futures):
                tell(futures[future], future.result())
        except BaseException:  # what runs is stopped, what waits does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise
        return [future.result() for future in futures]


def value_of(result, column):
    """A run's figure: of what is evaluated, the last; of what each iteration gives, the mean over the last sixth of the run; None if it has none."""
    if column == 'seconds':
        return result['seconds']
    found = [(m['iter'], m[column]) for m in result['metrics'] if column in m]
    if not found or column.startswith('eval/'):
        return found[-1][1] if found else None
    late = [value for it, value in found if it >= result['metrics'][-1]['iter'] * 5 / 6]
    return statistics.fmean(late or [found[-1][1]])


def table(results, columns):
    """Markdown: a row for each arm, mean and standard deviation over its seeds. results: {arm: [what train() returned, ...]}."""
    lines = ['| | ' + ' | '.join(columns.values()) + ' |', '|---' * (len(columns) + 1) + '|']
    for arm, runs in results.items():
        cells = []
        for column in columns:
            values = [value for value in (value_of(run, column) for run in runs) if value is not None]
            digits = 0 if column == 'seconds' else 3
            spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
            cells.append(f'{statistics.fmean(values):.{digits}f}{spread}' if values else '')
        lines.append(f'| {arm} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def plot(results, metric, label, path):
    """A PNG: metric over the iterations, the mean of each arm's seeds, least and most as a band."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("a plot needs matplotlib: pip install matplotlib, or --plot_path=None") from None
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    for arm, runs in results.items():
        curves = [{m['iter']: m[metric] for m in run['metrics'] if metric in m} for run in runs]
        at = sorted(set.intersection(*map(set, curves)))
        if len(at) < 2:
            continue
        line, = axes.plot(at, [statistics.fmean(c[i] for c in curves) for i in at], marker='.', label=arm)
        axes.fill_between(at, [min(c[i] for c in curves) for i in at], [max(c[i] for c in curves) for i in at], color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set(xlabel='iteration', ylabel=label)
    axes.grid(alpha=0.3)
    if results:
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)
    plt.close(figure)


def write_into(path, text):
    """Replace what stands between the lines <!-- figures --> and <!-- end of figures --> of the file by text; with None only look for the place. Raises ValueError where there is none."""
    document = ''
    if os.path.isfile(path):
        with open(path, encoding='utf-8') as f:
            document = f.read()
    found, n = re.subn(r'(<!-- figures -->\n).*?(<!-- end of figures -->)', lambda m: m[1] + (text or '') + '\n' + m[2], document, flags=re.DOTALL)
    if n != 1:
        raise ValueError(f"{path} must have one line <!-- figures --> and one <!-- end of figures --> after it, between which the table goes; it has {n} such places")
    if text is None:
        return
    with open(path, 'w', encoding='utf-8') as f:
        f.write(found)


if __name__ == '__main__':
    base = ''                                            # the config file of all arms
    arms: dict = {}                                      # {'name in the table': ['--key=value', ...]}
    start_row = False                                    # True: a first row with the model before training
    start_settings: list = []                            # ['--key=value', ...] of that one
    seeds = (1, 2, 3)
    columns: dict = {'eval/reward': 'reward', 'seconds': 'seconds'}  # {metric: heading}
    plot_metric = 'eval/reward'
    plot_label = 'held-out reward'
    plot_path: str | None = None                         # a .png
    document: str | None = None                          # a text file with a place for the table; None: it is only printed
    processes = 2                                        # runs at once
    threads = 1                                          # of each
    out_dir = 'out-compare'                              # the runs: out_dir/arm/seed
    configure(globals())
    if not base or not arms or not seeds or processes < 1:
        raise ValueError(f"base ({base!r}), arms ({len(arms)}), seeds ({seeds}) and processes ({processes}) must be given: see config/compare_mirrors.py")
    folder = lambda arm: os.path.join(out_dir, re.sub(r'\W+', '-', arm).strip('-'))
    if len(set(map(folder, arms))) < len(arms):
        raise ValueError(f"two arms would share a folder: {', '.join(map(folder, arms))}")
    if document:
        write_into(document, text=None)
    if plot_path:
        plot({}, plot_metric, plot_label, plot_path)
    stop_with_children()
    # What all arms start from is made once, before they run side by side.
    print(f"the start, then {len(arms)} arms with {len(seeds)} seeds; what a run prints is in {out_dir}/arm/seed.log", flush=True)
    start = train([base, *start_settings, f'--seed={seeds[0]}', '--max_iters=0'], os.path.join(out_dir, 'start'), threads * processes)
    if not start:
        raise RuntimeError(f"the start failed ({os.path.join(out_dir, 'start.log')} ends: {last_words(os.path.join(out_dir, 'start'))})")
    jobs = [([base, *settings, f'--seed={seed}'], os.path.join(folder(arm), f'seed-{seed}')) for seed in seeds for arm, settings in arms.items()]

    def tell(number, result):
        if result is None:
            raise RuntimeError(f"{jobs[number][1]} did not finish ({jobs[number][1]}.log ends: {last_words(jobs[number][1])}). What is finished is kept: mend it and run this again")
        print(f"{jobs[number][1]}: " + (', '.join(f'{heading} {value:.3f}' for column, heading in columns.items() if (value := value_of(result, column)) is not None)), flush=True)

    found = train_all(jobs, processes, threads, tell)
    results = {arm: found[i::len(arms)] for i, arm in enumerate(arms)}
    text = table(({'before training': [start]} if start_row else {}) | results, columns)
    print(text)
    if plot_path:
        plot(results, plot_metric, plot_label, plot_path)
        text += f'\n\n![{plot_label}]({os.path.relpath(plot_path, os.path.dirname(document or plot_path) or ".")})'
    if document:
        write_into(document, text)
