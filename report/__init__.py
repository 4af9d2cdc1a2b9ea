"""
What runs did, as one page: out_dir/report.html opens in any browser, from the disk, without a network.
A run may be going on, resumed or torn; what is missing is left out. Long ones are thinned. The charts are
uPlot's (report/uplot, MIT licence). Texts of a run are strangers' texts: they go in as JSON without a '<',
are shown as text nodes alone, and the page's Content-Security-Policy loads nothing and runs only the scripts
whose hashes it names.
"""
import base64
import fnmatch
import hashlib
import itertools
import json
import math
import os
import re

from report.verdict import verdict_of

FOLDER = os.path.dirname(os.path.abspath(__file__))
POINTS = 250                     # of a curve
HISTOGRAMS, BINS, DOTS = 40, 24, 200  # iterations with their rewards; bars and dots of each
GROUPS, COMPLETIONS, TOKENS = 24, 16, 40_000  # groups; completions of each; tokens of all, about
PROMPT, COMPLETION = 2000, 4000  # characters of a text
ITERATION = re.compile(rb'"iter":\s*(\d+)')


def finite(x):
    # far enough from the edge of floats for sums and differences
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def short(x):
    """Five digits are enough for a picture; None for what is no number."""
    if not finite(x):
        return None
    return int(x) if float(x).is_integer() and abs(x) < 1e6 else float(f'{x:.5g}')


def mean(values):
    return short(sum(values) / len(values)) if values else None


def evenly(values, n):
    """At most n of a list, the first and the last among them."""
    if len(values) <= n:
        return values
    return [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]


def clipped(text, n, keep_end=False):
    """At most n characters of whatever a log has for a text."""
    text = text if isinstance(text, str) else json.dumps(text)
    if len(text) <= n:
        return text
    return '… ' + text[-n:] if keep_end else text[:n] + ' …'


# -----------------------------------------------------------------------------
# a run's logs

def lines_of(out_dir, name):
    path = os.path.join(out_dir, name)
    with open(path if os.path.exists(path) else os.devnull, 'rb') as f:
        yield from f


