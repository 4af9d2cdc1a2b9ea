"""Every kind of value and every kind of error, in a real script run as a real process; then the settings of train_grpo.py."""
import math
import re
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest

import grpo
import runtime.config
from runtime.config import bounds_in_words, check, configure, inside, members, parts_of, read_keys, read_room, rooms_of
from tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = '''
"""A script."""
import json
from runtime.config import configure
# the numbers
lr = 0.1               # learning rate
steps = 10             # how many
flag = False
# the rest
name = 'x'             # a name
pair = (1, 2)
items = ['a']
limit: float | None = None  # perhaps
hook: object = None
later = steps * 2      # not a setting: computed
config = configure(globals())
print(json.dumps(vars(config), default=lambda f: f.__name__ + str(f(1))))
'''


@pytest.fixture
def run(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT.lstrip())

    def run(*arguments, **files):
        for name, text in files.items():
            (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=tmp_path,
            env={'PYTHONPATH': str(ROOT), 'PATH': ''},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout.strip(), done.stderr.strip()
    return run


@pytest.mark.parametrize(
    'argument, shown',
    [
        ('--lr=0.5', '"lr": 0.5'),
        ('--lr=1', '"lr": 1.0'),
        ('--lr=1e-3', '"lr": 0.001'),
        ('--steps=7', '"steps": 7'),
        ('--flag=True', '"flag": true'),
        ('--flag', '"flag": true'),
        ('--name=bare', '"name": "bare"'),
        ('--name=7', '"name": "7"'),
        ('--name="7"', '"name": "7"'),
        ('--name=a=b=c', '"name": "a=b=c"'),
        ('--name=', '"name": ""'),
        ('--name=two words', '"name": "two words"'),
        ('--pair=(3,4)', '"pair": [3, 4]'),
        ('--pair=[3,4]', '"pair": [3, 4]'),
        ('--items=("b",)', '"items": ["b"]'),
        ('--limit=3', '"limit": 3.0'),
        ('--limit=None', '"limit": null'),
    ],
)
def test_values(run, argument, shown):
    code, out, err = run(argument)
    assert code == 0 and shown in out, err


@pytest.mark.parametrize(
    'argument, words',
    [
        ('--stepz=3', ["unknown key 'stepz'", "did you mean 'steps'"]),
        ('--zzzz=3', ["unknown key 'zzzz'"]),
        ('--later=3', ["unknown key 'later'"]),
        ('--steps=1.5', ['steps must be int', '1.5']),
        ('--steps=many', ['steps must be int', "'many'"]),
        ('--steps=True', ['steps must be int']),
        ('--flag=1', ['flag must be bool']),
        ('--pair=3', ['pair must be tuple']),
        ('--limit=soon', ['limit must be float | None', "'soon'"]),
        ('--name', ['--key=value']),
        ('-x=3', ['--key=value']),
        ('nowhere.py', ["no config file 'nowhere.py'"]),
    ],
)
def test_errors_are_one_line(run, argument, words):
    code, out, err = run(argument)
    assert code == 1 and len(err.splitlines()) == 1 and all(word in err for word in words), err


def test_later_wins(run):
    code, out, err = run(
        'one.py', '--steps=3', 'two.py', one='steps = 1\nlr = 0.5\nname = "one"', two='import math\n_half = 0.5\nsteps = 2\nlr = 0.25'
    )
    assert '"steps": 3' in out and '"lr": 0.25' in out and '"name": "one"' in out, err


def test_a_config_may_define_functions(run):
    code, out, err = run('one.py', one='def double(x):\n    return 2 * x\nhook = double')
    assert code == 0 and '"hook": "double2"' in out, err


@pytest.mark.parametrize(
    'text, words',
    [
        ('steps = = 2', ['one.py, line 1']),
        ('\nsteps = 1 / 0', ['one.py, line 2', 'ZeroDivisionError']),
        ('stepz = 2', ["unknown key 'stepz'", "'steps'"]),
    ],
)
def test_errors_in_a_config_file(run, text, words):
    code, out, err = run('one.py', one=text)
    assert code == 1 and len(err.splitlines()) == 1 and all(word in err for word in words), err


def test_help_prints_every_key(run):
    code, out, err = run('--help')
    assert code == 0 and 'A script.' in out and 'the numbers' in out and 'learning rate' in out
    assert all(f'--{key}=' in out for key in ('lr', 'steps', 'flag', 'name', 'pair', 'items', 'limit'))

# --- the settings of train_grpo.py

def train_grpo(*arguments):
    """What train_grpo.py would work with, given these arguments."""
    path = ROOT / 'train_grpo.py'
    namespace = {'__file__': str(path)}
    exec(path.read_text().partition('cfg = configure(')[0], namespace)
    return configure(namespace, grpo.Settings, tasks=TASKS, argv=arguments)


def every_setting():
    """{key: Setting} of the run, of the step and of all tasks."""
    names = vars(runtime.config) | {'Literal': typing.Literal}
    keys = read_keys((ROOT / 'train_grpo.py').read_text(), names) | read_room(grpo.Settings)
    for task in TASKS.values():
        for room in rooms_of(task):
            keys |= read_room(room)
    return keys


SETTINGS = every_setting()


@pytest.fixture(autouse=True)
def same_excepthook(monkeypatch):
    """configure sets one."""
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)


