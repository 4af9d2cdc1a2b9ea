"""
What runs did, as one page: out_dir/report.html opens in any browser, from the disk, without a network.
$ python report.py out-grpo                                              # writes out-grpo/report.html
$ python report.py out-a out-b --out=both.html                           # several runs in the same charts
train_grpo.py writes it at each evaluation and at its end. Curves (smoothing is a slider of the page), each part of the reward answer by answer, reward against cost, what each answer of
a group was worth and which of its tokens the step made likelier, best and worst answers, settings. A run may be going on, resumed or torn; what is missing is left out.

A long run is thinned before it is written down: a curve to 250 points, each with the mean of its iterations and a band from least to most, so 10,000 iterations are a third of a megabyte, and one with long answers.
The charts are uPlot's (vendor/uplot, MIT licence, 50 kB, inlined). Texts of a run are strangers' texts: they go in as JSON without a '<', are shown as text nodes alone, and the
page's Content-Security-Policy runs only the scripts whose hashes it names and loads nothing.
"""
import base64
import hashlib
import json
import math
import os
import re
import sys

from runtime.config import one_line_errors

VENDOR = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'uplot')
POINTS, HISTOGRAMS, BINS, DOTS = 250, 40, 24, 200        # of a curve; iterations with their rewards, bars of each, answers of each in the scatter
GROUPS, ANSWERS, TOKENS = 24, 16, 40_000                 # groups to look into, answers of each, about how many tokens of all
PROMPT, ANSWER = 2000, 4000                              # characters of a text

# Section -> charts: title, what it says, metrics that share its axes. A metric that stands nowhere here gets a chart of its own.
CHARTS = {
    'Evaluation': [
        ('judge reward', 'What the judge thinks of held-out fills, and of real text. Above real text it is being fooled.', ['eval/judge_reward', 'eval/judge_reward_real']),
        ('gold judge', 'A second judge that is never the reward. If it falls behind, the policy learns the first one’s mistakes.', ['eval/gold_reward', 'eval/gold_reward_real']),
        ('exact match', 'Slots that got the very character that stood there.', ['eval/exact_match_sampled', 'eval/exact_match_greedy']),
        ('accuracy', 'First reward on held-out prompts: greedy, sampled, and at least one sampled answer right.', ['eval/accuracy_greedy', 'eval/accuracy_sampled', 'eval/pass_at_k']),
        ('all tests passed', 'Hidden tests far below the shown ones: the policy writes for the tests.', ['eval/pass_rate_greedy', 'eval/hidden_pass_rate_greedy', 'eval/pass_rate_sampled', 'eval/hidden_pass_rate_sampled']),
        ('held-out reward', 'The weighted sum on held-out prompts. Where a true reward is known and leaves it, the reward model is being fooled.', ['eval/reward', 'eval/true_reward']),
        ('held-out cost', 'Above 0 is unsafe.', ['eval/cost', 'eval/true_cost']),
        ('variance explained', 'FVE on documents nobody trained on; 0 is the mean activation, whatever the text.', ['eval/fve', 'eval/fve_greedy', 'eval/fve_true_text', 'eval/fve_frozen_actor']),
        ('FVE, controls', 'Texts dealt to other activations, nothing injected, the mean, noise: all should stay low.', ['eval/fve_shuffled', 'eval/fve_no_injection', 'eval/fve_mean_injection', 'eval/fve_random_injection'])],
    'Reward': [
        ('mean reward', 'The weighted sum, over the answers of an iteration.', ['mean_reward']),
        ('spread of rewards', 'At 0 there is nothing to compare.', ['std_reward']),
        ('groups without signal', 'Share of groups whose answers all got the same reward: they teach nothing.', ['frac_reward_zero_std'])],
    'Alignment': [
        ('lambda', 'The price of cost. It rises while answers are too often unsafe.', ['lambda']),
        ('cost', 'Its mean; J_C adds the threshold and shall be at most 0.', ['cost', 'J_C', 'J_C_ema']),
        ('safe answers', 'Share with a cost of at most 0.', ['safe_ratio'])],
    'Autoencoder': [
        ('variance explained', 'FVE on the training batch, before the critic’s step.', ['fve']),
        ('cosine', 'Between what the critic rebuilt and the activation.', ['cosine']),
        ('critic', 'Its loss.', ['critic_loss'])],
    'Policy': [
        ('loss', 'With one step per rollout the policy term is about 0; its gradient is not.', ['loss', 'pg_loss', 'value_loss']),
        ('KL to the reference', 'Per token. If it runs away: raise kl_beta, lower learning_rate.', ['mean_kl']),
        ('leash', 'What it adds to the loss.', ['kl_penalty', 'mirror_penalty']),
        ('entropy', 'Of the sampling distribution, in nats a token. Near 0 all answers are alike.', ['entropy']),
        ('clipped', 'Share of tokens beyond the clip range; 0 with one step per rollout.', ['clip_frac_low', 'clip_frac_high']),
        ('sampler gap', '|sampler’s log-prob − trainer’s|. Rounding alone: 1e-5 in fp32.', ['sampler_gap_mean', 'sampler_gap_max']),
        ('log-prob of sampled tokens', '', ['mean_log_prob']),
        ('gradient norm', 'Before clipping.', ['grad_norm']),
        ('learning rate', '', ['lr']),
        ('fitness', 'Evolution strategies: the mean of the directions tried, and the best.', ['mean_fitness', 'best_fitness'])],
    'Lengths': [
        ('answer length', 'In tokens, the mean.', ['mean_length']),
        ('cut off', 'Share of answers that max_new_tokens ended.', ['frac_truncated'])],
    'Speed': [
        ('seconds an iteration', 'By phase.', ['time_rollout', 'time_reward', 'time_wait', 'time_train', 'time_eval', 'time_save']),
        ('tokens per second', '', ['tokens_per_s'])]}


