"""Every kind of value and every kind of error, in a real script run as a real process; then the settings of train_grpo.py."""
import json
import math
import os
import re
import subprocess
import sys
import textwrap
import typing
from pathlib import Path

import pytest

import grpo
import runtime.config
from docs.coming_from import document
from runtime.config import (
    OTHER_NAMES,
    bounds_in_words,
    check,
    configure,
    inside,
    members,
    parts_of,
    read_keys,
    read_room,
    read_value,
    remedy_for,
    rooms_of,
    with_settings,
)
from runtime.run import own_out_dir
from tasks import TASKS
from warm import PYTHON

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
            [PYTHON, str(script), *arguments],
            cwd=tmp_path,
            env=os.environ | {'PYTHONPATH': str(ROOT)},
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
        ('--flag=true', '"flag": true'),
        ('--items=[b,c]', '"items": ["b", "c"]'),
        ('--items=b,c', '"items": ["b", "c"]'),
        ('--items=b', '"items": ["b"]'),
        ('--items=[[b,0.5],c]', '"items": [["b", 0.5], "c"]'),
        ('--pair=x,y', '"pair": ["x", "y"]'),
        ('--name="None"', '"name": "None"'),
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
        ('--steps=1.5', ['steps is 1.5; it must be int']),
        ('--steps=many', ["steps is 'many'; it must be int"]),
        ('--steps=True', ['steps is True; it must be int']),
        ('--flag=1', ['flag is 1; it must be True or False']),
        ('--pair=3', ['pair is 3; it must be tuple']),
        ('--limit=soon', ["limit is 'soon'; it must be float, or None"]),
        ('--name', ['--key=value']),
        ('--flag=yes', ["flag is 'yes'; it must be True or False"]),
        ('--name=', ['name is empty', "'x'"]),
        ('--name=None', ['name takes str and no None']),
        ('--steps=', ['it must be int']),
        ('--items=', ['items takes list']),
        ('--items=[b', ['in a shell put it all in double quotes']),
        ('--items=[‘b’]', ['in a shell put it all in double quotes']),
        ('--steps=1e400', ['no number here is above 1e15']),
        ('--steps=' + '9' * 400, ['no number here is above 1e15']),
        ('--lr=1e16', ['no number here is above 1e15']),
        ('-steps=3', ['overrides are --key=value, without spaces: --steps=3']),
        ('---steps=3', ['without spaces: --steps=3']),
        ('–-steps=3', ['without spaces: --steps=3']),
        ('—steps=3', ['without spaces: --steps=3']),
        ('steps=3', ['without spaces: --steps=3']),
        ('+steps=3', ['without spaces: --steps=3']),
        ('--', ['--key=value']),
        ('--=3', ['--key=value']),
        ('-', ['--key=value']),
        ('', ["'' is not a config file"]),
        ('nowhere.py', ["no config file 'nowhere.py'"]),
    ],
)
def test_errors_are_one_line(run, argument, words):
    code, out, err = run(argument)
    assert code == 1 and len(err.splitlines()) == 1 and all(word in err for word in words), err


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--steps', '3'], '--steps: overrides are --key=value, without spaces: --steps=VALUE'),
        (['--steps=', '3'], "no config file '3': overrides are --key=value, without spaces"),
        (['--flag', 'True'], "no config file 'True': overrides are --key=value, without spaces"),
        (['--flag', 'one.yaml'], "'one.yaml' is not a config file, which is Python (.py)"),
        (['one.json'], "'one.json' is not a config file"),
        (['one.toml'], "'one.toml' is not a config file"),
        (['two.jsonl'], 'give data as --train_prompts='),
        (['folder'], "'folder' is not a config file"),
        (['run'], 'a run to resume as --out_dir= with --init_from=resume'),
        (['script.py'], 'script.py is a program and no config file'),
        (['wan.py'], 'did you mean wann.py?'),
        (['wann'], 'did you mean wann.py?'),
        (['leaves.py'], 'leaves.py, line 2: SystemExit: 3'),
        (['named.py'], "named.py: unknown key 'reward_funcs'"),
        (['loop.py'], "loop.py: unknown key 'i'; --help lists them all; a name of its own begins with _"),
    ],
)
def test_wrong_command_lines(run, tmp_path, arguments, words):
    for name in ('one.yaml', 'one.json', 'one.toml', 'two.jsonl'):
        (tmp_path / name).write_text('{}')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.json').write_text('{}')
    named = 'from typing import List\n\ndef mine(completions: List[str]):\n    return 1\n\nreward_funcs = mine'
    loop = 'for i in range(3):\n    steps = i'
    code, out, err = run(*arguments, wann='steps = 2', leaves='import sys\nsys.exit(3)', loop=loop, named=named)
    assert code == 1 and len(err.splitlines()) == 1 and words in err, err