def test_every_number_has_a_range():
    """A range is checked before any time is spent; a number without one is found out about an hour later."""
    intervals = {}
    for key, setting in SETTINGS.items():
        for member in members(setting.kind):
            base, interval = parts_of(member)
            if base in (int, float):
                intervals[key] = interval
    assert len(intervals) > 60
    assert [key for key, interval in intervals.items() if interval is None] == []


def test_every_default_is_one_that_is_taken():
    for key, default in vars(train_grpo()).items():
        assert check(key, default, SETTINGS, 'the default') == default


@pytest.mark.parametrize('interval, inner, outer, words', [
    ('[1, inf)', (1, 10 ** 9), (0, -1, math.inf, math.nan), 'at least 1'),
    ('(0, inf]', (1e-9, math.inf), (0, -1, math.nan), 'above 0'),
    ('(0, 1]', (0.5, 1), (0, 1.1, math.nan), 'above 0 and at most 1'),
    ('[0, 1)', (0, 0.999), (1, -0.1), 'at least 0 and below 1'),
    ('[0, 1]', (0, 1), (-0.1, 1.1, math.nan), 'between 0 and 1'),
    ('(-inf, inf)', (-1e9, 0), (math.inf, -math.inf, math.nan), 'finite')])
def test_intervals(interval, inner, outer, words):
    assert [inside(value, interval) for value in inner] == [True] * len(inner)
    assert [inside(value, interval) for value in outer] == [False] * len(outer)
    assert bounds_in_words(interval) == words


@pytest.mark.parametrize('argument, words', [
    ('--group_size=1', 'group_size is 1; it must be at least 2'),
    ('--top_p=0', 'top_p is 0; it must be above 0 and at most 1'),
    ('--beta1=1', 'beta1 is 1; it must be at least 0 and below 1'),
    ('--ema_alpha=1.5', 'ema_alpha is 1.5; it must be between 0 and 1'),
    ('--dual_clip=1', 'dual_clip is 1; it must be above 1, or None'),
    ('--injection_scale=0', 'injection_scale is 0; it must be above 0, or one of raw, residual, or None'),
    ('--injection_scale=long', "injection_scale is 'long'; it must be above 0, or one of raw, residual, or None"),
    ('--truncated_reward=1e999', 'truncated_reward is inf; it must be finite'),
    ('--dual_clip=no', "dual_clip must be float | None, not 'no' (str)"),
    ('--batch_size=2.5', 'batch_size must be int, not 2.5 (float)'),
    ('--advantage=ppo', "advantage is 'ppo'; it must be one of grpo, dr_grpo, batch, rloo, gae"),
    ('--task=chess', f"task is 'chess'; it must be one of {', '.join(TASKS)}"),
    ('--kl_bata=0.1', "unknown key 'kl_bata'; did you mean 'kl_beta'?")])
