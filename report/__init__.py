"""
What runs did, as one page: out_dir/report.html opens in any browser, from the disk, without a network.
train_grpo.py writes it at each evaluation and at its end; `python -m tools.report` puts several runs into the
same charts.

Curves (smoothing is a slider of the page), each part of the reward completion by completion, reward against
cost, what each completion of a group was worth and which of its tokens the step made likelier, best and worst
completions, settings. A run may be going on, resumed or torn; what is missing is left out. What is a job's
own, its charts and how its samples are called, its class says.

A long run is thinned before it is written down: a curve to 250 points, each with the mean of its iterations
and a band from least to most, so 10,000 iterations are a third of a megabyte. The charts are uPlot's
(report/uplot, MIT licence, 50 kB, inlined). Texts of a run are strangers' texts: they go in as JSON without a
'<', are shown as text nodes alone, and the page's Content-Security-Policy runs only the scripts whose hashes
it names and loads nothing.
"""
import base64
import hashlib
import itertools
import json
import math
import os
import re
from functools import partial
from operator import itemgetter

FOLDER = os.path.dirname(os.path.abspath(__file__))
POINTS = 250                    # of a curve
HISTOGRAMS, BINS, DOTS = 40, 24, 200  # iterations with their rewards; bars and dots of each
# groups to look into, completions of each, about how many tokens of all
GROUPS, COMPLETIONS, TOKENS = 24, 16, 40_000
PROMPT, COMPLETION = 2000, 4000  # characters of a text
# kept though they may be 0 all along: they say how well a run does, or are small by nature
ALWAYS = ('eval/', 'reward/', 'mean_reward', 'sampler_gap', 'mirror_penalty', 'loss', 'pg_loss', 'lr',
          'critic_lr')
SECTION_OF = (('eval/', 'Evaluation'), ('reward/', 'Reward'), ('time_', 'Speed'), ('critic_', 'Autoencoder'))


def finite(x):
    # far enough from the edge of floats for sums and differences
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < 1e300


def short(x):
    """Five digits are enough for a picture; None for what is no number."""
    if not finite(x):
        return None
    return int(x) if float(x).is_integer() and abs(x) < 1e6 else float(f'{x:.5g}')


def evenly(values, n):
    """At most n of a list, the first and the last among them."""
    if len(values) <= n:
        return values
    return [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]


def objects(lines):
    """
    The objects of a .jsonl file's lines that know their iteration; lines that are torn, or hold something
    else, are left out.
    """
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and finite(record.get('iter')):
            yield record


def open_log(out_dir, name):
    path = os.path.join(out_dir, name)
    return open(path, 'rb') if os.path.exists(path) else open(os.devnull, 'rb')


def picked(out_dir, name, n):
    """
    {iteration: its objects} for at most n iterations of a log. The others are not parsed: samples.jsonl grows
    to a hundred megabytes.
    """
    places, at, kept = {}, 0, {}
    with open_log(out_dir, name) as f:
        for line in f:
            if match := re.search(rb'"iter":\s*(\d+)', line[:200]):
                places.setdefault(int(match[1]), []).append(at)
            at += len(line)
        for it in evenly(sorted(places), n):
            records = list(objects(map(partial(line_at, f), places[it])))
            if records:
                kept[it] = records
    return kept


def line_at(file, place):
    file.seek(place)
    return file.readline()


# -----------------------------------------------------------------------------
# a run as the page has it

