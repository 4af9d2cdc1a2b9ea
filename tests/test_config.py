"""Every kind of value and every kind of error, in a real script run as a real process."""
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

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
