"""What a run makes for itself: taken where it is what was asked for, else told of, and made once however many ask at once."""
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import grpo
from data.text import dataset_name, prepare, tell_what_changed, write_recipe
from formats.text_files import replacing
from runtime import console
from runtime.checkpoint import load_checkpoint, save_checkpoint
from runtime.config import configure
from runtime.made import check_made, content_of, content_of_path, made, recipe_for, recipe_of
from runtime.run import check_learns_from
from tasks import TASKS, alignment
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
SHAPED = SimpleNamespace(size=3, seed=1)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# -----------------------------------------------------------------------------
# the one function

def recipe(size=3, seed=1, data='abc'):
    return recipe_for('a judge', 1, 'fills', SimpleNamespace(size=size, seed=seed), 'size', 'seed', data=data)


def make_file(path, recipe, times=None):
    save_checkpoint(path, {'kind': 'judge', 'recipe': recipe, 'weights': torch.ones(3)})
    if times is not None:
        times.append(path)


def test_contents_count_and_names_do_not(tmp_path, monkeypatch):
    for name, text in (('a', 'one'), ('b', 'one'), ('c', 'two')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'data.txt').write_text(text)
    paths = [str(tmp_path / name) for name in 'abc']
    a, b, c = map(content_of_path, paths)
    assert a == b != c and len(a) == 12
    assert content_of_path(paths[0] + '/data.txt') == content_of_path(paths[1] + '/data.txt') != a
    assert content_of([1, 'x']) == content_of((1, 'x')) != content_of([1, 'y'])
    assert content_of_path('still/missing.pt') is None
    monkeypatch.setattr('runtime.made.CHUNK', 4)
    monkeypatch.setattr('runtime.made.CHUNKS', 2)
    Path('long').write_bytes(bytes(16))
    zeros = content_of_path('long')
    Path('long').write_bytes(bytes(5) + b'x' + bytes(10))  # between the chunks of 0 to 3 and 8 to 11
    assert content_of_path('long') == zeros
    Path('long').write_bytes(bytes(9) + b'x' + bytes(6))
    assert content_of_path('long') != zeros


def test_found_another_or_missing(capsys):
    """The same: taken. A seed: told. Another size or data: refused, with the difference and both ways out. Missing: made."""
    times = []
    make = partial(make_file, times=times)
    made('x/judge.pt', recipe, make)
    assert capsys.readouterr().out == 'making x/judge.pt: a judge from fills\n' and len(times) == 1
    made('x/judge.pt', recipe, make)
    assert capsys.readouterr().out == 'found x/judge.pt, a judge from fills, as this run makes it\n'
    made('x/judge.pt', partial(recipe, seed=2), make)
    assert capsys.readouterr().out == 'found x/judge.pt, a judge from fills (seed: it has 1, this run wants 2)\n'
    with pytest.raises(ValueError) as refusal:
        made('x/judge.pt', partial(recipe, size=4, data='abd', seed=2), make)
    assert str(refusal.value) == (
        'x/judge.pt is a judge from fills, made with other settings or data (size: it has 3, this run wants 4; '
        'seed: it has 1, this run wants 2; '
        'data: it has "abc", this run wants "abd"): --remake=True makes it again, --remake=never uses it as it is; or name another path'
    )
    made('x/judge.pt', partial(recipe, size=4), make, 'never')
    assert capsys.readouterr().out == 'found x/judge.pt, a judge from fills, as it is\n' and len(times) == 1
    assert check_made('x/judge.pt', partial(recipe, data=None)).endswith('as this run makes it')  # what is not known yet
    with pytest.raises(ValueError, match='x/judge.pt is a judge from fills; it must be a generator: name another path'):
        made('x/judge.pt', lambda: recipe() | {'made': 'a generator'}, make, True)
    with pytest.raises(ValueError, match='version: it has 1, this run wants 2'):
        made('x/judge.pt', lambda: recipe() | {'version': 2}, make)


def test_remake_makes_again_once(capsys, monkeypatch):
    times = []
    make = partial(make_file, times=times)
    make_file('judge.pt', recipe())
    os.utime('judge.pt', (console.loaded - 9, console.loaded - 9))
    for _ in range(3):  # a second look, or another run that began when this one did
        made('judge.pt', partial(recipe, size=4), make, True)
    assert len(times) == 1 and recipe_of('judge.pt')['size'] == 4
    assert 'making judge.pt again' in capsys.readouterr().out