def test_a_config_beside_the_script(run, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'one.py').write_text('steps = 4')
    done = subprocess.run([PYTHON, str(tmp_path / 'script.py'), 'one.py'], cwd=tmp_path / 'elsewhere',
                          env=os.environ | {'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert '"steps": 4' in done.stdout, done.stderr
    code, out, err = run('--flag', 'one.py', '--flag=False', 'two.py', two='steps = 5')
    assert '"steps": 5' in out and '"flag": false' in out, err


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
    ('[0, 1]', (0, 1), (-0.1, 1.1, math.nan), 'at least 0 and at most 1'),
    ('(-inf, inf)', (-1e9, 0), (math.inf, -math.inf, math.nan), 'finite')])
def test_intervals(interval, inner, outer, words):
    assert [inside(value, interval) for value in inner] == [True] * len(inner)
    assert [inside(value, interval) for value in outer] == [False] * len(outer)
    assert bounds_in_words(interval) == words


@pytest.mark.parametrize('argument, words', [
    ('--group_size=1', 'group_size is 1; it must be at least 2 (int)'),
    ('--top_p=0', 'top_p is 0; it must be above 0 and at most 1 (float)'),
    ('--beta1=1', 'beta1 is 1; it must be at least 0 and below 1 (float)'),
    ('--ema_alpha=1.5', 'ema_alpha is 1.5; it must be at least 0 and at most 1 (float)'),
    ('--dual_clip=1', 'dual_clip is 1; it must be above 1 (float), or None'),
    ('--injection_scale=0', 'injection_scale is 0; it must be above 0 (float), or one of raw, residual, or None'),
    ('--injection_scale=long', "injection_scale is 'long'; it must be above 0 (float), or one of raw, residual, or None"),
    ('--truncated_reward=1e999', 'truncated_reward is inf; no number here is above 1e15'),
    ('--dual_clip=no', "dual_clip is 'no'; it must be above 1 (float), or None"),
    ('--batch_size=2.5', 'batch_size is 2.5; it must be at least 1 (int)'),
    ('--advantage=ppo', "advantage is 'ppo'; it must be one of grpo, dr_grpo, batch, rloo, gae"),
    ('--task=chess', f"task is 'chess'; it must be one of {', '.join(TASKS)}"),
    ('--kl_bata=0.1', "unknown key 'kl_bata'; did you mean 'kl_beta'?")])
def test_values_out_of_range(argument, words):
    with pytest.raises(ValueError) as error:
        train_grpo(argument)
    assert str(error.value) == f'{argument}: {words}'


@pytest.mark.parametrize('arguments, words', [
    (['--judge_iters=5', '--task=completion'], "--judge_iters=5: judge_iters is not a setting of task 'completion', it is for fill_in"),
    (['--max_new_tokens=5'],
     "--max_new_tokens=5: max_new_tokens is not a setting of task 'fill_in', it is for completion and alignment and nla"),
    (['--lambda_lr=0.1', '--task=nla'], "--lambda_lr=0.1: lambda_lr is not a setting of task 'nla', it is for alignment"),
    (['--lora_r=4'], "--lora_r=4: lora_r is not a setting of task 'fill_in'")])
def test_keys_of_another_task(arguments, words):
    """By name, whether on the command line or in a file; what the other task has as its default disturbs nobody."""
    with pytest.raises(ValueError) as error:
        train_grpo(*arguments)
    assert str(error.value) == f'{words}: leave it out'


def test_keys_of_another_task_in_a_file(tmp_path):
    path = tmp_path / 'mixed.py'
    path.write_text("task = 'nla'\nmax_new_tokens = 5\nmask_ratio = (0.1, 0.2)\n")
    with pytest.raises(ValueError, match=r"mixed.py: mask_ratio is not a setting of task 'nla', it is for fill_in"):
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
    path.write_text('seed = 1\nconfigure(globals())\n')
    with pytest.raises(AssertionError, match='kl_beta is a setting of grpo and of test_config'):
        configure({'__file__': str(path), 'seed': 1}, grpo.Settings, Mine, argv=[])


