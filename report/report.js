'use strict';
const root = document.documentElement;
addEventListener('error', e => {
  root.dataset.error = e.message;
  document.body.prepend('This page failed: ' + e.message);
});
const page = JSON.parse(document.getElementById('data').textContent);
const runs = page.runs, names = runs.map(run => run.name);

function el(tag, ...parts) {  // 'div.card'; its properties, nodes, texts, which are never parsed as HTML
  const [name, className = ''] = tag.split('.'), node = Object.assign(document.createElement(name), {className});
  for (const part of parts) {
    if (part.constructor === Object) Object.assign(node, part);
    else node.append(part);
  }
  return node;
}
const p = text => el('p', text), card = (title, ...parts) => el('div.card', el('b', title), ...parts);
const show = v => {
  if (v == null) return '–';
  const far = v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5);
  return far ? v.toExponential(2).replace(/\.?0*e/, 'e') : String(+v.toPrecision(4));
};
const signed = v => (v > 0 ? '+' : '') + show(v);
const ink = name => getComputedStyle(root).getPropertyValue(name).trim();
const colour = i => ink('--c' + i % 8), dashes = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const header = el('header'), nav = el('nav'), main = el('main');
document.body.append(header, main);
function section(title, ...children) {
  const id = title.toLowerCase().replace(/\W+/g, '-');
  nav.append(el('a', {href: '#' + id}, title), ' ');
  main.append(el('section', {id}, el('h2', title), ...children));
}

// ---- a uPlot as wide as its box, in the page's colours; it is made anew when these change
let plots = [];
function forget(gone) {
  plots = plots.filter(([box, u]) => !gone.contains(box) || u.destroy());
}
function nearest(u, s, i) {  // the point with a value
  const values = u.data[s];
  for (let d = 0; d < values.length; d++) {
    if (values[i - d] != null) return i - d;
    if (values[i + d] != null) return i + d;
  }
  return i;
}
function rest(u) {  // the legend has the last values while nobody points at others
  if (u.cursor.idx == null) u.setLegend({idxs: u.data.map((v, s) => nearest(u, s, v.length - 1))}, false);
}
const dashed = (u, s) => u.series[s].dash?.length;
const markers = {dash: (u, s) => dashed(u, s) ? 'dashed' : 'solid',
  fill: (u, s) => dashed(u, s) ? 'transparent' : u.series[s].stroke(u, s)};
function plot(box, options, data) {
  forget(box);
  const line = {stroke: ink('--line'), width: 1};
  const axis = more => ({stroke: ink('--dim'), grid: line, ticks: {...line, size: 4}, font: '11px system-ui',
    values: (u, at) => at.map(show), ...more});
  plots.push([box, new uPlot({
    width: box.clientWidth || 300, height: 190, axes: [axis({space: 50, size: 30}), axis({size: 58})],
    ...options,
    series: options.series.map(series => ({value: (u, v) => show(v), ...series})),
    legend: {markers, ...options.legend},
    scales: {x: {time: false}, ...options.scales},
    hooks: {setLegend: [rest], ready: [rest]},
  }, data, box)]);
}
addEventListener('resize', () => {
  for (const [box, u] of plots) if (u.width !== box.clientWidth) u.setSize({width: box.clientWidth, height: 190});
});

// ---- head: which runs, how far, their figures
document.title = names.join(' · ') + ' – report';
function progress({last, config: {max_iters}}) {
  if (last == null) return 'no iteration logged yet';
  return last < +max_iters ? `${last} of ${max_iters} iterations: going on, or stopped` : `${last} iterations`;
}
const smoothing = el('input', {type: 'range', min: 0, max: 98, value: 60, id: 'smoothing', oninput: curves});
const bar = el('div.bar', el('label', 'smoothing', smoothing));
const chips = runs.map(() => el('span.chip'));
if (runs.length === 1) {
  const {name, config} = runs[0];
  header.append(el('h1', name), el('p.verdict', runs[0].verdict),
    p(progress(runs[0]) + (config.task ? `, task ${config.task}` : '')));
} else {
  header.append(el('h1', `${runs.length} runs`),
    ...runs.filter(run => run.verdict).map(run => el('p.verdict', el('b', run.name), ` ${run.verdict}`)));
  runs.forEach((run, r) => bar.append(el('label', {title: progress(run)}, chips[r], run.name)));
}
header.append(nav);
main.before(bar);
const table = (...rows) => el('div.wide', el('table.facts',
  ...rows.map((row, i) => el('tr', ...row.map(cell => el(i ? 'td' : 'th', cell))))));
const figures = page.sections.flatMap(s => s.charts.flatMap(c => c.names))
  .filter(name => /^eval\/|^(mean_reward|mean_kl|entropy|mean_length|lambda)$/.test(name));
const change = c => c?.x.length ? (c.x.length > 1 ? `${show(c.first)} → ` : '') + show(c.last) : '–';
section('Figures', table(['first → last', ...names],
  ...figures.map(name => [name, ...runs.map(run => change(run.metrics[name]))])));