def test_what_carries_no_recipe_is_the_users_choice(capsys):
    """A run's own checkpoint, one of before, a folder: taken, told of, and never overwritten."""
    save_checkpoint('own.pt', {'kind': 'run', 'model': {}})
    os.makedirs('folder')
    for path in ('own.pt', 'folder'):
        os.utime(path, (1, 1))
        for remake in (False, True, 'never'):
            made(path, recipe, make_file, remake)
    assert capsys.readouterr().out.count('which says nothing of how it was made') == 6 and load_checkpoint('own.pt', 'run')
    Path('torn.pt').write_bytes(Path('own.pt').read_bytes()[:40])
    with pytest.raises(ValueError, match='torn.pt cannot be read as a checkpoint'):
        made('torn.pt', recipe, make_file)


def test_a_place_that_cannot_be_written():
    Path('file').write_text('')
    with pytest.raises(OSError, match='file/judge.pt cannot be made there'):
        made('file/judge.pt', recipe, make_file)


MAKER = f'''
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
from formats.text_files import replacing, write_text
from runtime.made import made

def make(path, recipe):
    os.write(log, b'made ')
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        pass
    with replacing(path) as temporary:
        os.makedirs(temporary)
        write_text(temporary + '/recipe.json', __import__('json').dumps(recipe))
        if sys.argv[1] == 'hangs':
            print('inside', flush=True)
            time.sleep(60)

log = os.open('log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
print('ready', flush=True)
sys.stdin.readline()
made('thing', lambda: dict(made='a folder', version=1, **{{'from': 'nothing'}}), make, sys.argv[1] == 'remake')
print(os.listdir('thing'))
'''