def test_contradictions_are_the_rooms_own(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text('seed = 1\nconfigure(globals())\n')
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
    wanted = ['run', 'grpo', 'task', 'fill_in', 'turns', *list(TASKS)[1:]]
    assert list(dict.fromkeys(rooms)) == wanted and rooms == sorted(rooms, key=rooms.index)


def test_help_of_one_room(capsys, monkeypatch):
    lines = help_of(capsys, monkeypatch, '--help=grpo')
    shown = [line[4:].partition('=')[0] for line in lines if line.startswith('  --')]
    assert shown == list(read_room(grpo.Settings))
    assert 'grpo: the loss' in lines and not any(line.startswith('run:') for line in lines)
    with pytest.raises(ValueError, match='--help=loss: there are the rooms run, grpo, task, fill_in, turns, completion, alignment, nla'):
        train_grpo('--help=loss')


# --- names from elsewhere

TABLE = json.loads(Path(OTHER_NAMES).read_text())


def refusal(*arguments):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        train_grpo(*arguments)
    return str(error.value)


def test_every_name_from_elsewhere_leads_to_a_setting():
    rows = [(framework, name, *row) for framework, names in TABLE.items() for name, row in names.items()]
    assert len({name for _, name, _, _ in rows}) >= 80 and {'TRL', 'verl', 'OpenRLHF', 'ReLax', 'aligntune', 'nanoGPT'} <= TABLE.keys()
    for framework, name, ours, note in rows:
        assert set(filter(None, ours.split(', '))) <= SETTINGS.keys(), (framework, name)
        assert ours or note.startswith('is '), (framework, name)


def test_the_document_is_made_from_the_table():
    assert (ROOT / 'docs' / 'coming_from.md').read_text() == document(TABLE)


@pytest.mark.parametrize('argument, words', [
    ('--beta=0.1', "TRL's beta is kl_beta here"),
    ('--num_generations=8', "'s num_generations is group_size here"),
    ('--epsilon=0.2', "TRL's epsilon is clip_low and clip_high here"),
    ('--epsilon_high=0.2', "TRL's epsilon_high is clip_high here"),
    ('--lr=1', "'s lr is learning_rate here"),
    ('--kl_coef=0.1', "ReLax's kl_coef is kl_beta here"),
    ('--model=x', "'s model is generator_checkpoint here"),
    ('--max_completion_length=3', "'s max_completion_length is max_new_tokens here"),
    ('--max-completion-length=3', "'s max_completion_length is max_new_tokens here"),
    ('--use_vllm', "TRL's use_vllm is not needed"),
    ('--vllm_gpu_memory_utilization=0.3', "TRL's vllm_* is not needed"),
    ('--actor_rollout_ref.rollout.n=5', "verl's actor_rollout_ref.rollout.n is group_size here"),
    ('actor_rollout_ref.rollout.n=5', "verl's actor_rollout_ref.rollout.n is group_size here"),
    ('++algorithm.adv_estimator=grpo', "verl's algorithm.adv_estimator is advantage here"),
    ('--data.train_batch_size=5', "verl's data.train_batch_size is batch_size here"),
    ('--kl_loss_coef=5', "verl's actor_rollout_ref.actor.kl_loss_coef is kl_beta here"),
    ('--init_kl_coef=0.1', "OpenRLHF's init_kl_coef is kl_beta here"),
    ('--n_samples_per_prompt=4', "OpenRLHF's n_samples_per_prompt is group_size here"),
    ('--grpo.num_trajectories_per_prompt=8', "verl's NLA fork's grpo.num_trajectories_per_prompt is group_size here"),
    ('--num_iterations=3', "TRL's num_iterations is num_epochs_per_rollout here; ReLax's num_iterations is max_iters here"),
    ('--dropout=0.1', "nanoGPT's dropout is not here"),
    ('--init_from=gpt2', "nanoGPT's init_from is generator_checkpoint here"),
    ('--loss_type=bnpo', 'bnpo is dapo on one device'),
    ('--resume', '--init_from=resume'),
    ('--config=config/arithmetic.py', 'a config file is named alone'),
    ('--out_dir=runs/{beta}', "unknown key 'beta': ")])
def test_names_from_elsewhere(argument, words):
    if argument != '--out_dir=runs/{beta}':
        said = refusal(argument)
    else:
        with pytest.raises(ValueError) as error:
            with_settings('out_dir', 'runs/{beta}', vars(train_grpo()))
        said = str(error.value)
    assert words in said and 'did you mean' not in said, said


@pytest.mark.parametrize('key, near', [
    ('kl-beta', 'kl_beta'), ('KL_BETA', 'kl_beta'), ('beta_kl', 'kl_beta'), ('klbeta', 'kl_beta'), ('kl_bta', 'kl_beta'),
    ('grup_size', 'group_size'), ('temp', 'temperature'), ('warmup', 'warmup_iters'), ('max_iter', 'max_iters'), ('sed', 'seed'),
    ('targets', 'lora_targets'), ('no_quiet', 'quiet'), ('learning-rate', 'learning_rate'), ('optim.grad_clip', 'grad_clip'),
    ('seed:2', 'seed'), ('loss', 'loss_type'),
    ('text', None), ('foo', None), ('x', None), ('log_level', None), ('model_id', None), ('judge', None), ('start', None),
    ('attention', None), ('kl_beta:0.1', 'kl_beta'), ('kl_beta->0.1', 'kl_beta'), ('reward', 'rewards'), ('beam_size', None),
    ('penalty', None), ('gradient_checkpointing_kwargs', None)])
def test_near_keys(key, near):
    assert remedy_for(key, SETTINGS) == (f"; did you mean {near!r}?" if near else '; --help lists them all')


def test_no_field_of_trl_is_led_astray():
    """Each is ours by the same name, in the table, or without a suggestion; never a guess."""
    trl = pytest.importorskip('trl', reason='requirements-dev.txt has it')
    fields = trl.GRPOConfig.__dataclass_fields__
    said = {name: remedy_for(name, SETTINGS) for name in fields if name not in SETTINGS}
    assert len(said) > 150 and {name: line for name, line in said.items() if 'did you mean' in line} == {}
    known = {name for name, line in said.items() if "TRL" in line}
    assert {'beta', 'num_generations', 'epsilon', 'delta', 'output_dir', 'bf16', 'use_liger_kernel'} <= known and len(known) > 70


# --- values that are everywhere wrong

VALUES = ['-1', '0', '1', 'nan', 'inf', '1e999', '-1e999', '1e300', '9' * 400, '9' * 5000,
          'None', 'none', '', 'True', 'yes', '[]', '[a', '{',
          "{'a': 1}", '(1,)', '1,2', '"', '\\', '[[[[', 'lambda: 1', '__import__("os")', '0x', '1_', 'é', '1 2']


@pytest.mark.parametrize('text', VALUES)
def test_any_value_is_taken_or_refused_in_a_line(text):
    """As every setting's value: nothing but ValueError comes, and what is taken is of the type and inside the range."""
    for key in SETTINGS:
        try:
            value = check(key, read_value(key, text, SETTINGS), SETTINGS, f'--{key}')
        except ValueError as error:
            assert key in str(error) and '\n' not in str(error)
            continue
        assert check(key, value, SETTINGS, 'again') == value
        assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize('script, config, words', [
    ('train_grpo.py', 'config/compare_advantages.py', 'python -m tools.compare config/compare_advantages.py'),
    ('train_grpo.py', 'config/learn_mirror.py', 'python -m tools.learn_mirror config/learn_mirror.py'),
    ('train_grpo.py', 'config/sources/betas.py', 'python -m tools.compare config/sources/betas.py'),
    ('sample.py', 'config/arithmetic.py', 'python train_grpo.py config/arithmetic.py'),
    ('tools/compare.py', 'config/arithmetic.py', 'python train_grpo.py config/arithmetic.py'),
    ('train_grpo.py', 'config/arithmetc.py', 'did you mean config/arithmetic.py?'),
    ('train_grpo.py', 'arithmetic', 'did you mean config/arithmetic.py?'),
    ('train_grpo.py', 'config\\arithmetic.py', 'did you mean config/arithmetic.py?'),
    ('train_grpo.py', 'config', "'config' is not a config file"),
    ('train_grpo.py', 'sample.py', 'sample.py is a program')])
def test_configs_of_another_program(monkeypatch, script, config, words):
    monkeypatch.chdir(ROOT)
    path = ROOT / script
    program = ['-m', 'tools.compare'] if 'tools' in script else [str(path)]
    done = subprocess.run([PYTHON, *program, config], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and words in done.stderr, done.stderr


# --- out_dir named after settings

def test_paths_with_settings():
    values = {'out_dir': '', 'init_from': 'generator', 'kl_beta': 0.05, 'seed': 2, 'dataset': 'my file', 'model': 'Qwen/Qwen2.5-0.5B',
              'none': None, 'd': -0.5, 'rewards': ['a'], 'empty': '', 'up': '..', 'flag': True, 'long': 'x' * 500}

    def named(path):
        return with_settings('out_dir', path, values)

    assert named('out') == 'out' and named('out/beta{kl_beta}_seed{seed}_unified') == 'out/beta0.05_seed2_unified'
    assert named('{model}-{dataset}/{none}{flag}{d}') == 'Qwen-Qwen2.5-0.5B-my-file/NoneTrue-0.5' and len(named('{long}')) == 100
    for path, words in (('{rewards}', 'cannot stand'), ('{empty}', 'cannot stand'), ('{up}/x', 'cannot stand'),
                        ('{init_from}', 'cannot stand'),
                        ('{out_dir}', 'cannot stand'), ('{sed}', "unknown key 'sed'; did you mean 'seed'?"), ('{}', "unknown key ''"),
                        ('{seed:d}', "unknown key 'seed:d'"), ('{seed.real}', 'unknown key'), ('{0}', 'unknown key'),
                        ('{seed', 'braces hold'), ('seed}', 'braces hold'), ('{{seed}}', 'braces hold')):
        with pytest.raises(ValueError, match=re.escape(words)):
            named(path)


def test_a_run_in_a_folder_named_after_settings(tmp_path):
    """It is resumed and sampled from there; the line that goes on with a folder named after max_iters names the folder."""
    tiny = ('--task=completion --dataset=arithmetic --block_size=16 --max_new_tokens=4 --n_layer=1 --n_head=2 --n_embd=16 '
            '--pretrain_iters=2 --batch_size=2 --group_size=2 --eval_prompts_n=4 --eval_samples=1').split()

    def run(*arguments):
        done = subprocess.run([PYTHON, *arguments], cwd=tmp_path, env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    out_dir = '--out_dir=runs/{dataset}_beta{kl_beta}_seed{seed}'
    run(str(ROOT / 'train_grpo.py'), *tiny, out_dir, '--max_iters=1', '--quiet')
    folder = tmp_path / 'runs' / 'arithmetic_beta0.1_seed1'
    assert json.loads((folder / 'config.json').read_text())['out_dir'] == 'runs/arithmetic_beta0.1_seed1'
    said = run(str(ROOT / 'train_grpo.py'), *tiny, out_dir, '--max_iters=2', '--init_from=resume')
    last = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
    assert 'runs/arithmetic_beta0.1_seed1/export' in said and last['iter'] == 2
    assert run(str(ROOT / 'sample.py'), f'--checkpoint={folder}/export', '--prompt=1+2=')
    said = run(str(ROOT / 'train_grpo.py'), *tiny, '--out_dir=for{max_iters}', '--max_iters=1')
    assert '--max_iters=2 --out_dir=for1 --init_from=resume' in said


def test_out_dir_can_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    for path, words in (('', 'current folder'), ('.', 'current folder'), ('/', 'current folder'), ('..', 'current folder'),
                        (str(tmp_path / 'file'), 'nothing can be written'), (str(tmp_path / 'file' / 'x'), 'nothing can be written'),
                        ('/proc/x', 'cannot be made'), ('/proc/self/x', 'nothing can be written'), ('/dev/null', 'nothing can be written'),
                        ('/dev/full/x', 'nothing can be written')):
        with pytest.raises((ValueError, OSError), match=words):
            own_out_dir(path, resume=False)
    (tmp_path / 'link').symlink_to('disk/x')  # to a folder that is still to be made
    for path, meant in (('a/b', 'a/b'), ('a/b/', 'a/b'), ('./a//b/../c', 'a/c'), ('link', 'disk/x'), ('link/', 'disk/x')):
        assert own_out_dir(f'{tmp_path}/{path}', resume=False) == f'{tmp_path}/{meant}'
        assert not os.path.exists(f'{tmp_path}/{meant}')