def finite(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e300  # far enough from the edge for sums and differences


def short(x):
    """Five digits are enough for a picture; None for what is no number."""
    return (int(x) if float(x).is_integer() and abs(x) < 1e6 else float(f'{x:.5g}')) if finite(x) else None


def evenly(values, n):
    """At most n of a list, the first and the last among them."""
    return values if len(values) <= n else [values[round(i * (len(values) - 1) / (n - 1))] for i in range(n)]


def objects(lines):
    """The objects of a .jsonl file's lines that know their iteration; lines that are torn, or hold something else, are left out."""
    for line in lines:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict) and finite(found.get('iter')):
            yield found


def open_log(out_dir, name):
    path = os.path.join(out_dir, name)
    return open(path, 'rb') if os.path.exists(path) else open(os.devnull, 'rb')


def picked(out_dir, name, n):
    """{iteration: its objects} for at most n iterations of a log. The others are not parsed: samples.jsonl grows to a hundred megabytes."""
    places, at = {}, 0
    with open_log(out_dir, name) as f:
        for line in f:
            if found := re.search(rb'"iter":\s*(\d+)', line[:200]):
                places.setdefault(int(found[1]), []).append(at)
            at += len(line)
        kept = {}
        for it in evenly(sorted(places), n):
            kept[it] = list(objects(f.seek(at) is None or f.readline() for at in places[it]))
    return {it: found for it, found in kept.items() if found}


# ---------------------------------------------------------------------------------------------------------------------
# a run as the page has it