def maker(how):
    python = sys.executable if how == 'hangs' else PYTHON  # it is killed, and its own number is asked for
    process = subprocess.Popen([python, '-c', MAKER, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    return process


@pytest.mark.parametrize('how', ['make', 'remake'])
def test_two_processes_make_it_once(how):
    """Three times over: the one that came second takes what the first has made."""
    for attempt in range(1, 4):
        if how == 'make' and os.path.exists('thing'):
            os.rename('thing', f'thing{attempt}')
        pair = [maker(how), maker(how)]
        for process in pair:
            process.stdin.write('\n')
            process.stdin.flush()
        printed = [process.communicate()[0] for process in pair]
        assert Path('log').read_text() == 'made ' * attempt
        assert all("['recipe.json']" in text for text in printed)
        first, second = sorted(printed, key=lambda text: not text.startswith('making'))
        assert 'making thing' in first and 'found thing, a folder from nothing, as this run makes it' in second
    assert not [name for name in os.listdir() if name.endswith('.tmp')]


def test_a_killed_maker_holds_nobody_up():
    """kill -9 while it makes: who has said for whom it waits makes the thing then, and the temporary folder goes."""
    first, second = maker('hangs'), maker('make')
    first.stdin.write('\n')
    first.stdin.flush()
    assert [first.stdout.readline() for _ in range(2)] == ['making thing: a folder from nothing\n', 'inside\n']
    second.stdin.write('\n')
    second.stdin.flush()
    said = second.stdout.readline()
    assert said.startswith(f'waiting for thing, which process {first.pid} on {os.uname().nodename} (since 20')
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.communicate()[0] == "making thing: a folder from nothing\n['recipe.json']\n"
    assert sorted(os.listdir()) == ['log', 'thing', 'thing.lock']


def test_temporary_names_are_a_process_own():
    """Another living process's stays, a dead one's goes; a folder takes the place of a folder."""
    for pid in (os.getppid(), 2 ** 22 + 1):
        Path(f'a.{os.uname().nodename}-{pid}.tmp').write_text('')
    with replacing('a') as temporary:
        assert f'-{os.getpid()}.tmp' in temporary
        Path(temporary).write_text('whole')
    assert sorted(os.listdir()) == ['a', f'a.{os.uname().nodename}-{os.getppid()}.tmp']
    for text in ('first', 'second'):
        with replacing('folder') as temporary:
            os.makedirs(temporary)
            (Path(temporary) / text).write_text(text)
    assert os.listdir('folder') == ['second']


# -----------------------------------------------------------------------------
# data

def test_no_two_data_sets_share_a_folder():
    for name in ('a/small.txt', 'b/small.txt', 'small.txt', 'd.csv', 'd.txt', 'a-small.txt', 'my set/x.json'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('')
    names = ['a/small.txt', 'b/small.txt', 'small.txt', 'd.csv', 'd.txt', 'a-small.txt', 'my set/x.json', 'a', 'shop', 'openai/shop',
             'openai/shop:main', 'x' * 200 + '/y', 'x' * 200 + '/z/y']
    folders = list(map(dataset_name, names))
    assert folders[:10] == ['a+small.txt', 'b+small.txt', 'small.txt', 'd.csv', 'd.txt', 'a-small.txt', 'my_set+x.json', 'a', 'shop',
                            'openai+shop']
    assert len(set(folders)) == len(folders) and max(map(len, folders)) <= 100
    assert dataset_name('./a/../a/small.txt') == dataset_name(os.path.abspath('a/small.txt')) == 'a+small.txt'


def test_prepared_data_tell_what_has_changed(tmp_path, capsys):
    tell_what_changed.cache_clear()
    script, source = tmp_path / 'numbers' / 'prepare.py', tmp_path / 'numbers.txt'
    script.parent.mkdir()
    script.write_text('first')
    source.write_text('1 2 3')
    write_recipe(str(script), [str(source)])

    def told():
        tell_what_changed.cache_clear()
        prepare(str(tmp_path), 'numbers', str(script))
        prepare(str(tmp_path), 'numbers', str(script))  # a second time nothing is said
        return capsys.readouterr().out

    assert told() == ''
    source.write_text('1 2 4')
    assert told().startswith(f'data/numbers was prepared before {source} changed: using it as it is; `python data/numbers/prepare.py` prep')
    source.unlink()
    assert told() == ''
    script.write_text('second')
    assert 'numbers/prepare.py changed' in told()
    (tmp_path / 'numbers' / 'recipe.json').unlink()
    assert told() == 'data/numbers has no record of how it was prepared: using it as it is\n'


# -----------------------------------------------------------------------------
# the jobs: each thing that they make, found the same, of other data, of another size, missing

TINY = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--pretrain_iters=2', '--eval_prompts_n=8', '--device=cpu', '--quiet=False']
WORDS = 'the cat sat on the mat and a dog ran to the hill; '


def job(task, *arguments):
    """The job of a run with these settings: what it needs has then been made."""
    source, hook = (ROOT / 'train_grpo.py').read_text(encoding='utf-8').partition('\ncfg = configure')[0], sys.excepthook
    namespace = {'__file__': str(ROOT / 'train_grpo.py'), '__name__': 'run'}
    exec(source, namespace)
    cfg = configure(namespace, grpo.Settings, tasks=TASKS, argv=[f'--task={task}', *TINY, *arguments])
    sys.excepthook = hook
    return TASKS[task](cfg, 'cpu')


def write_sums(path, first=0, answer='answer'):
    lines = [{'prompt': f'{a}+{b}=', answer: str(a + b + first)} for a in range(8) for b in range(8)]
    Path(path).write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_pairs(path, better=0):
    fields = {'response_0': '12', 'response_1': '3+4', 'better_response_id': better, 'safer_response_id': 0,
              'is_response_0_safe': True, 'is_response_1_safe': False}
    Path(path).write_text(''.join(json.dumps({'prompt': f'{a}+{b}='} | fields) + '\n' for a in range(8) for b in range(4)))


def write_documents(path, more=''):
    Path(path).write_text(''.join(json.dumps({'prompt': f'{i}: {WORDS}{more}'}) + '\n' for i in range(12)))


def fill_in(*more):
    return job('fill_in', '--dataset=toy.txt', '--block_size=16', '--judge_iters=2', *more)


def completion(*more):
    return job('completion', '--train_prompts=sums.jsonl', '--block_size=16', '--max_new_tokens=4', *more)


def aligned(*more):
    return job('alignment', '--train_prompts=sums.jsonl', '--preferences=pairs.jsonl', '--block_size=16', '--max_new_tokens=4',
               '--score_iters=2', *more)


def autoencoder(*more):
    return job('nla', '--dataset=texts.jsonl', '--block_size=32', '--max_new_tokens=5', '--activation_context=8', '--activations_n=40',
               '--warm_start_iters=2', '--critic_start_iters=2', *more)


@pytest.fixture
def no_scorer(monkeypatch):
    monkeypatch.setattr(alignment, 'start_scorer', lambda *_: (None, ''))
    monkeypatch.setattr(alignment.Alignment, 'connect', lambda self, url: setattr(self, 'client', SimpleNamespace(url=url)))


def refuses(make, *words):
    with pytest.raises(ValueError) as refusal:
        make()
    message = str(refusal.value)
    assert '\n' not in message and all(word in message for word in (*words, '--remake=True', '--remake=never')), message


def bytes_of(folder):
    return {str(path): path.read_bytes() for path in Path(folder).rglob('*') if path.is_file() and path.suffix != '.lock'}


def age(folder):
    for path in [*Path(folder).rglob('*'), Path(folder)]:
        os.utime(path, (1, 1))


def test_fill_in(capsys):
    Path('toy.txt').write_text(WORDS * 40)
    fill_in()
    before, folder = bytes_of('out-toy.txt'), 'out-toy.txt/'
    assert set(before) == {folder + name for name in ('generator.pt', 'judge.pt', 'judge_gold.pt')}
    capsys.readouterr()
    fill_in('--seed=2', '--learning_rate=1', '--max_iters=3', '--eval_prompts_n=5', '--mask_ratio=(0.2, 0.3)', '--group_size=3')
    told = capsys.readouterr().out
    assert 'making' not in told and told.count('seed: it has') == 3 and bytes_of('out-toy.txt') == before
    refuses(lambda: fill_in('--pretrain_iters=3'), 'generator.pt is a generator from toy.txt', 'pretrain_iters: it has 2, this run wants 3')
    refuses(lambda: fill_in('--n_embd=32', '--block_size=12'), 'n_embd: it has 16, this run wants 32', 'block_size')
    refuses(lambda: fill_in("--mask_kinds=('span',)"), 'mask_kinds: it has ["random"], this run wants ["span"]')
    refuses(lambda: fill_in('--judge_iters=3'), 'judge.pt', 'judge_iters: it has 2, this run wants 3')
    refuses(lambda: fill_in('--judge_iters=3', '--generator_checkpoint=new.pt'), 'judge.pt')
    assert not os.path.exists('new.pt')  # refused before a generator is trained
    os.remove(folder + 'judge_gold.pt')
    fill_in()
    assert bytes_of('out-toy.txt') == before  # the same bits
    fill_in('--generator_checkpoint=other.pt', '--pretrain_iters=3', *(f'--{name}_checkpoint={name}.pt' for name in ('judge', 'gold')))
    refuses(lambda: fill_in('--generator_checkpoint=other.pt', '--pretrain_iters=3'), 'judge.pt', 'generator: it has')
    Path('toy.txt').write_text(WORDS * 41)
    refuses(fill_in, 'generator.pt', 'data: it has')
    fill_in('--remake=never')
    assert bytes_of('out-toy.txt') == before
    age('out-toy.txt')
    capsys.readouterr()
    fill_in('--remake=True')
    assert capsys.readouterr().out.count('again') == 3
    fill_in()
    assert capsys.readouterr().out.count('as this run makes it') == 3


def test_completion(capsys):
    write_sums('sums.jsonl')
    completion()
    before = bytes_of('out-sums.jsonl')
    completion('--seed=2', '--eval_prompts_n=9', '--max_new_tokens=3', '--learning_rate=1', '--max_prompt_length=9', '--too_long=drop',
               '--rewards=["number_answer"]', '--retain_text=1+1=2')
    assert bytes_of('out-sums.jsonl') == before
    for more, words in (
        (['--n_layer=2'], ['n_layer: it has 1, this run wants 2']), (['--pretrain_until=0.5'], ['pretrain_until']),
        (['--system_prompt=1+'], ['system_prompt: it has "", this run wants "1+"']), (['--train_prompts_n=60'], ['data: it has']),
        (['--retain_text=why'], ['characters: it has "+0123456789=", this run wants "+0123456789=hwy"']),
    ):
        refuses(lambda more=more: completion(*more), 'out-sums.jsonl/generator.pt is a model from sums.jsonl', *words)
    write_sums('other.jsonl', 1)
    refuses(lambda: completion('--train_prompts=other.jsonl', '--generator_checkpoint=out-sums.jsonl/generator.pt'), 'data: it has')
    write_sums('renamed.jsonl', answer='sum')
    completion('--train_prompts=renamed.jsonl', "--column_mapping={'sum': 'answer'}", '--generator_checkpoint=out-sums.jsonl/generator.pt')
    write_sums('sums.jsonl', 1)
    refuses(completion, 'data: it has')
    age('out-sums.jsonl')
    completion('--remake=True')
    assert bytes_of('out-sums.jsonl') != before


def test_alignment(no_scorer):
    write_sums('sums.jsonl')
    write_pairs('pairs.jsonl')
    aligned()
    before = bytes_of('out-sums.jsonl')
    assert len(before) == 3
    aligned('--lambda_cost=2', '--seed=2', '--eval_prompts_n=7', '--kl_beta=0')
    assert bytes_of('out-sums.jsonl') == before
    refuses(lambda: aligned('--score_iters=3'), 'reward.pt is a reward model from pairs.jsonl', 'score_iters: it has 2')
    refuses(lambda: aligned('--scorer_template={prompt} {response}'), 'reward.pt', 'scorer_template')
    refuses(lambda: aligned('--n_embd=32'), 'generator.pt', 'n_embd')
    aligned('--pretrain_iters=3', '--generator_checkpoint=other.pt', '--reward_checkpoint=r.pt', '--cost_checkpoint=c.pt')
    refuses(lambda: aligned('--pretrain_iters=3', '--generator_checkpoint=other.pt'), 'reward.pt', 'trunk: it has')
    write_pairs('other.jsonl', 1)
    refuses(lambda: aligned('--preferences=other.jsonl'), 'reward.pt', 'data: it has')
    refuses(lambda: aligned('--preferences=other.jsonl', '--reward_checkpoint=new.pt', '--generator_checkpoint=none.pt'), 'cost.pt')
    assert not os.path.exists('none.pt')  # refused before a start is trained
    os.remove('other.jsonl')
    aligned('--preferences=other.jsonl', '--remake=never')  # the pairs are not asked for
    assert bytes_of('out-sums.jsonl') == before
    os.remove('out-sums.jsonl/cost.pt')
    aligned()
    assert bytes_of('out-sums.jsonl') == before


def test_autoencoder(capsys):
    write_documents('texts.jsonl')
    autoencoder()
    out = 'out-texts.jsonl'
    before = bytes_of(out)
    assert {'generator.pt', 'activations', 'nla.pt'} <= set(os.listdir(out)) and recipe_of(f'{out}/activations')['activations_n'] == 40
    autoencoder('--seed=2', '--critic_learning_rate=1', '--nla_reward=cosine', '--freeze_actor=True', '--activation_layer=1')
    assert bytes_of(out) == before
    for more, words in (
        (['--n_layer=2'], ['generator.pt is a language model', 'n_layer']), (['--activations_n=30'], ['activations is', 'activations_n']),
        (['--activation_context=7'], ['activations is', 'activation_context: it has 8, this run wants 7']),
        (['--activation_layer=0'], ['activations is', 'activation_layer: it has 1, this run wants 0']),
        (['--injection_mode=add'], ['nla.pt is an actor and a critic', 'injection_mode: it has "project"']),
        (['--warm_start_iters=3'], ['nla.pt', 'warm_start_iters']), (['--max_new_tokens=6'], ['nla.pt', 'max_new_tokens']),
        (['--generator_checkpoint=new.pt', '--activations_n=30'], ['activations_n: it has 40, this run wants 30']),
        (['--generator_checkpoint=new.pt', '--critic_start_iters=3'], ['critic_start_iters']),
    ):
        refuses(lambda more=more: autoencoder(*more), *words)
    assert not os.path.exists('new.pt')
    write_documents('texts.jsonl', 'and more')
    refuses(autoencoder, 'generator.pt', 'data: it has')
    age(out)
    capsys.readouterr()
    autoencoder('--remake=True')
    assert capsys.readouterr().out.count('again') == 3 and len(bytes_of(out)) == len(before)
    autoencoder()
    os.rename(f'{out}/activations', 'kept')
    autoencoder()
    assert bytes_of('kept').values() != [] and {k.partition('/')[2]: v for k, v in bytes_of('kept').items()} == {
        k.partition('activations/')[2]: v for k, v in bytes_of(f'{out}/activations').items()
    }


# -----------------------------------------------------------------------------
# going on

def test_a_run_goes_on_with_what_it_began_with(capsys):
    """Kind by kind: prompts that have grown, whose split another seed moves, that are the same; what is held out may change."""
    write_sums('sums.jsonl')
    began = completion().learns_from()
    more = ['--init_from=resume']
    check_learns_from(began, completion(*more, '--max_iters=9').learns_from(), False)
    check_learns_from({}, {'prompts to train on': 'x'}, False)  # a checkpoint of before
    for other in ('--seed=2', '--eval_prompts_n=9'):
        with pytest.raises(ValueError, match='prompts to train on: changed since this run began.*--remake=never'):
            check_learns_from(began, completion(*more, other).learns_from(), True)
    with open('sums.jsonl', 'a') as f:
        f.write('{"prompt": "9+9=", "answer": "18"}\n')
    grown = completion(*more).learns_from()
    with pytest.raises(ValueError, match='prompts to train on'):
        check_learns_from(began, grown, False)
    check_learns_from(began, grown, 'never')
    assert 'resuming with different prompts to train on' in capsys.readouterr().out
    check_learns_from(began, began | {'held-out prompts': 'x'}, False)
    assert capsys.readouterr().out == 'resuming with different held-out prompts\n'