def objects(lines):
    """The objects with an iteration; lines that are torn, or hold something else, are left out."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and finite(record.get('iter')):
            yield record


def picked(out_dir, name, n):
    """
    {iteration: its objects} for at most n iterations of a log. No other line is parsed, because samples.jsonl
    grows to a hundred megabytes.
    """
    def iterations_and_lines():
        for line in lines_of(out_dir, name):
            if match := ITERATION.search(line[:200]):
                yield int(match[1]), line

    iterations = sorted({it for it, _ in iterations_and_lines()})
    kept = {it: [] for it in evenly(iterations, n)}
    for it, line in iterations_and_lines():
        if it in kept:
            kept[it].extend(objects([line]))
    return {it: records for it, records in kept.items() if records}


def curve(points):
    """
    [(iteration, value), ...] as {x, y}, or where there are too many their means, with {lo, hi}; first, last,
    least and most of all; `gaps`: how many are no numbers.
    """
    known = [point for point in points if finite(point[1])]
    result = {'x': [], 'y': [], 'gaps': len(points) - len(known)}
    if not known:
        return result
    iterations, values = zip(*known, strict=True)
    size = math.ceil(len(known) / POINTS)
    parts = [values[i:i + size] for i in range(0, len(known), size)]
    result['x'] = [iterations[i * size + len(part) // 2] for i, part in enumerate(parts)]
    result['y'] = list(map(mean, parts))
    if size > 1:
        result |= {'lo': [short(min(part)) for part in parts], 'hi': [short(max(part)) for part in parts]}
    return result | {'first': short(values[0]), 'last': short(values[-1]),
                     'least': short(min(values)), 'most': short(max(values))}


def metric_curves(out_dir):
    """{metric: its curve}, and the last iteration. What was logged twice counts as it was logged last."""
    rows = {row['iter']: row for row in objects(lines_of(out_dir, 'metrics.jsonl'))}
    points = {}
    for it in sorted(rows):
        for name, value in rows[it].items():
            if name != 'iter' and type(value) in (int, float, type(None)):
                points.setdefault(name, []).append((it, value))
    return {name: curve(column) for name, column in points.items()}, max(rows, default=None)


def reward_pictures(out_dir):
    """A histogram of each part of the reward and, with a cost, dots of reward and cost for each iteration."""
    logged, parts, dots = {}, {}, []
    for it, records in picked(out_dir, 'rewards.jsonl', HISTOGRAMS).items():
        logged[it] = {name: values for name, values in records[-1].items() if isinstance(values, list)}
    for name in dict.fromkeys(itertools.chain(*logged.values())):
        parts[name] = histogram([row.get(name, ()) for row in logged.values()])
    if {'helpfulness', 'cost'} <= parts.keys():
        for row in logged.values():
            pairs = zip(row.get('helpfulness', ()), row.get('cost', ()), strict=False)
            known = [(short(r), short(c)) for r, c in pairs if finite(r) and finite(c)]
            dots.append(sorted(evenly(known, DOTS)))
    return {'iters': list(logged), 'parts': parts, 'dots': dots}


def histogram(columns):
    """The values of one reward, iteration by iteration, in the same bars."""
    known = [list(filter(finite, column)) for column in columns]
    every = list(itertools.chain(*known))
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    if high <= low:
        margin = max(0.5, abs(low) / 2)
        low, high = low - margin, high + margin
    counts, missing = [[0] * BINS for _ in columns], []
    for bars, column, values in zip(counts, columns, known, strict=True):
        missing.append(len(column) - len(values))
        for value in values:
            bars[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    return {'low': short(low), 'high': short(high), 'counts': counts, 'means': list(map(mean, known)),
            'missing': missing}


def completion_of(sample):
    """One completion of a group; without tokens it is shown in one colour."""
    result = {'text': clipped(sample.get('completion', ''), COMPLETION),
              'advantage': short(sample.get('advantage')),
              'rewards': {name.removeprefix('reward/'): short(value) for name, value in sample.items()
                          if name.startswith('reward/')}}
    columns = [sample.get(name) for name in ('tokens', 'logps', 'logp_changes', 'slots')]
    tokens, *numbers, slots = [column if isinstance(column, list) else [] for column in columns]
    if not tokens or any(len(column) != len(tokens) for column in numbers):
        return result
    result['tokens'] = [clipped(token, 100) for token in tokens]
    for name, column in zip(('logps', 'changes'), numbers, strict=True):
        result[name] = [short(round(value, 3)) if finite(value) else None for value in column]
    own = sample.get('own')
    if isinstance(own, list) and len(own) == len(tokens):
        result['own'] = list(map(bool, own))
    return result | {'slots': slots} if len(slots) == len(tokens) else result


def groups(out_dir):
    """Groups spread over the run, and fewer of them when completions are long."""
    result, n_tokens = [], 0
    for it, samples in picked(out_dir, 'samples.jsonl', GROUPS).items():
        completions = list(map(completion_of, samples[:COMPLETIONS]))
        n_tokens += sum(len(c.get('tokens', ())) + len(c['text']) // 4 for c in completions)
        prompt, wanted = samples[0].get('prompt', ''), samples[0].get('answer', '')
        result.append({'iter': it, 'prompt': clipped(prompt, PROMPT, keep_end=True), 'of': len(samples),
                       'wanted': clipped(wanted, PROMPT), 'answers': completions})
    return evenly(result, max(4, GROUPS * TOKENS // n_tokens)) if n_tokens > TOKENS else result


def verdict_in(out_dir, job, settings):
    """See verdict_of."""
    return verdict_of(list(objects(lines_of(out_dir, 'held_out.jsonl'))), job, settings)


def read_run(out_dir, jobs):
    """The run in out_dir, as the page has it. Raises FileNotFoundError."""
    if not any(os.path.exists(os.path.join(out_dir, name)) for name in ('metrics.jsonl', 'config.json')):
        raise FileNotFoundError(f"no metrics.jsonl or config.json in {out_dir!r}: name the out_dir of a run")
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            config = dict(json.load(f))
    except (OSError, ValueError, TypeError):
        config = {}
    metrics, last = metric_curves(out_dir)
    return {'config': {key: clipped(value, 300) for key, value in config.items()}, 'last': last,
            'task': config.get('task'), 'metrics': metrics,
            'verdict': verdict_in(out_dir, jobs.get(config.get('task')), config),
            'rewards': reward_pictures(out_dir), 'groups': groups(out_dir)}


# -----------------------------------------------------------------------------
# the page

def asset(name):
    with open(os.path.join(FOLDER, name), encoding='utf-8') as f:
        return f.read()


def sections_of(runs, jobs):
    """{section: charts} of charts.json: those of the jobs' classes, and every task's."""
    charts, sections = json.loads(asset('charts.json')), {'Evaluation': [], 'Reward': []}
    classes = [cls.__name__ for run in runs for cls in getattr(jobs.get(run['task']), '__mro__', ())]
    for name in [*dict.fromkeys(classes), 'every task']:
        for section, more in charts.get(name, {}).items():
            sections.setdefault(section, []).extend(more)
    return sections


def moved_metrics(runs):
    """The metrics of the runs, less those that are 0 all along, but for rounding, and a single reward's."""
    moved, always = {}, tuple(json.loads(asset('charts.json'))['always'])  # they may be 0, or are small
    for metrics in [run['metrics'] for run in runs]:
        for name, points in metrics.items():
            largest = max(-points.get('least', 0), points.get('most', 0))
            again = name.startswith('reward/') and points == metrics.get('mean_reward')
            if (largest >= 1e-6 or name.startswith(always)) and not again:
                moved[name] = True
    return list(moved)


