"""report.py: what gets into the page, and what a real browser makes of it (headless Chromium; without one those tests are skipped)."""
import fcntl
import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import report
from report import POINTS, evenly, picked
from tasks import TASKS
from test_console import heard
from tools.report import runs_in
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
HOSTILE = ('</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2"><svg onload=window.hacked=3>\u202eabc\ud800 '
           '{{x}} <!--<script> \u2028')


def page_of(out_dirs, path=None):
    return report.write_report(out_dirs, TASKS, path)


def write_run(folder, iterations=60, groups=True, kind='alignment', seed=0, hostile='', max_iters=None):
    """The files of a run as train_grpo.py leaves them, made up."""
    noise = random.Random(seed)
    folder.mkdir(parents=True)
    with open(folder / 'metrics.jsonl', 'w') as f:
        for it in range(iterations + 1):
            row = {
                'iter': it,
                'loss': noise.gauss(0, 1e-3),
                'mean_reward': it / iterations + noise.gauss(0, 0.1),
                'std_reward': 0.4,
                'reward/helpfulness' + hostile: noise.random(),
                'mean_kl': it * 1e-4,
                'entropy': 2 - it / iterations,
                'clip_frac_low': 0.0,
                'clip_frac_high': 0.01,
                'sampler_gap_mean': 1e-7,
                'sampler_gap_max': 3e-6,
                'mean_length': 20 + noise.random(),
                'frac_truncated': 0.1,
                'time_rollout': 0.5,
                'time_reward': 0.1,
                'time_train': 0.7,
                'tokens_per_s': 5000 + 100 * noise.random(),
                'lambda': 0.5 + it / iterations,
                'cost': 0.3 - it / iterations,
                'safe_ratio': 0.5,
                'grad_norm': 1.0,
                'lr': 1e-7,
                'mean_advantage': (it % 3 - 1) * 1e-9,
                'frac_reward_zero_std': 0.1,
            }
            if it % max(1, iterations // 10) == 0:
                row |= {'eval/reward': it / iterations, 'eval/cost': 0.2 - it / iterations, 'eval/surprise': 1.0}
            f.write(json.dumps(row) + '\n')
    with open(folder / 'rewards.jsonl', 'w') as f:
        for it in range(0, iterations, 5):
            f.write(
                json.dumps(
                    {
                        'iter': it,
                        'helpfulness': [round(noise.gauss(it / iterations, 1), 4) for _ in range(128)],
                        'cost': [round(noise.gauss(-it / iterations, 1), 4) for _ in range(127)] + [None],
                    }
                )
                + '\n'
            )
    with open(folder / 'samples.jsonl', 'w') as f:
        for it in range(0, iterations if groups else 0, 10):
            for _g in range(4):
                words = [f'w{noise.randrange(99)} ' for _ in range(12)] + ['\ufffd', '', hostile]
                f.write(
                    json.dumps(
                        {
                            'iter': it,
                            'prompt': f'prompt {it} {hostile}',
                            'answer': f'{it + 37} {hostile}',
                            'completion': ''.join(words),
                            'reward/helpfulness' + hostile: noise.random(),
                            'reward/cost': None,
                            'advantage': noise.gauss(0, 1),
                            'tokens': words,
                            'logps': [-noise.random() for _ in words],
                            'logp_changes': [noise.gauss(0, 0.1) for _ in words],
                        }
                    )
                    + '\n'
                )
    (folder / 'config.json').write_text(
        json.dumps({'task': kind, 'max_iters': max_iters or iterations, 'cost_threshold_d': 0.7, 'seed': seed, 'system_prompt': hostile})
    )
    return str(folder)


# -----------------------------------------------------------------------------
# a browser, spoken to through its debugging pipe: JSON, ended by a zero byte

class Browser:
    def __init__(self, profile):
        (theirs, self.to), (self.back, answers) = os.pipe(), os.pipe()
        theirs, answers = (fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs, answers))  # out of the way of 3 and 4
        self.log = open(profile / 'chromium.log', 'w')
        self.process = subprocess.Popen(
            [
                'bash',
                '-c',
                f'exec "$@" 3<&{theirs} 4>&{answers}',
                'bash',
                CHROMIUM,
                '--headless=new',
                '--remote-debugging-pipe',
                f'--user-data-dir={profile}',
                '--no-first-run',
                '--disable-gpu',
                '--disable-background-networking',
                '--disable-component-update',
                '--disable-dev-shm-usage',
                *(['--no-sandbox'] if os.geteuid() == 0 else []),
                'about:blank',
            ],
            pass_fds=(theirs, answers),
            stdout=self.log,
            stderr=self.log,
        )
        os.close(theirs), os.close(answers)
        self.unread, self.events, self.number = b'', [], 0

    def hear(self):
        while b'\0' not in self.unread:
            if not select.select([self.back], [], [], 240)[0]:
                raise TimeoutError('Chromium has said nothing for four minutes')
            piece = os.read(self.back, 1 << 20)
            if not piece:
                raise ConnectionError('Chromium has gone: ' + Path(self.log.name).read_text()[-1000:])
            self.unread += piece
        message, _, self.unread = self.unread.partition(b'\0')
        return json.loads(message)

    def ask(self, method, session=None, **params):
        self.number += 1
        os.write(
            self.to,
            json.dumps({'id': self.number, 'method': method, 'params': params} | ({'sessionId': session} if session else {})).encode()
            + b'\0',
        )
        while True:
            message = self.hear()
            if message.get('id') == self.number:
                assert 'error' not in message, message
                return message['result']
            self.events.append(message)

    def open(self, path, width=1300, height=900, dark=False, touch=False):
        """
        A tab with the page, drawn. Returns ask() and js() of that tab, and the list that its exceptions, console messages and requests go
        to.
        """
        target = self.ask('Target.createTarget', url='about:blank')['targetId']
        session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        self.events.clear()

        def ask(method, **params):
            return self.ask(method, session, **params)

        for domain in ('Runtime', 'Log', 'Network', 'Page'):
            ask(f'{domain}.enable')
        ask('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=touch)
        ask('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])
        ask('Page.navigate', url=Path(path).resolve().as_uri())

        def js(expression):
            found = ask('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
            assert 'exceptionDetails' not in found, found
            return found['result'].get('value')

        for _ in range(1000):  # asked again until the page says that it is ready; each question waits for the browser
            if js(
                'document.readyState === "complete" && (document.documentElement.dataset.ready || document.documentElement.dataset.error)'
            ):
                return ask, js
            js('new Promise(done => setTimeout(done, 20))')
        raise TimeoutError(f"{path} was not ready: {self.events[-5:]}")

    def complaints(self):
        """What went wrong in the tab, and what it asked for besides its own file."""
        wrong = [m for m in self.events if m['method'] in ('Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled')]
        return wrong + [m['params']['request']['url'] for m in self.events if m['method'] == 'Network.requestWillBeSent' and not m['params']['request']['url'].startswith('file://')]

    def requests(self):
        return [m['params']['request']['url'] for m in self.events if m['method'] == 'Network.requestWillBeSent']

    def close(self):
        self.ask('Browser.close')
        self.process.wait(240)
        os.close(self.to), os.close(self.back), self.log.close()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip('no Chromium here: apt-get install chromium, and these tests look at the page itself')
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()


BLANK = """plots.filter(([, u]) => { const pixels = u.ctx.getImageData(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size < 3; }).length"""                # one colour is nothing, two may be a grid


def test_page_in_the_browser(browser, tmp_path):
    """
    Two runs, light, dark and as wide as a phone: every chart has drawn, nothing complains, nothing but the file is asked for, nothing
    sticks out.
    """
    page = page_of([write_run(tmp_path / 'a', 400), write_run(tmp_path / 'b', 90, seed=1, max_iters=200)], str(tmp_path / 'both.html'))
    papers = set()
    for options in ({}, {'dark': True}, {'width': 390, 'height': 844, 'touch': True}):
        ask, js = browser.open(page, **options)
        assert browser.complaints() == [] and len(browser.requests()) == 1
        wanted = js("charts.length + Object.keys(runs[0].rewards.parts).length + 1")
        assert js('+document.documentElement.dataset.charts') == js("document.querySelectorAll('.uplot').length") == wanted > 20
        assert js(BLANK) == 0
        assert js('document.documentElement.scrollWidth <= innerWidth')
        assert js(
            "[...document.querySelectorAll('.u-live .u-series:not(.quiet) ~ .u-series:not(.quiet) .u-marker')].map(m => "
            "getComputedStyle(m)).every(s => s.backgroundColor === (s.borderTopStyle === 'dashed' ? 'rgba(0, 0, 0, 0)' : s.borderTopColor))"
        )  # filled
        papers.add(js("getComputedStyle(document.body).backgroundColor + ink('--ink')"))
    assert len(papers) == 2
    text = js('document.body.innerText')
    assert all(
        words in text
        for words in (
            '2 runs',
            'surprise',
            'reward against cost',
            'advantage',
            'lambda',
            'Where the runs differ',
            'seed',
        )
    )


def test_controls(browser, tmp_path):
    ask, js = browser.open(page_of([write_run(tmp_path / 'a', 100), write_run(tmp_path / 'b', 100, seed=1)]))
    lines = "plots.find(([box]) => box === charts.find(c => c.title === 'mean reward').box)[1].series.length"
    assert js(lines) == 1 + 2 * 2  # iteration; of each run what was logged, and smoothed
    js("smoothing.value = 0, smoothing.oninput(), 0")
    assert js(lines) == 1 + 2
    before = js("document.querySelector('.group').textContent")
    js("for (const input of answers.querySelectorAll('input[type=range]')) { input.value = 0; input.oninput(); }")
    assert (
        'iteration 0 (1 of ' in js('answers.textContent')
        and 'prompt 0 wanted: 37 ' in js('answers.textContent')
        and js("document.querySelector('.group').textContent") != before
    )
    before = js("document.querySelector('.group').textContent")
    js("answers.previousSibling.querySelector('select').value = 1, choice(1), 0")
    assert js("document.querySelector('.group').textContent") != before and js(BLANK) == 0
    js("answers.querySelector('.text span').click()")
    assert re.search(r'"w\d+ ": log-prob -0\.\d+, change [+-]?0\.\d+', js('answers.textContent'))
    assert browser.complaints() == []


def test_hostile_texts_are_only_texts(browser, tmp_path):
    """Model output, names of rewards and settings that try to be HTML, in the file and in the browser."""
    page = page_of([write_run(tmp_path / 'a<img src=x onerror=window.hacked=4>', hostile=HOSTILE)])
    source = Path(page).read_text()
    assert source.count('<script') == 3 and source.count('</script') == 3 and '<img' not in source and '<!--' not in source
    ask, js = browser.open(page)
    assert js('window.hacked') is None and js("document.querySelectorAll('main img, main svg, header img').length") == 0
    assert (
        js("document.querySelector('.group').textContent").count('<img src=x onerror=') == 4 + 4 and js(BLANK) == 0
    )  # as a text, and in the name of a reward
    assert browser.complaints() == [] and len(browser.requests()) == 1
    js(
        "document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/x.png'})), "
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=5>'), 0"
    )
    js('new Promise(done => setTimeout(done, 50))')                                      # even if it got in: the page's policy stops it
    assert js('window.hacked') is None and any('Content Security Policy' in str(m) for m in browser.complaints())


@pytest.fixture(scope='module')
def long(tmp_path_factory):
    """10,000 iterations and one more, in which something explodes."""
    folder = write_run(tmp_path_factory.mktemp('runs') / 'long', 10_000)
    with open(folder + '/metrics.jsonl', 'a') as f:
        f.write(json.dumps({'iter': 10_001, 'loss': 7.0, 'grad_norm': float('nan')}) + '\n')
    return folder


def test_a_long_run_is_thinned(long):
    """Few points, a small file, and every spike still inside its band."""
    run = report.read_run(long, TASKS)
    loss = run['metrics']['loss']
    assert (
        len(loss['x']) <= POINTS
        and loss['x'] == sorted(loss['x'])
        and loss['hi'][-1] == loss['last'] == loss['most'] == 7.0
        and min(loss['lo']) == loss['least']
    )
    bands = zip(loss['lo'], loss['y'], loss['hi'], strict=True)
    assert all(lo <= y <= hi for lo, y, hi in bands) and run['metrics']['grad_norm']['gaps'] == 1
    assert (
        len(run['groups']) <= 24
        and [run['groups'][0]['iter'], run['groups'][-1]['iter']] == [0, 9990]
        and len(run['rewards']['iters']) <= 40
    )
    assert os.path.getsize(page_of([long])) < 500_000


def test_only_rounding_is_not_charted(tmp_path):
    """mean_advantage is 1e-9 all along. What is tiny by nature stays: lr, and the gap of 1e-7 between sampler and trainer."""
    names = {
        name
        for section in report.charts_of([report.read_run(write_run(tmp_path / 'run', 600), TASKS)], TASKS)
        for chart in section['charts']
        for name in chart['names']
    }
    assert 'mean_advantage' not in names and {'lr', 'sampler_gap_mean', 'mean_kl', 'loss'} <= names


def test_a_long_run_in_the_browser(browser, long):
    ask, js = browser.open(page_of([long]))
    assert js('plots.every(([, u]) => u.data[0].length <= 1000)') and js(BLANK) == 0 and browser.complaints() == []
    assert '1 values are no numbers' in js('document.body.innerText')


@pytest.fixture
def odd(tmp_path):
    """
    Two runs, `empty` and `odd`: one that goes on (a torn line), values that are no numbers, lines that are something else, an iteration
    logged twice, files that are missing.
    """
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'config.json').write_text('{"task": "completion", "max_iters": 5')
    (tmp_path / 'odd').mkdir()
    (tmp_path / 'odd' / 'metrics.jsonl').write_bytes(
        b'{"iter": 0, "loss": NaN, "mean_reward": 1}\n[1, '
        b'2]\nnull\n\xff\xfe\n{"iter": "x"}\n{"iter": 1, "loss": null, "mean_reward": -Infinity, "note": "text", "flag": true}\n'
        b'{"iter": 2, "loss": 3, "mean_reward": 2}\n{"iter": 2, "loss": 4, "mean_reward": 2e299}\n{"iter": 3, "lo'
    )
    (tmp_path / 'odd' / 'rewards.jsonl').write_text(
        '{"iter": 0, "a": [1, null, NaN], "b": []}\n{"iter": 1, "a": 5, "c": [2, 2]}\n{"iter": 2, "a": [1'
    )
    (tmp_path / 'odd' / 'samples.jsonl').write_text(
        '{"iter": 0, "prompt": ["a", "list"], "completion": "old, without tokens", "reward/a": null, "advantage": NaN}\n'
        '{"iter": 0, "completion": "b", "tokens": ["b"], "logps": [NaN], "logp_changes": [null], "slots": [99]}\n{"iter": 1, "prompt"'
    )
    return tmp_path


def test_torn_odd_and_empty_logs(odd):
    run = report.read_run(str(odd / 'odd'), TASKS)
    assert run['metrics']['loss'] == {'x': [2], 'y': [4], 'gaps': 2, 'first': 4, 'last': 4, 'least': 4, 'most': 4} and run['last'] == 2
    assert run['metrics']['mean_reward']['y'] == [1, 2e299] and not {'note', 'flag'} & run['metrics'].keys()
    assert (
        run['rewards']['iters'] == [0, 1]
        and [sum(bars) for bars in run['rewards']['parts']['a']['counts']] == [1, 0]
        and run['rewards']['parts']['a']['missing'] == [2, 0]
    )
    assert len(run['groups']) == 1 and len(run['groups'][0]['answers']) == 2
    empty = report.read_run(str(odd / 'empty'), TASKS)
    assert empty['last'] is None and empty['metrics'] == empty['config'] == {} and empty['groups'] == []


def test_torn_odd_and_empty_logs_in_the_browser(browser, odd):
    for folders in (['empty'], ['odd'], ['empty', 'odd']):
        ask, js = browser.open(page_of([str(odd / folder) for folder in folders]))
        js('choice(runs.length - 1), 0')
        assert browser.complaints() == [] and js('document.documentElement.dataset.error') is None
        text = js('document.body.innerText')
        assert ('old, without tokens' in text) == ('odd' in folders) and ('no iteration logged yet' in text) == (folders == ['empty'])


def test_a_histogram_of_one_value():
    """Also of one so large that half a unit is lost in it."""
    for value in (0.0, 1e20, -1e20):
        assert sum(report.histogram([[value]])['counts'][0]) == 1


def test_picked_and_evenly(tmp_path):
    assert evenly([1, 2, 3], 5) == [1, 2, 3] and evenly(list(range(101)), 5) == [0, 25, 50, 75, 100]
    (tmp_path / 'samples.jsonl').write_text(
        ''.join(json.dumps({'iter': it, 'text': '"iter": 77'}) + '\n' for it in range(50) for _ in range(2))
    )
    assert {it: len(found) for it, found in picked(tmp_path, 'samples.jsonl', 3).items()} == {0: 2, 24: 2, 49: 2}
    assert picked(tmp_path, 'nothing.jsonl', 3) == {}


def test_command_line(tmp_path):
    folder = write_run(tmp_path / 'run', 20)
    (tmp_path / 'empty').mkdir()
    environment = os.environ | {'PYTHONPATH': str(ROOT)}

    def run(*arguments):
        command = [PYTHON, '-m', 'tools.report', *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert 'report.html' in run(folder).stdout and os.path.exists(folder + '/report.html')
    assert run(folder, '--out=here.html').returncode == 0 and (tmp_path / 'here.html').exists()
    for arguments, words in (
        (('nowhere',), "error: there is no folder 'nowhere'"),
        (('emptyy',), "error: there is no folder 'emptyy'; did you mean empty?"),
        (('empty',), "error: no metrics.jsonl or config.json in 'empty': name the out_dir"),
        ((folder, '--out=no/such/folder.html'), "error: cannot write 'no/such/folder.html': No such file"),
        ((), 'error: name the out_dir of a run'), ((folder, '--smooth=1'), "error: --smooth=1: unknown key 'smooth'"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and done.stderr.startswith(words) and done.stderr.count('\n') == 1, done.stderr
    assert 'no module' not in run('--help').stdout and 'python -m tools.report out-grpo' in run('--help').stdout


def test_a_folder_of_runs(tmp_path):
    """What tools/compare.py leaves: out_dir/start, out_dir/arm/seed-1. A run's own folder is that run, whatever lies below it."""
    for name in ('start', 'a/seed-1', 'a/seed-2', 'b/seed-1', 'b/seed-1/old'):
        write_run(tmp_path / 'out' / name, 3, groups=False)
    wanted = [str(tmp_path / 'out' / name) for name in ('a/seed-1', 'a/seed-2', 'b/seed-1', 'start')]
    assert runs_in(str(tmp_path / 'out')) == wanted and runs_in(wanted[2]) == wanted[2:3]
    with pytest.raises(FileNotFoundError, match='did you mean .*/out\\?'):
        runs_in(str(tmp_path / 'oout'))
    page = report.page_of(wanted, TASKS)
    assert all(f'"name":"{name}"' in page for name in ('a/seed-1', 'a/seed-2', 'b/seed-1', 'start'))


def test_a_single_reward_is_drawn_once():
    """Of one reward of weight 1 the mean is drawn alone; of weight 2, or of two, each has its own."""
    def drawn(*runs):
        curves = [{name: {'y': [y], 'least': y, 'most': y} for name, y in run.items()} for run in runs]
        return report.moved_metrics([{'metrics': metrics} for metrics in curves])

    assert drawn({'mean_reward': 0.5, 'reward/judge': 0.5}) == ['mean_reward']
    assert drawn({'mean_reward': 1.0, 'reward/judge': 0.5}) == ['mean_reward', 'reward/judge']
    assert drawn({'mean_reward': 0.5, 'reward/a': 0.5}, {'mean_reward': 0.7, 'reward/a': 0.2}) == ['mean_reward', 'reward/a']


@pytest.fixture
def served(tmp_path):
    """(address, process) of a run's page that is served, on a port of its own."""
    folder = write_run(tmp_path / 'run', 20)
    command = [sys.executable, '-m', 'tools.report', '--serve', folder, '--port=0']
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    address = process.stdout.readline().split()[0]
    yield address, process, folder
    process.kill()
    process.wait()


def test_the_page_is_served(served, tmp_path):
    """The page as it is, anew when the run has logged; to this machine under its own name alone; a port in use is said; Ctrl-C ends it."""
    address, process, folder = served

    def get(path, **headers):
        try:
            with urllib.request.urlopen(urllib.request.Request(address + path, headers=headers), timeout=60) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    assert address.startswith('http://127.0.0.1:')
    (_, page), (_, version) = get('/'), get('/version')
    alone = Path(page_of([folder])).read_text()
    assert page == alone.replace('"version":""', f'"version":"{version}"') != alone
    with open(folder + '/metrics.jsonl', 'a') as f:
        f.write('{"iter": 21, "loss": 77.5}\n')
    assert get('/version')[1] != version and '77.5' in get('/')[1] and '77.5' not in page
    assert get('/', Host='evil.example')[0] == 403 and get('/../etc/passwd')[0] == get('/report.html')[0] == 404
    port = address.rpartition(':')[2]
    command = [PYTHON, '-m', 'tools.report', '--serve', folder, f'--port={port}']
    busy = subprocess.run(command, cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert busy.returncode == 1 and busy.stderr == f'error: cannot listen on port {port} (Address already in use): name another --port\n'
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ('no longer served\n', '') and process.returncode == 0


def test_a_served_page_loads_itself_again(browser, served):
    address, _, folder = served
    ask, js = browser.open(page_of([folder]))

    def loaded():
        while 'Page.loadEventFired' not in [event['method'] for event in browser.events]:
            browser.events.append(browser.hear())
        browser.events.clear()
        return js('page.runs[0].last')

    browser.events.clear()
    ask('Page.navigate', url=address)
    assert loaded() == 20
    with open(folder + '/metrics.jsonl', 'a') as f:
        f.write('{"iter": 21, "loss": 77.5}\n')
    assert loaded() == 21


def test_a_chart_may_name_all_metrics_of_a_kind():
    names = ['eval/reward/level', 'eval/reward', 'eval/reward_greedy/level', 'eval/reward/length']
    run = {'task': 'completion', 'metrics': {name: {'x': [0], 'y': [0.5], 'least': 0.5, 'most': 0.5} for name in names}}
    charts = [(chart['title'], chart['names']) for section in report.charts_of([run], TASKS) for chart in section['charts']]
    assert charts == [('every reward', ['eval/reward/level', 'eval/reward/length', 'eval/reward_greedy/level']),
                      ('held-out reward', ['eval/reward'])]