def curve(points):
    """{x, y}, or where there are too many points their means, with {lo, hi}; of all of them the first, last, least and most. points: [(iteration, value), ...]; `gaps`: how many are no numbers."""
    whole = [(it, v) for it, v in points if finite(v)]
    if not whole:
        return {'x': [], 'y': [], 'gaps': len(points)}
    values = [v for _, v in whole]
    size = math.ceil(len(whole) / POINTS)
    parts = [whole[i:i + size] for i in range(0, len(whole), size)]
    found = {'x': [part[len(part) // 2][0] for part in parts], 'y': [short(sum(v for _, v in part) / len(part)) for part in parts], 'gaps': len(points) - len(whole),
             'first': short(values[0]), 'last': short(values[-1]), 'least': short(min(values)), 'most': short(max(values))}
    if size > 1:
        found |= {'lo': [short(min(v for _, v in part)) for part in parts], 'hi': [short(max(v for _, v in part)) for part in parts]}
    return found


def metric_curves(out_dir):
    """{metric: its curve}, and the last iteration there is. An iteration that stands there twice counts as it was logged last."""
    rows = {}
    with open_log(out_dir, 'metrics.jsonl') as f:
        for row in objects(f):
            rows[row['iter']] = row
    points = {}
    for it in sorted(rows):
        for name, value in rows[it].items():
            if name != 'iter' and type(value) in (int, float, type(None)):
                points.setdefault(name, []).append((it, value))
    return {name: curve(found) for name, found in points.items()}, max(rows, default=None)


def reward_pictures(out_dir):
    """Histograms of each part of the reward, iteration by iteration, all with the same bars; where there is a cost, reward against cost."""
    logged = {it: {name: values for name, values in found[-1].items() if isinstance(values, list)} for it, found in picked(out_dir, 'rewards.jsonl', HISTOGRAMS).items()}
    names = list(dict.fromkeys(name for row in logged.values() for name in row))
    values = {name: [[v for v in row.get(name, ()) if finite(v)] for row in logged.values()] for name in names}
    parts = {}
    for name in names:
        every = [v for found in values[name] for v in found]
        low, high = (min(every), max(every)) if every else (0.0, 1.0)
        low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
        counts = [[0] * BINS for _ in logged]
        for bars, found in zip(counts, values[name]):
            for v in found:
                bars[min(BINS - 1, int((v - low) / (high - low) * BINS))] += 1
        parts[name] = {'low': short(low), 'high': short(high), 'counts': counts, 'means': [short(sum(found) / len(found)) if found else None for found in values[name]],
                       'missing': [len(row.get(name, ())) - len(found) for row, found in zip(logged.values(), values[name])]}
    dots = []
    if {'helpfulness', 'cost'} <= set(names):
        for row in logged.values():
            pairs = [(short(r), short(c)) for r, c in zip(row.get('helpfulness', ()), row.get('cost', ())) if finite(r) and finite(c)]
            dots.append(sorted(evenly(pairs, DOTS)))
    return {'iters': list(logged), 'parts': parts, 'dots': dots}


def clipped(text, n, keep_end=False):
    """At most n characters of whatever a log has for a text."""
    text = text if isinstance(text, str) else json.dumps(text)
    return text if len(text) <= n else ('… ' + text[-n:] if keep_end else text[:n] + ' …')


def answer_of(sample):
    """One answer of a group. Older logs have no tokens; then it is shown in one colour."""
    found = {'text': clipped(sample.get('completion', ''), ANSWER), 'advantage': short(sample.get('advantage')),
             'rewards': {name.removeprefix('reward/'): short(value) for name, value in sample.items() if name.startswith('reward/')}}
    columns = [sample.get(name) for name in ('tokens', 'logps', 'logp_changes')]
    if all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        found |= {'tokens': [clipped(token, 100) for token in columns[0]]} | {name: [short(round(v, 3)) if finite(v) else None for v in column] for name, column in zip(('logps', 'changes'), columns[1:])}
        if isinstance(sample.get('slots'), list) and len(sample['slots']) == len(columns[0]):
            found['slots'] = sample['slots']
    return found


def groups(out_dir):
    """Groups spread over the run, and fewer of them when answers are long."""
    found = [{'iter': it, 'prompt': clipped(samples[0].get('prompt', ''), PROMPT, keep_end=True), 'wanted': clipped(samples[0].get('answer', ''), PROMPT), 'of': len(samples), 'answers': [answer_of(s) for s in samples[:ANSWERS]]}
             for it, samples in picked(out_dir, 'samples.jsonl', GROUPS).items()]
    tokens = sum(len(a.get('tokens', ())) + len(a['text']) // 4 for group in found for a in group['answers'])
    return evenly(found, max(4, GROUPS * TOKENS // tokens)) if tokens > TOKENS else found


def read_run(out_dir):
    """Everything about the run in out_dir. Raises FileNotFoundError when there is none."""
    if not os.path.isdir(out_dir):
        raise FileNotFoundError(f"there is no folder {out_dir!r}: name the out_dir of a run")
    if not any(os.path.exists(os.path.join(out_dir, name)) for name in ('metrics.jsonl', 'config.json')):
        raise FileNotFoundError(f"{out_dir!r} holds neither metrics.jsonl nor config.json: it is not the out_dir of a run")
    try:
        with open(os.path.join(out_dir, 'config.json'), encoding='utf-8') as f:
            config = json.load(f)
    except (OSError, ValueError):
        config = {}
    config = config if isinstance(config, dict) else {}
    metrics, last = metric_curves(out_dir)
    return {'config': {key: clipped(value, 300) for key, value in config.items()}, 'last': last, 'wanted': short(config.get('max_iters')), 'threshold': short(config.get('cost_threshold_d')),
            'nla': config.get('task') == 'nla', 'metrics': metrics, 'rewards': reward_pictures(out_dir), 'groups': groups(out_dir)}


def charts_of(runs):
    """CHARTS with the metrics that the runs have, and the rest of these. What has been 0 all along, but for rounding, is left out (a KL that is off, steps that never went wrong), unless it says how well a run does or is small by nature."""
    moved = {name for run in runs for name, curve in run['metrics'].items() if max(-curve.get('least', 0), curve.get('most', 0)) >= 1e-6}
    there = [name for name in dict.fromkeys(name for run in runs for name in run['metrics']) if name in moved or name.startswith(('eval/', 'reward/', 'mean_reward', 'sampler_gap', 'mirror_penalty', 'loss', 'pg_loss')) or name.endswith('lr')]
    sections = {section: [(title, hint, [name for name in names if name in there]) for title, hint, names in charts] for section, charts in CHARTS.items()}
    placed = {name for charts in sections.values() for _, _, names in charts for name in names}
    missing = [name for name in there if name.startswith('reward_missing/')]
    if missing:
        sections['Reward'].append(('not judged', 'Share of answers to which a reward does not apply.', missing))
    for name in (name for name in there if name not in placed and name not in missing):
        kind = next((section for start, section in (('eval/', 'Evaluation'), ('reward/', 'Reward'), ('time_', 'Speed'), ('critic_', 'Autoencoder')) if name.startswith(start)), 'Policy')
        sections[kind].append((name.removeprefix('eval/').removeprefix('reward/'), 'This part alone, before its weight.' if name.startswith('reward/') else '', [name]))
    return [{'section': section, 'charts': [{'title': title, 'hint': hint, 'names': names} for title, hint, names in charts if names]} for section, charts in sections.items() if any(names for *_, names in charts)]


# ---------------------------------------------------------------------------------------------------------------------
# the page

STYLE = '''
:root { color-scheme: light dark; --paper: #ffffff; --card: #f7f7f8; --ink: #1c1e21; --dim: #5c6370; --line: #dcdfe4; --up: #2563eb; --down: #d9480f;
  --c0: #2563eb; --c1: #d9480f; --c2: #0a7d55; --c3: #9c36b5; --c4: #b08800; --c5: #0b7285; --c6: #c2255c; --c7: #5f6b7a; }
@media (prefers-color-scheme: dark) { :root { --paper: #131417; --card: #1c1e22; --ink: #e7e9ec; --dim: #a0a7b3; --line: #343840; --up: #5b9bff; --down: #ff8a4c;
  --c0: #6ea8fe; --c1: #ff9f5a; --c2: #4fd1a1; --c3: #d99bf0; --c4: #e6c84f; --c5: #4cc9dd; --c6: #ff85ab; --c7: #a9b3c1; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
header, main { max-width: 1500px; margin: 0 auto; padding: 12px 16px; }
h1 { font-size: 1.35rem; margin: 4px 0; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 28px 0 8px; } h3 { font-size: 1rem; margin: 22px 0 6px; }
p, .hint { margin: 2px 0; color: var(--dim); font-size: .85rem; }
nav a { color: var(--up); margin-right: 12px; white-space: nowrap; }
.bar { position: sticky; top: 0; z-index: 5; display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; padding: 6px 0; background: var(--paper); border-bottom: 1px solid var(--line); }
label { display: inline-flex; gap: 6px; align-items: center; overflow-wrap: anywhere; } input[type=range] { width: 160px; max-width: 45vw; accent-color: var(--up); }
select { font: inherit; max-width: 60vw; }
.chip { width: 12px; height: 12px; border-radius: 3px; flex: none; }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.group { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 270px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 8px 10px; margin: 0; min-width: 0; }
.card > b { display: block; overflow-wrap: anywhere; }
.text { font: 13px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; margin: 6px 0; }
.text span { border-radius: 2px; cursor: help; }
.text { max-height: 24em; overflow: auto; } .text:empty { display: none; } .asked { display: flex; flex-wrap: wrap; gap: 0 32px; }
.wide { overflow-x: auto; }
th { white-space: nowrap; } table.facts { border-collapse: collapse; font-size: .85rem; } .facts td, .facts th { text-align: left; vertical-align: top; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--line); } .facts td { overflow-wrap: anywhere; min-width: 3.5em; }
.u-legend { font-size: 12px !important; text-align: left !important; margin: 0 !important; color: var(--ink); } .u-legend th { font-weight: 400 !important; overflow-wrap: anywhere; }
.u-live .u-series:first-child { color: var(--dim); } .u-live .u-series:first-child .u-marker { display: none !important; } section { scroll-margin-top: 50px; } .quiet { display: none !important; } .u-inline tr { margin-right: 8px !important; }
.u-cursor-x, .u-cursor-y { border-color: var(--dim) !important; } .u-select { background: color-mix(in srgb, var(--up) 18%, transparent) !important; }
'''

SCRIPT = r'''
'use strict';
const root = document.documentElement;
addEventListener('error', e => { root.dataset.error = e.message; document.body.prepend('This page failed: ' + e.message); });
const page = JSON.parse(document.getElementById('data').textContent), runs = page.runs, shown = runs.map(() => true);
const el = (tag, props, ...children) => { const node = Object.assign(document.createElement(tag), props); node.append(...children); return node; };  // text nodes only: nothing is parsed as HTML
const show = v => v == null ? '–' : v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(2).replace(/\.?0*e/, 'e') : String(+v.toPrecision(4));
const signed = v => (v > 0 ? '+' : '') + show(v);
const ink = name => getComputedStyle(root).getPropertyValue(name).trim();
const colour = i => ink('--c' + i % 8), dashes = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const header = document.body.appendChild(el('header')), main = document.body.appendChild(el('main')), nav = el('nav');
const section = title => { const id = title.toLowerCase().replace(/\W+/g, '-'); nav.append(el('a', {href: '#' + id, textContent: title}), ' '); return main.appendChild(el('section', {id}, el('h2', {textContent: title}))); };

// A uPlot as wide as its box, in the page's colours. It is made anew when these change.
let plots = [];
const steps = [...Array(19)].flatMap((_, i) => [1, 2, 5].map(n => +`${n}e${i - 9}`));  // of a horizontal axis
const nearest = (u, s, i) => { const v = u.data[s]; for (let d = 0; d < v.length; d++) { if (v[i - d] != null) return i - d; if (v[i + d] != null) return i + d; } return i; };
function plot(box, options, data) {
  const axis = more => ({stroke: ink('--dim'), grid: {stroke: ink('--line'), width: 1}, ticks: {stroke: ink('--line'), width: 1, size: 4}, font: '11px system-ui', values: (u, at) => at.map(show), ...more});
  plots = plots.filter(([old, u]) => old !== box || u.destroy());
  const rest = u => u.cursor.idx == null && u.setLegend({idxs: u.data.map((v, s) => nearest(u, s, v.length - 1))}, false);  // the legend has the last values while nobody points at others
  const dashed = (u, s) => u.series[s].dash?.length, markers = {dash: (u, s) => dashed(u, s) ? 'dashed' : 'solid', fill: (u, s) => dashed(u, s) ? 'transparent' : u.series[s].stroke(u, s)};
  const u = new uPlot({width: box.clientWidth || 300, height: 190, axes: [axis({space: 50, size: 30, incrs: steps}), axis({size: 58})], ...options, legend: {markers, ...options.legend}, scales: {x: {time: false}, ...options.scales}, hooks: {...options.hooks, setLegend: [rest], ready: [rest]}}, data, box);
  plots.push([box, u]);
}
addEventListener('resize', () => plots.forEach(([box, u]) => u.width === box.clientWidth || u.setSize({width: box.clientWidth, height: 190})));

// ---- head: which runs, how far, their figures
document.title = runs.map(run => run.name).join(' · ') + ' – report';
header.append(el('h1', {textContent: runs.length > 1 ? `${runs.length} runs` : runs[0].name}));
const progress = run => run.last == null ? 'no iteration logged yet' : run.wanted != null && run.last < run.wanted ? `${run.last} of ${run.wanted} iterations: going on, or stopped` : `${run.last} iterations`;
if (runs.length === 1) header.append(el('p', {textContent: progress(runs[0]) + (runs[0].config.task ? `, task ${runs[0].config.task}` : '')}));
header.append(nav);
const bar = document.body.insertBefore(el('div', {className: 'bar'}), main), smoothing = el('input', {type: 'range', min: 0, max: 98, value: 60, id: 'smoothing'});
bar.style.padding = '6px 16px';
bar.append(el('label', {}, 'smoothing', smoothing));
if (!runs.some(run => Object.values(run.metrics).some(c => c.x?.length > 20))) Object.assign(smoothing, {disabled: true, title: 'from 21 points on'});
if (runs.length > 1) runs.forEach((run, r) => {
  const chip = el('span', {className: 'chip run-' + r}), box = el('input', {type: 'checkbox', checked: true, onchange: () => { shown[r] = box.checked; curves(); }});
  bar.append(el('label', {title: progress(run)}, box, chip, run.name));
});
const table = (head, rows) => el('div', {className: 'wide'}, el('table', {className: 'facts'}, el('tr', {}, ...head.map(text => el('th', {textContent: text}))), ...rows.map(row => el('tr', {}, ...row.map(cell => el('td', {}, cell))))));
const figures = [...new Set(page.sections.flatMap(s => s.charts).flatMap(c => c.names))].filter(name => name.startsWith('eval/') || ['mean_reward', 'mean_kl', 'entropy', 'mean_length', 'lambda'].includes(name));
if (figures.length) section('Figures').append(runs.length > 1
  ? table(['first → last', ...runs.map(run => run.name)], figures.map(name => [name, ...runs.map(run => { const c = run.metrics[name]; return c?.x?.length ? `${show(c.first)} → ${show(c.last)}` : '–'; })]))
  : table(['', 'first', 'last', 'least', 'most'], figures.map(name => [name, ...['first', 'last', 'least', 'most'].map(key => show(runs[0].metrics[name][key]))])));
else main.append(el('p', {textContent: 'There are no metrics yet.'}));

// ---- curves
const charts = page.sections.flatMap(s => {
  const grid = el('div', {className: 'grid'});
  section(s.section).append(grid);
  return s.charts.map(chart => {
    const box = el('div'), gaps = runs.reduce((n, run) => n + chart.names.reduce((m, name) => m + (run.metrics[name]?.gaps || 0), 0), 0);
    grid.append(el('figure', {className: 'card'}, el('b', {textContent: chart.title}), box, el('p', {textContent: chart.hint + (gaps ? ` ${gaps} values are no numbers.` : '')})));
    return {...chart, box};
  });
});
function smooth(y, weight) {  // an exponential average without its bias towards the start
  let sum = 0, norm = 0;
  return y.map(v => (sum = weight * sum + (1 - weight) * v, norm = weight * norm + 1 - weight, +(sum / norm).toPrecision(6)));
}
function curves() {
  const several = shown.filter(Boolean).length > 1;
  runs.forEach((run, r) => document.querySelectorAll('.run-' + r).forEach(chip => { chip.style.background = colour(r); }));
  for (const {box, names} of charts) {
    const tables = [], series = [{label: 'iteration', value: (u, v) => show(v)}], bands = [];
    runs.forEach((run, r) => names.forEach((name, m) => {
      const c = run.metrics[name];
      if (!shown[r] || !c?.x?.length) return;
      const stroke = colour(several ? r : m + r * names.length), soft = smoothing.value > 0 && c.x.length > 20 && name !== 'lr', common = {dash: several ? dashes[m % 4] : [], spanGaps: true, value: (u, v) => show(v), points: {show: c.x.length < 40, size: 5, fill: stroke}};
      const label = several ? run.name + (names.length > 1 ? ' ' + name.replace('eval/', '') : '') : name.replace('eval/', '');
      const lines = [c.x, c.y];
      series.push({...common, label, stroke: soft ? stroke + '50' : stroke, width: soft ? 1 : 2, class: soft ? 'quiet' : null});
      if (soft) { lines.push(smooth(c.y, smoothing.value / 100)); series.push({...common, label, stroke, width: 2, value: (u, v, s, i) => show(i == null ? v : u.data[s - 1][i])}); }  // the legend tells what was logged
      if (c.lo) {  // thinned: least to most of what a point stands for
        lines.push(c.lo, c.hi);
        series.push(...['least', 'most'].map(label => ({...common, label, stroke: 'transparent', width: 0, class: 'quiet', points: {show: false}})));
        bands.push({series: [series.length - 1, series.length - 2], fill: stroke + '22'});
      }
      tables.push(lines);
    }));
    const range = (u, low, high) => low == null || low === 0 && high === 0 ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true);  // without it, all 0 is drawn on a scale to 100
    if (tables.length) plot(box, {series, bands, scales: {y: {range}}, cursor: {sync: {key: 'iterations'}, drag: {x: true, y: false}, dataIdx: nearest}}, uPlot.join(tables));
    else { plots = plots.filter(([old, u]) => old !== box || u.destroy()); box.replaceChildren(el('p', {textContent: 'nothing to draw'})); }
  }
}
smoothing.oninput = curves;

// ---- answers: one run at a time
const choose = (label, options, onchange) => { const select = el('select', {onchange: () => onchange(+select.value)}, ...options.map((text, i) => el('option', {value: i, textContent: text}))); return el('label', {}, label, select); };
function slider(iters, draw) {
  const said = el('span'), input = el('input', {type: 'range', min: 0, max: iters.length - 1, value: iters.length - 1, oninput: () => { said.textContent = `iteration ${iters[input.value]} (${+input.value + 1} of ${iters.length})`; draw(+input.value); }});
  return [el('label', {}, input, said), () => input.oninput()];
}
let redraw = [];
const answers = el('div');
function rewardCards(run) {
  const {iters, parts, dots} = run.rewards, names = Object.keys(parts);
  if (!names.length) return;
  const grid = el('div', {className: 'grid'}), cards = names.map(name => { const box = el('div'), note = el('p'); grid.append(el('figure', {className: 'card'}, el('b', {textContent: name}), box, note)); return {part: parts[name], box, note, name}; });
  const cloud = el('div');
  if (dots.length) grid.append(el('figure', {className: 'card'}, el('b', {textContent: 'reward against cost'}), cloud, el('p', {textContent: 'An answer a dot: to the right more helpful, below 0 safe. The dashed line is where the mean cost shall be.'})));
  const [control, draw] = slider(iters, at => {
    for (const {part, box, note, name} of cards) {
      const width = (part.high - part.low) / part.counts[0].length, most = Math.max(...part.counts.flat(), 1);
      plot(box, {legend: {show: false}, cursor: {drag: {x: false}}, scales: {x: {range: [part.low, part.high]}, y: {range: [0, most * 1.05]}},
        series: [{}, {stroke: colour(0), fill: colour(0) + 'aa', paths: uPlot.paths.bars({size: [0.95, 100]}), points: {show: false}}]}, [part.counts[at].map((_, i) => part.low + (i + 0.5) * width), part.counts[at]]);
      note.textContent = `answers by ${name}; mean ${show(part.means[at])}` + (part.missing[at] ? `, does not apply to ${part.missing[at]}` : '');
    }
    if (dots.length) {
      const points = dots[at], all = dots.flat(), dot = stroke => ({stroke, paths: () => null, points: {show: true, size: 5, width: 1, stroke, fill: stroke + '88'}});
      const room = of => { const low = Math.min(...all.map(of), 0), high = Math.max(...all.map(of), 0), margin = (high - low) * .05 || 1; return [low - margin, high + margin]; };
      const level = (u, y, dash) => { const at = u.valToPos(y, 'y', true); u.ctx.save(); u.ctx.strokeStyle = ink('--dim'); u.ctx.setLineDash(dash); u.ctx.beginPath(); u.ctx.moveTo(u.bbox.left, at); u.ctx.lineTo(u.bbox.left + u.bbox.width, at); u.ctx.stroke(); u.ctx.restore(); };
      plot(cloud, {legend: {live: false}, cursor: {drag: {x: false}}, scales: {x: {range: room(p => p[0])}, y: {range: room(p => p[1])}}, hooks: {drawAxes: [u => { level(u, 0, []); level(u, -(run.threshold || 0), [6, 4]); }]},
        series: [{label: 'reward', value: (u, v) => show(v)}, {...dot(ink('--up')), label: 'safe', value: (u, v) => show(v)}, {...dot(ink('--down')), label: 'unsafe', value: (u, v) => show(v)}]},
        [points.map(p => p[0]), points.map(p => p[1] <= 0 ? p[1] : null), points.map(p => p[1] > 0 ? p[1] : null)]);
    }
  });
  answers.append(el('h3', {textContent: 'Rewards, answer by answer'}), control, grid);
  redraw.push(draw);
}
function answerText(a, scale, detail) {
  const box = el('div', {className: 'text'});
  if (!a.tokens) { box.append(a.text); return box; }
  const [up, down] = [ink('--up'), ink('--down')], token = i => {
    const change = a.changes[i], said = `${JSON.stringify(a.tokens[i])}: log-prob ${show(a.logps[i])}, change ${signed(change)}`;
    const span = el('span', {textContent: a.tokens[i] === '' ? '∎' : a.tokens[i].replace(/\n/g, '⏎\n'), title: said, onclick: () => { detail.textContent = said; }});
    if (change) span.style.background = (change > 0 ? up : down) + Math.round(20 + 160 * Math.min(1, Math.abs(change) / scale)).toString(16).padStart(2, '0');
    return span;
  };
  if (a.slots) { const at = new Map(a.slots.map((place, i) => [place, i])); Array.from(a.text).forEach((c, place) => box.append(at.has(place) ? token(at.get(place)) : c)); }
  else { a.tokens.forEach((_, i) => box.append(token(i))); if (a.tokens.join('').length < a.text.length) box.append(' …'); }
  return box;
}
function groupCards(run) {
  if (!run.groups.length) return;
  const score = a => Object.entries(a.rewards).map(([name, v]) => `${name} ${show(v)}`).join(' · '), wanted = g => g.wanted && `wanted:${g.wanted.includes('\n') ? '\n' : ' '}${g.wanted}`, prompt = el('div', {className: 'text'}), right = el('div', {className: 'text'}), cards = el('div', {className: 'group'}), detail = el('p', {textContent: 'Touch a token for its numbers.'}), note = el('p');
  const [control, draw] = slider(run.groups.map(g => g.iter), at => {
    const group = run.groups[at], sizes = group.answers.flatMap(a => (a.changes || []).map(Math.abs)).sort((a, b) => a - b), scale = Math.max(sizes[Math.floor(sizes.length * .95)] || 0, 0.02);
    prompt.textContent = group.prompt;
    right.textContent = wanted(group);
    note.textContent = (sizes.length ? `Blue: likelier after the iteration’s step; orange: less likely; full colour at a change of log-prob of ±${show(scale)}. The change of a whole answer stands above it. ` : '') + (group.of > group.answers.length ? `${group.answers.length} of ${group.of} answers.` : '');
    cards.replaceChildren(...group.answers.map((a, i) => el('div', {className: 'card'}, el('b', {textContent: `${i + 1}: advantage ${signed(a.advantage)}`}),
      el('p', {textContent: score(a) + (a.changes ? ` · log-prob ${signed(a.changes.reduce((sum, c) => sum + c, 0))}` : '')}), answerText(a, scale, detail))));
  });
  answers.append(el('h3', {textContent: 'A group: one prompt, its answers'}), control, el('div', {className: 'asked'}, prompt, right), note, detail, cards);
  redraw.push(draw);
  const text = (s, end) => el('div', {className: 'text', textContent: !s.trim() ? JSON.stringify(s) : end && s.length > 300 ? '… ' + s.slice(-300) : s});
  answers.append(el('h3', {textContent: run.nla ? 'Explanations' : 'Best and worst answers'}), el('p', {textContent: run.nla ? 'What the actor wrote about an activation (of the last token of the text above it), and how well the critic rebuilt it from that: reconstruction is the reward.' + (run.config.text_reversed === 'true' ? ' Latest token first: read from the end.' : '') : 'By advantage, in each group of the slider above.'}),
    el('div', {className: 'grid'}, ...[...run.groups].reverse().map(g => {
      const order = [...g.answers].sort((a, b) => (b.advantage ?? 0) - (a.advantage ?? 0)), said = (word, a) => [el('p', {textContent: `${word}: ${score(a)}`}), text(a.text)];
      const alike = order.length > 1 && order[0].advantage != null && order[0].advantage === order.at(-1).advantage;
      return el('div', {className: 'card'}, el('b', {textContent: `iteration ${g.iter}`}), text(g.prompt, true), el('div', {className: 'text', textContent: wanted(g)}), ...said(alike ? 'all worth the same' : 'best', order[0]), ...(order.length > 1 && !alike ? said('worst', order.at(-1)) : []));
    })));
}
function choice(r) {
  plots = plots.filter(([box, u]) => !answers.contains(box) || u.destroy());
  redraw = [];
  answers.replaceChildren();
  rewardCards(runs[r]);
  groupCards(runs[r]);
  redraw.forEach(draw => draw());
}
if (runs.some(run => run.groups.length || run.rewards.iters.length)) section('Completions').append(runs.length > 1 ? choose('run', runs.map(run => run.name), choice) : '', answers);

// ---- settings
const keys = [...new Set(runs.flatMap(run => Object.keys(run.config)))], differ = keys.filter(key => new Set(runs.map(run => run.config[key])).size > 1);
const settings = of => table(['', ...runs.map(run => run.name)], of.map(key => [key, ...runs.map(run => run.config[key] ?? '–')]));
if (keys.length) section('Settings').append(...(differ.length ? [el('p', {textContent: 'Where the runs differ:'}), settings(differ)] : []), el('details', {}, el('summary', {textContent: 'all settings'}), settings(keys)));

const draw = () => { curves(); redraw.forEach(again => again()); };
curves();
choice(0);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
setTimeout(() => { root.dataset.charts = plots.length; root.dataset.ready = Math.round(performance.now()); });  // after uPlot's own microtasks
'''


def write_report(out_dirs: list[str], path: str | None = None):
    """The page of the runs in out_dirs, at path (report.html in the first of them); returns the path. Raises FileNotFoundError where there is no run, OSError where the page cannot be written."""
    runs = [read_run(out_dir) for out_dir in out_dirs]
    names = [os.path.basename(os.path.abspath(out_dir)) for out_dir in out_dirs]
    for run, name, given in zip(runs, names, map(os.path.normpath, out_dirs)):
        run['name'] = name if given == '.' or (os.path.isabs(given) and names.count(name) == 1) else given
    vendored = []
    for name in ('uPlot.min.css', 'uPlot.iife.min.js'):
        with open(os.path.join(VENDOR, name), encoding='utf-8') as f:
            vendored.append(f.read())
    style, scripts = vendored[0] + STYLE, (vendored[1], SCRIPT)
    data = json.dumps({'runs': runs, 'sections': charts_of(runs)}, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c')  # so no text can end the script element
    allowed = ["'sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() + "'" for code in (style, *scripts)]
    page = ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; style-src {allowed[0]}; script-src {allowed[1]} {allowed[2]}; base-uri \'none\'; form-action \'none\'">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>report</title><style>{style}</style></head><body><noscript>This page draws its charts with JavaScript.</noscript>'
            f'<script type="application/json" id="data">{data}</script><script>{scripts[0]}</script><script>{scripts[1]}</script></body></html>\n')
    path = os.path.join(out_dirs[0], 'report.html') if path is None else path
    try:  # renamed when whole: a browser that reloads never sees half of it
        with open(path + '.tmp', 'w', encoding='utf-8', newline='') as f:
            f.write(page)
        os.replace(path + '.tmp', path)
    except OSError as e:
        raise OSError(f"cannot write {path!r}: {e.strerror}") from None
    return path


if __name__ == '__main__':
    sys.excepthook = one_line_errors
    options, folders = [a for a in sys.argv[1:] if a.startswith('-')], [a for a in sys.argv[1:] if not a.startswith('-')]
    if {'-h', '--help'} & set(options):
        print(__doc__.strip())
        sys.exit(0)
    for option in options:
        if not option.startswith('--out=') or option == '--out=':
            raise ValueError(f"{option}: the only option is --out=PATH, where the page goes")
    if not folders:
        raise ValueError("name the out_dir of a run, or several: python report.py out-grpo")
    written = write_report(folders, options[-1].removeprefix('--out=') if options else None)
    print(f"{written} ({os.path.getsize(written) / 1e3:,.0f} kB)")