def test_values_out_of_range(argument, words):
    with pytest.raises(ValueError) as error:
        train_grpo(argument)
    assert str(error.value) == f'{argument}: {words}'


@pytest.mark.parametrize('arguments, words', [
    (['--judge_iters=5', '--task=completion'], "--judge_iters=5: judge_iters is for task fill_in, and task is 'completion'"),
    (['--max_new_tokens=5'], "--max_new_tokens=5: max_new_tokens is for task completion and alignment and nla, and task is 'fill_in'"),
    (['--lambda_lr=0.1', '--task=nla'], "--lambda_lr=0.1: lambda_lr is for task alignment, and task is 'nla'"),
    (['--lora_r=4'], "--lora_r=4: lora_r means nothing to task 'fill_in'")])
def test_keys_of_another_task(arguments, words):
    """By name, whether on the command line or in a file; what the other task has as its default disturbs nobody."""
    with pytest.raises(ValueError) as error:
        train_grpo(*arguments)
    assert str(error.value) == f'{words}: leave it out'


def test_keys_of_another_task_in_a_file(tmp_path):
    path = tmp_path / 'mixed.py'
    path.write_text("task = 'nla'\nmax_new_tokens = 5\nmask_ratio = (0.1, 0.2)\n")
    with pytest.raises(ValueError, match=r"mixed.py: mask_ratio is for task fill_in, and task is 'nla'"):
        train_grpo(str(path))
    path.write_text("task = 'nla'\nmax_new_tokens = 5\n")
    assert train_grpo(str(path)).max_new_tokens == 5


class Mine:
    """A room with a name that another has too."""
    kl_beta = 0.5


class Other:
    """A room that contradicts itself."""
    low = 0.5
    high = 1.0

    @staticmethod
    def check(cfg):
        if cfg.low > cfg.high:
            raise ValueError(f"low is {cfg.low}; it must be at most high, {cfg.high}")


def test_a_name_has_one_owner(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text('seed = 1\n')
    with pytest.raises(AssertionError, match='kl_beta is a setting of grpo and of test_config'):
        configure({'__file__': str(path), 'seed': 1}, grpo.Settings, Mine, argv=[])


def test_contradictions_are_the_rooms_own(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text('seed = 1\n')
    namespace = {'__file__': str(path), 'seed': 1}
    assert vars(configure(namespace, Other, argv=['--low=0.9', '--seed=2'])) == {'seed': 2, 'low': 0.9, 'high': 1.0}
    assert namespace['seed'] == 2 and 'low' not in namespace
    with pytest.raises(ValueError, match='low is 2.0; it must be at most high, 1.0'):
        configure(namespace, Other, argv=['--low=2'])


def help_of(capsys, monkeypatch, argument, columns=80):
    monkeypatch.setenv('COLUMNS', str(columns))
    with pytest.raises(SystemExit) as end:
        train_grpo(argument)
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize('columns', [80, 132])
def test_help_is_grouped_and_fits_the_terminal(capsys, monkeypatch, columns):
    lines = help_of(capsys, monkeypatch, '--help', columns)
    assert [line for line in lines if len(line) > columns or line.endswith(' ')] == []
    shown = [line[4:].partition('=')[0] for line in lines if line.startswith('  --')]
    assert shown == list(SETTINGS)
    rooms = [line.partition(':')[0] for line in lines if re.match('[a-z_]+: ', line)]
    assert list(dict.fromkeys(rooms)) == ['run', 'grpo', 'task', *TASKS] and rooms == sorted(rooms, key=rooms.index)


def test_help_of_one_room(capsys, monkeypatch):
    lines = help_of(capsys, monkeypatch, '--help=grpo')
    shown = [line[4:].partition('=')[0] for line in lines if line.startswith('  --')]
    assert shown == list(read_room(grpo.Settings))
    assert 'grpo: the loss' in lines and not any(line.startswith('run:') for line in lines)
    with pytest.raises(ValueError, match='--help=loss: there are the rooms run, grpo, task, fill_in, completion, alignment, nla'):
        train_grpo('--help=loss')