def curve(points):
    """
    {x, y}, or where there are too many points their means, with {lo, hi}; of all of them the first, last,
    least and most. points: [(iteration, value), ...]; `gaps`: how many are no numbers.
    """
    known = [(it, value) for it, value in points if finite(value)]
    if not known:
        return {'x': [], 'y': [], 'gaps': len(points)}
    size = math.ceil(len(known) / POINTS)
    parts = [known[i:i + size] for i in range(0, len(known), size)]
    x = [part[len(part) // 2][0] for part in parts]
    columns = [list(map(itemgetter(1), part)) for part in parts]
    values = [value for _, value in known]
    of_all = {'first': values[0], 'last': values[-1], 'least': min(values), 'most': max(values)}
    result = {'x': x, 'y': [short(sum(column) / len(column)) for column in columns],
              'gaps': len(points) - len(known)}
    if size > 1:
        result |= {'lo': [short(min(column)) for column in columns],
                   'hi': [short(max(column)) for column in columns]}
    return result | {name: short(value) for name, value in of_all.items()}


def metric_curves(out_dir):
    """
    {metric: its curve}, and the last iteration there is. An iteration that stands there twice counts as it
    was logged last.
    """
    rows = {}
    with open_log(out_dir, 'metrics.jsonl') as f:
        for row in objects(f):
            rows[row['iter']] = row
    points = {}
    for it in sorted(rows):
        for name, value in rows[it].items():
            if name != 'iter' and type(value) in (int, float, type(None)):
                points.setdefault(name, []).append((it, value))
    return {name: curve(column) for name, column in points.items()}, max(rows, default=None)


def reward_pictures(out_dir):
    """
    Histograms of each part of the reward, iteration by iteration, all with the same bars; where there is a
    cost, reward against cost.
    """
    logged, names = {}, {}
    for it, records in picked(out_dir, 'rewards.jsonl', HISTOGRAMS).items():
        logged[it] = {name: values for name, values in records[-1].items() if isinstance(values, list)}
        names |= dict.fromkeys(logged[it])
    rows, dots = list(logged.values()), []
    if {'helpfulness', 'cost'} <= names.keys():
        dots = [pairs_of(row.get('helpfulness', ()), row.get('cost', ())) for row in rows]
    parts = {}
    for name in names:
        parts[name] = histogram([row.get(name, ()) for row in rows])
    return {'iters': list(logged), 'parts': parts, 'dots': dots}


def histogram(columns):
    """The values of one reward, iteration by iteration, counted in the same bars."""
    known = [list(filter(finite, column)) for column in columns]
    every = list(itertools.chain(*known))
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts = [[0] * BINS for _ in columns]
    for bars, values in zip(counts, known, strict=True):
        for value in values:
            bars[min(BINS - 1, int((value - low) / (high - low) * BINS))] += 1
    means = [short(sum(values) / len(values)) if values else None for values in known]
    missing = [len(column) - len(values) for column, values in zip(columns, known, strict=True)]
    return {'low': short(low), 'high': short(high), 'counts': counts, 'means': means, 'missing': missing}


def pairs_of(rewards, costs):
    """At most DOTS pairs of reward and cost, in order."""
    pairs = zip(rewards, costs, strict=False)
    return sorted(evenly([(short(r), short(c)) for r, c in pairs if finite(r) and finite(c)], DOTS))


def clipped(text, n, keep_end=False):
    """At most n characters of whatever a log has for a text."""
    text = text if isinstance(text, str) else json.dumps(text)
    if len(text) <= n:
        return text
    return '… ' + text[-n:] if keep_end else text[:n] + ' …'


def completion_of(sample):
    """One completion of a group. Older logs have no tokens; then it is shown in one colour."""
    rewards = {}
    for name, value in sample.items():
        if name.startswith('reward/'):
            rewards[name.removeprefix('reward/')] = short(value)
    result = {'text': clipped(sample.get('completion', ''), COMPLETION),
              'advantage': short(sample.get('advantage')),
              'rewards': rewards}
    tokens, *columns = (sample.get(name) for name in ('tokens', 'logps', 'logp_changes'))
    if not all(isinstance(column, list) and len(column) == len(tokens or ()) for column in (tokens,
                                                                                            *columns)):
        return result
    result['tokens'] = [clipped(token, 100) for token in tokens]
    for name, column in zip(('logps', 'changes'), columns, strict=True):
        result[name] = [short(round(value, 3)) if finite(value) else None for value in column]
    if isinstance(sample.get('slots'), list) and len(sample['slots']) == len(tokens):
        result['slots'] = sample['slots']
    return result


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


def read_run(out_dir, jobs):
    """Everything about the run in out_dir. Raises FileNotFoundError when there is none."""
    if not os.path.isdir(out_dir):
        raise FileNotFoundError(f"there is no folder {out_dir!r}: name the out_dir of a run")
    if not any(os.path.exists(os.path.join(out_dir, name)) for name in ('metrics.jsonl', 'config.json')):
        raise FileNotFoundError(f"{out_dir!r} holds neither metrics.jsonl nor config.json: it is not the "
                                "out_dir of a run")
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            config = json.load(f)
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    metrics, last = metric_curves(out_dir)
    job = jobs.get(config.get('task'))
    return {'config': {key: clipped(value, 300) for key, value in config.items()}, 'last': last,
            'wanted': short(config.get('max_iters')), 'threshold': short(config.get('cost_threshold_d')),
            'task': config.get('task'),
            'samples_title': getattr(job, 'samples_title', 'Best and worst completions'),
            'samples_hint': getattr(job, 'samples_hint', 'By advantage.'), 'metrics': metrics,
            'rewards': reward_pictures(out_dir), 'groups': groups(out_dir)}


def asset(name):
    with open(os.path.join(FOLDER, name), encoding='utf-8') as f:
        return f.read()


def all_charts(runs, jobs):
    """
    {section: charts}: those of charts.json, and after its 'Reward' the sections that the runs' jobs have for
    themselves.
    """
    generic, own = json.loads(asset('charts.json')), {}
    for task in dict.fromkeys(run['task'] for run in runs):
        for section, charts in getattr(jobs.get(task), 'charts', {}).items():
            own.setdefault(section, []).extend(charts)
    sections = {'Evaluation': generic.pop('Evaluation'), 'Reward': generic.pop('Reward'),
                **dict.fromkeys(own, ()), **generic}
    return {section: [*charts, *own.get(section, ())] for section, charts in sections.items()}


def moved_metrics(runs):
    """
    The metrics of the runs, less those that have been 0 all along, but for rounding: a KL that is off, steps
    that never went wrong.
    """
    moved = {}
    for run in runs:
        for name, points in run['metrics'].items():
            largest = max(-points.get('least', 0), points.get('most', 0))
            if largest >= 1e-6 or name.startswith(ALWAYS):
                moved[name] = True
    return list(moved)


def charts_of(runs, jobs):
    """
    [{'section', 'charts'}] with the metrics that the runs have; one that no chart names gets a chart of its
    own.
    """
    names, sections, placed = moved_metrics(runs), {}, set()
    for section, charts in all_charts(runs, jobs).items():
        sections[section] = []
        for chart in charts:
            shown = [name for name in chart['names'] if name in names and name not in placed]
            placed |= set(shown)
            sections[section].append(chart | {'names': shown})
    missing = [name for name in names if name.startswith('reward_missing/')]
    hint = 'Share of completions to which a reward does not apply.'
    sections['Reward'].append({'title': 'not judged', 'hint': hint, 'names': missing})
    for name in names:
        if name not in placed and name not in missing:
            kind = next((section for start, section in SECTION_OF if name.startswith(start)), 'Policy')
            hint = 'This part alone, before its weight.' if name.startswith('reward/') else ''
            title = name.removeprefix('eval/').removeprefix('reward/')
            sections.setdefault(kind, []).append({'title': title, 'hint': hint, 'names': [name]})
    result = []
    for section, charts in sections.items():
        charts = [chart for chart in charts if chart['names']]
        if charts:
            result.append({'section': section, 'charts': charts})
    return result


def hash_of(code):
    return "'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'"


def write_report(out_dirs: list[str], jobs: dict, path: str | None = None):
    """
    The page of the runs in out_dirs, at path (report.html in the first of them). jobs: {task: its class}, for
    the charts that are its own. Returns the path. Raises FileNotFoundError where there is no run, OSError
    where the page cannot be written.
    """
    runs = [read_run(out_dir, jobs) for out_dir in out_dirs]
    names = [os.path.basename(os.path.abspath(out_dir)) for out_dir in out_dirs]
    for run, name, given in zip(runs, names, map(os.path.normpath, out_dirs), strict=True):
        short_name = given == '.' or (os.path.isabs(given) and names.count(name) == 1)
        run['name'] = name if short_name else given
    style = asset('uplot/uPlot.min.css') + asset('report.css')
    uplot, script = asset('uplot/uPlot.iife.min.js'), asset('report.js')
    data = json.dumps({'runs': runs, 'sections': charts_of(runs, jobs)}, allow_nan=False,
                      separators=(',', ':'))
    policy = (f"default-src 'none'; style-src {hash_of(style)}; script-src {hash_of(uplot)} "
              f"{hash_of(script)}; base-uri 'none'; form-action 'none'")
    parts = {'policy': policy, 'style': style, 'uplot': uplot, 'script': script,
             'data': data.replace('<', '\\u003c')}  # so no text can end the script element
    page = re.sub(r'\{(policy|style|data|uplot|script)\}', lambda match: parts[match[1]], asset('page.html'))
    path = os.path.join(out_dirs[0], 'report.html') if path is None else path
    try:  # renamed when whole: a browser that reloads never sees half of it
        with open(path + '.tmp', 'w', encoding='utf-8', newline='') as f:
            f.write(page)
        os.replace(path + '.tmp', path)
    except OSError as e:
        raise OSError(f"cannot write {path!r}: {e.strerror}") from None
    return path