// ---- curves
const charts = page.sections.flatMap(s => {
  const grid = el('div.grid');
  section(s.section, grid);
  return s.charts.map(chart => {
    const box = el('div');
    let gaps = 0;
    for (const run of runs) for (const name of chart.names) gaps += run.metrics[name]?.gaps || 0;
    grid.append(card(chart.title, box, p(chart.hint + (gaps ? ` ${gaps} values are no numbers.` : ''))));
    return {...chart, box};
  });
});
function smooth(y, weight) {  // an exponential average without its bias towards the start
  let sum = 0, norm = 0;
  return y.map(v => {
    sum = weight * sum + (1 - weight) * v;
    norm = weight * norm + 1 - weight;
    return +(sum / norm).toPrecision(6);
  });
}
function curves() {
  chips.forEach((chip, r) => { chip.style.background = colour(r); });
  charts.forEach(drawCurves);
}
function drawCurves({box, names}) {
  const several = runs.length > 1, tables = [], series = [{label: 'iteration'}], bands = [];
  runs.forEach((run, r) => names.forEach((name, m) => {
    const c = run.metrics[name];
    if (!c?.x.length) return;
    const metric = name.replace('eval/', ''), stroke = colour(several ? r : m);
    const line = {label: several ? run.name + (names.length > 1 ? ' ' + metric : '') : metric, stroke, width: 2,
      dash: several ? dashes[m % 4] : [], spanGaps: true, points: {show: c.x.length < 40, size: 5, fill: stroke}};
    const lines = [c.x, c.y];
    if (smoothing.value > 0 && c.x.length > 20 && name !== 'lr') {
      lines.push(smooth(c.y, smoothing.value / 100));
      const logged = (u, v, s, i) => show(i == null ? v : u.data[s - 1][i]);  // what the legend tells
      series.push({...line, stroke: stroke + '50', width: 1, class: 'quiet'}, {...line, value: logged});
    } else series.push(line);
    if (c.lo) {  // thinned: least to most of what a point stands for
      lines.push(c.lo, c.hi);
      const edge = {...line, stroke: 'transparent', width: 0, class: 'quiet', points: {show: false}};
      series.push({...edge, label: 'least'}, {...edge, label: 'most'});
      bands.push({series: [series.length - 1, series.length - 2], fill: stroke + '22'});
    }
    tables.push(lines);
  }));
  if (!tables.length) {
    forget(box);
    box.replaceChildren(p('nothing to draw'));
    return;
  }
  const range = (u, low, high) => low || high ? uPlot.rangeNum(low, high, 0.1, true) : [0, 1];  // not to 100
  const cursor = {sync: {key: 'iterations'}, drag: {x: true, y: false}, dataIdx: nearest};
  plot(box, {series, bands, scales: {y: {range}}, cursor}, uPlot.join(tables));
}

// ---- completions: one run at a time
let redraw = [];
const answers = el('div');
function slider(iters, draw) {  // at the last iteration, which redraw draws
  const said = el('span'), last = iters.length - 1;
  const input = el('input', {type: 'range', min: 0, max: last, value: last, hidden: !last});
  input.oninput = () => {
    said.textContent = `iteration ${iters[input.value]} (${+input.value + 1} of ${iters.length})`;
    draw(+input.value);
  };
  redraw.push(input.oninput);
  return el('label', input, said);
}
function range(values) {  // with 0 and a margin
  const low = Math.min(...values, 0), high = Math.max(...values, 0), margin = (high - low) * .05 || 1;
  return {range: [low - margin, high + margin]};
}
function rewardCards({rewards: {iters, parts, dots}, config}) {
  const grid = el('div.grid'), cursor = {drag: {x: false}}, draws = [];
  for (const [name, {low, high, counts, means, missing}] of Object.entries(parts)) {
    const box = el('div'), note = p(''), width = (high - low) / counts[0].length;
    const middles = counts[0].map((_, i) => low + (i + 0.5) * width);
    const scales = {x: {range: [low, high]}, y: {range: [0, Math.max(...counts.flat(), 1) * 1.05]}};
    grid.append(card(name, box, note));
    draws.push(at => {
      const bars = {stroke: colour(0), fill: colour(0) + 'aa', paths: uPlot.paths.bars({size: [0.95, 100]}),
        points: {show: false}};
      plot(box, {legend: {show: false}, cursor, scales, series: [{}, bars]}, [middles, counts[at]]);
      const without = missing[at] ? `, does not apply to ${missing[at]}` : '';
      note.textContent = `completions by ${name}; mean ${show(means[at])}${without}`;
    });
  }
  if (!draws.length) return;
  if (dots.length) {
    const box = el('div'), [x, y] = [0, 1].map(i => range(dots.flat().map(dot => dot[i])));
    grid.append(card('reward against cost', box, p('A completion a dot: to the right more helpful, below 0 safe. ' +
      'The dashed line is where the mean cost shall be.')));
    draws.push(at => {
      const series = [{label: 'reward'}, dotted('safe', ink('--up')), dotted('unsafe', ink('--down')),
        level('0', []), level('wanted', [6, 4])];
      const costs = isSafe => dots[at].map(([, cost]) => cost <= 0 === isSafe ? cost : null);
      plot(box, {legend: {live: false}, cursor, scales: {x, y}, series}, [dots[at].map(dot => dot[0]),
        costs(true), costs(false), dots[at].map(() => 0), dots[at].map(() => -(config.cost_threshold_d || 0))]);
    });
  }
  answers.append(el('h3', 'Rewards, answer by answer'), slider(iters, at => draws.forEach(draw => draw(at))), grid);
}
const dotted = (label, stroke) => ({label, stroke, paths: () => null,
  points: {show: true, size: 5, width: 1, stroke, fill: stroke + '88'}});
