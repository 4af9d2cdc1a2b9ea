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
  if (dots.length) grid.append(el('figure', {className: 'card'}, el('b', {textContent: 'reward against cost'}), cloud, el('p', {textContent: 'A completion a dot: to the right more helpful, below 0 safe. The dashed line is where the mean cost shall be.'})));
  const [control, draw] = slider(iters, at => {
    for (const {part, box, note, name} of cards) {
      const width = (part.high - part.low) / part.counts[0].length, most = Math.max(...part.counts.flat(), 1);
      plot(box, {legend: {show: false}, cursor: {drag: {x: false}}, scales: {x: {range: [part.low, part.high]}, y: {range: [0, most * 1.05]}},
        series: [{}, {stroke: colour(0), fill: colour(0) + 'aa', paths: uPlot.paths.bars({size: [0.95, 100]}), points: {show: false}}]}, [part.counts[at].map((_, i) => part.low + (i + 0.5) * width), part.counts[at]]);
      note.textContent = `completions by ${name}; mean ${show(part.means[at])}` + (part.missing[at] ? `, does not apply to ${part.missing[at]}` : '');
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
    note.textContent = (sizes.length ? `Blue: likelier after the iteration’s step; orange: less likely; full colour at a change of log-prob of ±${show(scale)}. The change of a whole completion stands above it. ` : '') + (group.of > group.answers.length ? `${group.answers.length} of ${group.of} completions.` : '');
    cards.replaceChildren(...group.answers.map((a, i) => el('div', {className: 'card'}, el('b', {textContent: `${i + 1}: advantage ${signed(a.advantage)}`}),
      el('p', {textContent: score(a) + (a.changes ? ` · log-prob ${signed(a.changes.reduce((sum, c) => sum + c, 0))}` : '')}), answerText(a, scale, detail))));
  });
  answers.append(el('h3', {textContent: 'A group: one prompt, its completions'}), control, el('div', {className: 'asked'}, prompt, right), note, detail, cards);
  redraw.push(draw);
  const text = (s, end) => el('div', {className: 'text', textContent: !s.trim() ? JSON.stringify(s) : end && s.length > 300 ? '… ' + s.slice(-300) : s});
  answers.append(el('h3', {textContent: run.samples_title}), el('p', {textContent: run.samples_hint}),
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
