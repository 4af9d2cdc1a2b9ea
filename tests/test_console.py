"""What is said while something lasts: on a terminal, in a pipe, with --quiet; and how a run ends."""
import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios

import pytest

from runtime import console
from test_train_grpo import ENV, ROOT, TEXT, TOY, metrics, run
from warm import PYTHON

BARS = '''
import time
from runtime import console
console.BAR_AFTER = 0
for i in console.over('outer', range(3)):
    console.say(f'line {i}')
    for j in console.over('inner', range(4)):
        if j == 2:
            console.say(f'  line {i}.{j}')
'''


def on_a_terminal(command, cwd, width=100):
    """What a command writes to a terminal of this many columns, and its exit status."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 40, width, 0, 0))
    process = subprocess.Popen(
        command, cwd=cwd, env=ENV | {'PYTHONPATH': str(ROOT), 'TERM': 'xterm'}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b''
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # how Linux says that the other side is closed
            break
        written += piece
    os.close(ours)
    return written.decode(), process.wait()


def screen(written):
    """The lines that are left on the terminal, without blank ones at the end."""
    rows, row, column = [[]], 0, 0
    for token in re.findall(r'\x1b\[[\d;]*[A-Za-z]|[^\x1b]', written):
        if token == '\r':
            column = 0
        elif token == '\n':
            row += 1
            rows += [[]] * (row == len(rows))
        elif token == '\x1b[A':
            row -= 1
        else:
            assert len(token) == 1, f"what does {token!r} do to a screen?"
            rows[row] = rows[row] + [' '] * (column + 1 - len(rows[row]))
            rows[row][column] = token
            column += 1
    return '\n'.join(''.join(row).rstrip() for row in rows).rstrip().split('\n')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('made')
    (folder / 'toy.txt').write_text(TEXT)
    done = run(folder, *TOY, '--max_iters=2')
    assert done.returncode == 0, done.stderr
    return folder, done


def test_bars_on_a_terminal_leave_no_trace(tmp_path):
    written, status = on_a_terminal([sys.executable, '-c', BARS], tmp_path)
    assert status == 0 and re.search(r'outer:  33%.*1/3', written) and re.search('inner:  50%.*2/4', written)
    assert screen(written) == ['line 0', '  line 0.2', 'line 1', '  line 1.2', 'line 2', '  line 2.2']


@pytest.mark.parametrize('setting', ['console.quiet = True', 'import os; os.environ["RANK"] = "1"'])
def test_the_quiet_and_the_other_ranks_show_nothing(tmp_path, setting):
    written, status = on_a_terminal([sys.executable, '-c', f'from runtime import console; {setting}' + BARS], tmp_path)
    assert status == 0 and written == ''


def test_where_lines_go_elsewhere_there_is_no_bar(tmp_path):
    """`| tee log` with stderr on the terminal: nothing would clear the bar before a line."""
    written, status = on_a_terminal(['bash', '-c', f'{shlex.quote(sys.executable)} -c {shlex.quote(BARS)} | cat'], tmp_path)
    assert status == 0 and screen(written)[:2] == ['line 0', '  line 0.2'] and written.replace('\r\n', '').isprintable()


def test_a_pipe_gets_lines(monkeypatch, capsys):
    """A line when there was none for a while, the next ones twice as late each; here the clock ticks 10 s at each look."""
    clock = [1000.0]
    monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
    monkeypatch.setattr(console, 'last_line', 1000.0)
    monkeypatch.setattr(console, 'patience', 30.0)
    for i in console.over('texts', range(20)):
        clock[0] += 10
        if i == 12:
            console.say('something else')
    assert capsys.readouterr().out.splitlines() == [
        '  texts 4/20 (20 %, 2 min 40 s left)',
        '  texts 11/20 (55 %, 1 min 30 s left)',
        'something else',
        '  texts 17/20 (85 %, 30 s left)',
    ]
    assert not console.phases and list(console.over('alone', [7])) == [7]


def test_what_a_model_writes_cannot_steer_the_terminal(capsys):
    console.tell('a\x1b[2J\x1b]0;title\x07b\r\u202ec\x9b1m\n\tNaïve “ö” \U0001f469\u200d\U0001f680\xa0%')
    assert capsys.readouterr().out == 'a\\x1b[2J\\x1b]0;title\\x07b\\r\\u202ec\\x9b1m\n\tNaïve “ö” \U0001f469\u200d\U0001f680\xa0%\n'


def test_slots_and_line_ends_are_coloured_on_a_terminal(tmp_path, capsys):
    written, _ = on_a_terminal([sys.executable, '-c', "from runtime import console; console.tell('a□b⏎c')"], tmp_path)
    assert written == 'a\x1b[7m□\x1b[0mb\x1b[7m⏎\x1b[0mc\r\n'
    console.tell('a□b⏎c')
    assert capsys.readouterr().out == 'a□b⏎c\n'


def heard():
    """Ctrl-C, which a shell's background job ignores, with all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize('program', ['train_grpo.py', 'sample.py', 'judge.py', '-m tools.report', '-m tools.eval'])