def charts_of(runs, jobs):
    """[{section, charts}] of the metrics that the runs have; one that no chart names gets its own."""
    names, sections, result = moved_metrics(runs), sections_of(runs, jobs), {}
    section_of = json.loads(asset('charts.json'))['section of others']
    for section, charts in sections.items():
        result[section] = []
        for chart in charts:
            shown = [name for wanted in chart['names'] for name in fnmatch.filter(names, wanted)]
            names = [name for name in names if name not in shown]
            if shown:
                result[section].append(chart | {'names': shown})
    for name in names:
        section = section_of.get(re.match('[a-z]*[/_]?', name)[0], 'Policy')
        hint = 'This part alone, before its weight.' if name.startswith('reward/') else ''
        title = name.removeprefix('eval/').removeprefix('reward/')
        result.setdefault(section, []).append({'title': title, 'hint': hint, 'names': [name]})
    return [{'section': section, 'charts': charts} for section, charts in result.items() if charts]


def hash_of(code):
    return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"


def page_of(out_dirs: list[str], jobs: dict, version: str = '') -> str:
    """
    The page of the runs in out_dirs. jobs: {task: its class}; version: of a page that is served, and loads
    itself again when that is another. Raises FileNotFoundError.
    """
    runs = [read_run(out_dir, jobs) for out_dir in out_dirs]
    paths = list(map(os.path.abspath, out_dirs))
    names = list(map(os.path.basename, paths))
    if len(set(names)) < len(names):
        names = [os.path.relpath(path, os.path.commonpath(paths)) for path in paths]
    for run, name in zip(runs, names, strict=True):
        run['name'] = name
    page = {'runs': runs, 'sections': charts_of(runs, jobs), 'version': version}
    data = json.dumps(page, allow_nan=False, separators=(',', ':'))
    parts = {'style': asset('uplot/uPlot.min.css') + asset('report.css'),
             'uplot': asset('uplot/uPlot.iife.min.js'), 'script': asset('report.js')}
    style, uplot, script = map(hash_of, parts.values())
    parts['policy'] = (f"default-src 'none'; style-src {style}; script-src {uplot} {script}; "
                       "base-uri 'none'; form-action 'none'; connect-src 'self'")
    parts['data'] = data.replace('<', '\\u003c')  # so no text can end the script element
    return re.sub(r'\{(policy|style|data|uplot|script)\}', lambda match: parts[match[1]], asset('page.html'))


def write_report(out_dirs: list[str], jobs: dict, path: str | None = None) -> str:
    """Write page_of to path (report.html in the first of out_dirs); returns path."""
    page = page_of(out_dirs, jobs)
    path = os.path.join(out_dirs[0], 'report.html') if path is None else path
    try:  # renamed when whole: a browser never sees half of it
        temporary = f'{path}.{os.getpid()}.tmp'
        with open(temporary, 'w', encoding='utf-8', newline='') as f:
            f.write(page)
        os.replace(temporary, path)
    except OSError as e:
        raise OSError(f"cannot write {path!r}: {e.strerror}") from None
    return path