const level = (label, dash) => ({label, dash, stroke: ink('--dim'), width: 1, points: {show: false}});
function answerText(a, scale, detail) {  // each token in the colour of its change
  if (!a.tokens) return el('div.text', a.text);
  const box = el('div.text'), [up, down] = [ink('--up'), ink('--down')];
  const tokens = a.tokens.map((text, i) => {
    const change = a.changes[i];
    const title = `${JSON.stringify(text)}: log-prob ${show(a.logps[i])}, change ${signed(change)}`;
    const onclick = () => { detail.textContent = title; };
    const span = el('span', {title, onclick}, text.replace(/\n/g, '⏎\n') || '∎');
    const depth = Math.round(20 + 160 * Math.min(1, Math.abs(change) / scale)).toString(16).padStart(2, '0');
    if (a.own && !a.own[i]) span.className = 'other';  // an environment wrote it
    if (change) span.style.background = (change > 0 ? up : down) + depth;
    return span;
  });
  if (a.slots) {
    const at = new Map(a.slots.map((place, i) => [place, tokens[i]]));
    box.append(...Array.from(a.text, (c, place) => at.get(place) ?? c));
  } else {
    box.append(...tokens);
    if (a.tokens.join('').length < a.text.length) box.append(' …');
  }
  return box;
}
const scores = a => Object.entries(a.rewards).map(([name, v]) => `${name} ${show(v)}`).join(' · ');
const marked = text =>  // slots in colour
  el('div.text', ...text.split(/([□▯▢])/).map((part, i) => i % 2 ? el('span.slot', part) : part));
const wanted = group => group.wanted && `wanted:${group.wanted.includes('\n') ? '\n' : ' '}${group.wanted}`;
function groupCards(groups) {
  const asked = el('div.asked'), note = p(''), detail = p('Touch a token for its numbers.');
  const cards = el('div.group');
  const control = slider(groups.map(group => group.iter), at => {
    const group = groups[at], completions = group.answers;
    const sizes = completions.flatMap(a => (a.changes || []).map(Math.abs)).sort((a, b) => a - b);
    const scale = Math.max(sizes[Math.floor(sizes.length * .95)] || 0, 0.02);
    asked.replaceChildren(marked(group.prompt), el('div.text', wanted(group)));
    note.textContent = sizes.length ? 'Blue: likelier after the iteration’s step; orange: less likely; full ' +
      `colour at a change of log-prob of ±${show(scale)}. The change of a whole completion stands above it. ` : '';
    if (completions.some(a => a.own)) note.textContent += 'Framed: an environment’s. ';
    if (group.of > completions.length) note.textContent += `${completions.length} of ${group.of} completions.`;
    cards.replaceChildren(...completions.map((a, i) => {
      const change = a.changes ? ` · log-prob ${signed(a.changes.reduce((sum, c) => sum + c, 0))}` : '';
      return card(`${i + 1}: advantage ${signed(a.advantage)}`, p(scores(a) + change), answerText(a, scale, detail));
    }));
  });
  answers.append(el('h3', 'A group: one prompt, its completions'), control, asked, note, detail, cards);
}
function choice(r) {
  forget(answers);
  redraw = [];
  answers.replaceChildren();
  rewardCards(runs[r]);
  if (runs[r].groups.length) groupCards(runs[r].groups);
  redraw.forEach(draw => draw());
}
if (runs.some(run => run.groups.length || run.rewards.iters.length)) {
  const options = names.map((name, r) => el('option', {value: r}, name));
  const select = el('select', {onchange: e => choice(+e.target.value)}, ...options);
  section('Completions', runs.length > 1 ? el('label', 'run', select) : '', answers);
}

// ---- settings
const keys = [...new Set(runs.flatMap(run => Object.keys(run.config)))];
const rows = keys.map(key => [key, ...runs.map(run => run.config[key] ?? '–')]);
const differ = rows.filter(([key, ...values]) => new Set(values).size > 1);
const settings = rows => table(['', ...names], ...rows);
if (keys.length) section('Settings', ...(differ.length ? [p('Where the runs differ:'), settings(differ)] : []),
  el('details', el('summary', 'all settings'), settings(rows)));

curves();
choice(0);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  curves();
  redraw.forEach(draw => draw());
});
if (page.version) setInterval(async () => {  // it is served while the run goes on
  const now = await fetch('version').then(reply => reply.text(), () => page.version);
  if (now !== page.version) location.reload();
}, 3000);
setTimeout(() => {  // after uPlot's own microtasks
  root.dataset.charts = plots.length;
  root.dataset.ready = Math.round(performance.now());
});