def test_ctrl_c_while_torch_is_imported(tmp_path, program):
    """A torch that presses it: one line, from each program. In another folder's program it is KeyboardInterrupt, as ever."""
    (tmp_path / 'torch.py').write_text('import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n')
    env = ENV | {'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    command = program.split() if program[0] == '-' else [str(ROOT / program)]
    done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, preexec_fn=heard)
    assert (done.returncode, done.stderr, done.stdout) == (130, 'interrupted before anything was begun\n', '')
    if program == 'sample.py':
        (tmp_path / 'mine.py').write_text('try:\n    import sample\nexcept KeyboardInterrupt:\n    print("mine")\n')
        command = [sys.executable, 'mine.py']
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, preexec_fn=heard)
        assert (done.returncode, done.stderr, done.stdout) == (0, '', 'mine\n')


def test_ctrl_c_in_other_programs(tmp_path):
    """KeyboardInterrupt, as ever: in those that only import ours, in the repo's folder too, and in a benchmark."""
    press = 'import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    print("mine")\n'
    bench = 'import sys\nsys.argv = ["-m"]\nfrom tools import bench\nbench.BENCHES["roof"] = lambda: exec(press)\nbench.main(["roof"])\n'
    for code in ('import policy\n' + press, f'press = {press!r}\n{bench}'):
        done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, preexec_fn=heard)
        assert (done.returncode, done.stderr) == (0, '') and done.stdout.endswith('mine\n')


def test_a_clock_that_jumps(monkeypatch, capsys):
    """What is left is said by a clock that does not."""
    progress = console.Progress('jump', 4, bar_after=0)
    for i, _ in enumerate(progress.over(range(4))):
        monkeypatch.setattr(console.time, 'time', lambda i=i: 1e9 * (-1) ** i)
        left = progress.left(i)
        assert left in ('', ', 0 s left')


def test_a_phase_that_breaks_off_is_over():
    with pytest.raises(KeyError):
        for i in console.over('texts', range(3)):
            raise KeyError(i)
    assert not console.phases


@pytest.mark.parametrize('seconds, text', [(0.4, '0 s'), (59.6, '1 min 0 s'), (201, '3 min 21 s'), (7500, '2 h 5 min')])
def test_duration(seconds, text):
    assert console.duration(seconds) == text


def test_a_run_on_a_terminal(made):
    folder, _ = made
    command = [PYTHON, str(ROOT / 'train_grpo.py'), *TOY, '--out_dir=out-terminal', '--max_iters=3', '--log_interval=9']
    written, status = on_a_terminal(command, folder)
    assert status == 0 and re.search(r'training: .*/3 \[.*reward 0\.\d', written)
    lines = screen(written)
    assert not any('training: ' in line or '|' in line for line in lines)
    assert (
        [line for line in lines if re.match(r'iter \d: reward', line)]
        and re.match(r'(learned|no change|worse): held-out judge reward|the judge is being fooled: ', lines[-6])
        and lines[-5].startswith('done: ')
        and lines[-1].startswith('  go on: ')
    )
    logged = [line['iter'] for line in metrics(folder, 'out-terminal')]
    assert logged == [0, 2, 3]  # the first, and the last that learned, though neither is a multiple of nine; the end


def test_a_run_in_a_pipe_ends_with_what_to_do_next(made):
    folder, done = made
    assert '\r' not in done.stdout + done.stderr and done.stderr == ''
    ended, where, sample, compare, more = done.stdout.splitlines()[-5:]
    assert re.fullmatch(r'done: iterations 0 to 2 in \d.*, \d.* in all', ended)
    assert (
        where == '  in out-grpo: report.html, samples.jsonl, ckpt.pt, ckpt_best.pt, fill_in.pt'
        and more.endswith('--max_iters=4 --init_from=resume')
        and 'python -m tools.report out-grpo' in compare
    )
    shown = subprocess.run([PYTHON, *shlex.split(sample)[3:]], cwd=folder, env=ENV, capture_output=True, text=True)
    assert shown.returncode == 0 and 'log-prob' in shown.stderr, shown.stderr


def test_a_phase_of_no_steps(monkeypatch, capsys):
    """A run of --max_iters=0 whose evaluation lasts: how far it is can still be said."""
    monkeypatch.setattr(console, 'patience', -1.0)
    monkeypatch.setattr(console, 'BAR_AFTER', 0.0)
    with console.Progress('training', 0, bar_after=0):
        assert [i for i in console.over('evaluating', range(2))] == [0, 1]
    assert 'training 0/0 (0 %)' in capsys.readouterr().out


def test_quiet(made):
    """--quiet alone will do; warnings come through. The run goes on as the last one said."""
    folder, done = made
    command = shlex.split(done.stdout.splitlines()[-1])[3:]
    resumed = subprocess.run([PYTHON, *command, '--quiet', '--kl_estimator=k1'], cwd=folder, env=ENV, capture_output=True, text=True)
    lines = resumed.stdout.splitlines()
    assert (
        resumed.returncode == 0
        and resumed.stderr == ''
        and len(lines) == 7
        and lines[0].startswith('warning: k1')
        and lines[2].startswith('done: iterations 2 to 4')
    ), resumed.stdout
    made_quietly = run(folder, *TOY, '--max_iters=0', '--out_dir=out-new', '--quiet=True', '--generator_checkpoint=new/g.pt')
    assert (
        made_quietly.returncode == 0
        and len(made_quietly.stdout.splitlines()) == 5
        and made_quietly.stdout.startswith('done: iterations 0 to 0')
    ), made_quietly.stdout
