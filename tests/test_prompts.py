"""Prompts: every kind of source, what is said about a broken one, the order, the encoding, and the scripts that prepare data."""
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import pytest

import data.prompts
from data.arithmetic import prepare as arithmetic
from data.arithmetic.prepare import sums
from data.gsm8k import prepare as gsm8k
from data.prompts import draw_indices, encode_prompts, held_out_split, load_prompts, write_splits
from data.reasoning_gym.prepare import make_problems
from formats.tokenizer import Tokenizer
from rewards import score
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def says(*parts):
    """An error of one line that has all parts in it."""
    with pytest.raises((ValueError, FileNotFoundError, ImportError)) as e:
        yield
    assert '\n' not in str(e.value) and all(part in str(e.value) for part in parts), str(e.value)


# ---------------------------------------------------------------------------------------------------------------------
# sources

def test_json(file):
    assert load_prompts(file('a.json', '{"prompts": ["one", {"prompt": "two", "answer": 2}]}')) == [
        {'prompt': 'one'},
        {'prompt': 'two', 'answer': 2},
    ]
    assert load_prompts(file('b.json', '["one", "two"]')) == [{'prompt': 'one'}, {'prompt': 'two'}]
    chat = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'Hi'}]
    assert load_prompts(file('c.json', json.dumps({'prompts': [{'prompt': chat}]}))) == [{'prompt': chat}]


def test_jsonl_and_text(file):
    assert load_prompts(file('a.jsonl', '{"prompt": "one", "tests": ["t"]}\n\n  \n"two"\n')) == [
        {'prompt': 'one', 'tests': ['t']},
        {'prompt': 'two'},
    ]
    assert load_prompts(file('a.txt', 'one\n\n two \r\n')) == [{'prompt': 'one'}, {'prompt': ' two '}]
    assert load_prompts(file('bom.txt', b'\xef\xbb\xbfone')) == [{'prompt': 'one'}]
    line = json.dumps({'prompt': 'a\u2028b'}, ensure_ascii=False)  # str.splitlines would cut this line in two
    assert load_prompts(file('b.jsonl', line)) == [{'prompt': 'a\u2028b'}]


def test_column_mapping(file):
    path = file('a.jsonl', '{"question": "one", "answer": "1", "prompt": "old"}\n')
    assert load_prompts(path, {'question': 'prompt'}) == [{'answer': '1', 'prompt': 'one'}]
    assert load_prompts(path, {'question': 'prompt', 'prompt': 'answer'}) == [{'prompt': 'one', 'answer': 'old'}]
    def take(record, column):
        return {'prompt': record[column]}
    assert load_prompts(path, partial(take, column='question')) == [{'prompt': 'one'}]  # it has no name
    with says('a.jsonl, line 1', 'column_mapping raised KeyError'):
        load_prompts(path, partial(take, column='problem'))
    with says('a.jsonl, line 1', "column_mapping names the column 'problem'", 'there are: question, answer, prompt'):
        load_prompts(path, {'problem': 'prompt'})
    path = file('b.jsonl', '{"question": "one"}\n')
    assert load_prompts(path, {'prompt': 'question'}) == [{'prompt': 'one'}]
    with says('must give each column a name, and another one'):
        load_prompts(path, {'a': 'prompt', 'b': 'prompt'})
    assert load_prompts(path, lambda r: {'prompt': f"Question: {r['question']}"}) == [{'prompt': 'Question: one'}]
    with pytest.raises(ValueError, match="line 1: column_mapping raised KeyError: 'problem'"):
        load_prompts(path, lambda r: {'prompt': r['problem']})
    with pytest.raises(ValueError, match="line 1: column_mapping returned None"):
        load_prompts(path, lambda r: None)


@pytest.mark.parametrize(
    'name, content, parts',
    [
        ('a.jsonl', '{"prompt": "one"}\n\n{"prompt": "two"\n', ('a.jsonl, line 3, column 17: not JSON',)),
        ('a.json', '{"prompts": [\n  "one",\n  two]}', ('a.json, line 3, column 3: not JSON',)),
        (
            'a.jsonl',
            '{"prompt": "one"}\n{"question": "two", "answer": 2}\n',
            ('a.jsonl, line 2', "no field 'prompt'", 'only: question, answer', "column_mapping={'that field': 'prompt'}"),
        ),
        ('a.jsonl', '{}\n', ('line 1', "no field 'prompt', only: nothing")),
        ('a.jsonl', '{"prompt": " "}\n', ('a.jsonl, line 1: the prompt is empty',)),
        ('a.jsonl', '{"prompt": 3}\n', ('a.jsonl, line 1: the prompt is 3 (int)', 'a text, or a list of chat messages')),
        ('a.jsonl', '{"prompt": null}\n', ('the prompt is None',)),
        ('a.jsonl', '3\n', ('a.jsonl, line 1: 3 (int) is neither',)),
        ('a.json', '{"prompts": ["one", ""]}', ('a.json, prompts[1]: the prompt is empty',)),
        ('a.json', '[7]', ('a.json, [0]: 7 (int)',)),
        ('a.json', '{"data": [], "more": 1}', ("a.json, line 1: there is no field 'prompt', only: data, more",)),
        ('a.json', '{"prompts": "one"}', ('the prompts are str, they must be a list',)),
        ('a.json', '7', ('line 1: 7 (int) is neither a text nor an object',)),
        ('a.json', '{"prompts": []}', ('a.json holds no prompts',)),
        ('a.jsonl', '{"prompt": []}\n', ('line 1: the prompt is empty: []',)),
        ('a.jsonl', '{"prompt": [{"role": "user"}]}\n', ('line 1: the prompt is [{', "'role' and 'content'")),
        ('a.jsonl', '{"prompt": [{"role": "assistant", "content": "Hi"}]}\n', ("last chat message is the assistant's",)),
        ('a.jsonl', '{"prompt": [{"role": "user", "content": " "}]}\n', ("the prompt is empty: [{'role': 'user', 'content': ' '}]",)),
        ('a.txt', ' \n\n', ('a.txt is empty',)),
        ('a.jsonl', '', ('a.jsonl is empty',)),
        ('a.txt', b'one\n\xff\xfe', ('a.txt is not UTF-8 text (byte 4)',)),
        ('a.xls', 'prompt\none', ('a.xls', '.jsonl', 'not as .xls')),
    ],
)
def test_broken_files(file, name, content, parts):
    with says(*parts):
        load_prompts(file(name, content))


def test_folders(tmp_path, monkeypatch):
    ours = tmp_path / 'data'
    for name in ('arithmetic', 'stdlib_char'):
        (ours / name).mkdir(parents=True)
        (ours / name / 'prepare.py').write_text('write_splits()' if name == 'arithmetic' else 'write_corpus()')
    (ours / 'stdlib_char' / 'train.bin').touch()
    monkeypatch.setattr(data.prompts, 'FOLDER', str(ours))
    write_splits(ours / 'arithmetic' / 'prepare.py', train=[{'prompt': 'train'}], val=[{'prompt': 'val'}])
    assert load_prompts('arithmetic') == load_prompts(str(ours / 'arithmetic/')) == [{'prompt': 'train'}]
    assert load_prompts('arithmetic', split='val') == [{'prompt': 'val'}]
    with says('data/stdlib_char is a corpus of text'):
        load_prompts('stdlib_char')
    with says("no prompts at 'arithmetik'", 'there are: arithmetic)', 'owner/name', "did you mean 'arithmetic'?"):
        load_prompts('arithmetik')
    with says('stdlib_char has no train.jsonl: run `python', 'prepare.py` first'):
        load_prompts(str(ours / 'stdlib_char'))
    monkeypatch.chdir(tmp_path)
    for typo in ('data/promts', 'prompts/train.jsonl'):  # these look like owner/name, and are meant as paths: no network
        with says(f"no prompts at '{typo}'"):
            load_prompts(typo)


def test_hugging_face(monkeypatch, tmp_path):
    asked = []

    def load_dataset(name, config, split):
        asked.append((name, config, split))
        if name == 'no/network':
            raise ConnectionError('could not\nreach it')
        return [{'asked' if config == 'other' else 'question': 'one', 'answer': '1'}] if split != 'train[:0]' else []

    stub = types.SimpleNamespace(
        load_dataset=load_dataset, get_dataset_split_names=lambda name, config: ['train', 'test'] if name != 'only/train' else ['train']
    )
    monkeypatch.setitem(sys.modules, 'datasets', stub)
    monkeypatch.chdir(tmp_path)
    mapping = {'question': 'prompt'}
    assert (
        load_prompts('openai/gsm8k:main', mapping, 'val')
        == load_prompts('openai/gsm8k', mapping, 'train[:1%]')
        == [{'prompt': 'one', 'answer': '1'}]
    )
    assert asked == [('openai/gsm8k', 'main', 'test'), ('openai/gsm8k', None, 'train[:1%]')]
    with says('openai/gsm8k:other, train row 0', "no field 'prompt'", 'asked, answer'):
        load_prompts('openai/gsm8k:other')
    with says("could not load 'no/network' from Hugging Face (ConnectionError: could not reach it)"):
        load_prompts('no/network')
    with says('splits train and none of val, validation'):
        load_prompts('only/train', mapping, 'val')
    with says("openai/gsm8k holds no prompts"):
        load_prompts('openai/gsm8k', mapping, 'train[:0]')
    (tmp_path / 'openai' / 'gsm8k').mkdir(parents=True)  # a local path wins
    write_splits(tmp_path / 'openai' / 'gsm8k' / 'prepare.py', train=[{'prompt': 'mine'}])
    assert load_prompts('openai/gsm8k') == [{'prompt': 'mine'}]
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with says("'owner/name' is no file here", 'pip install datasets'):
        load_prompts('owner/name')


# ---------------------------------------------------------------------------------------------------------------------
# split and order

def test_held_out_split():
    records = [{'prompt': str(i % 80), 'row': i} for i in range(100)]  # 0..19 occur twice
    train, val = held_out_split(records, 30, seed=1)
    assert len({r['prompt'] for r in val}) == 30 and not {r['prompt'] for r in val} & {r['prompt'] for r in train}
    assert sorted(r['row'] for r in train + val) == list(range(100)) and [r['row'] for r in train] == sorted(r['row'] for r in train)
    assert held_out_split(records, 30, seed=1) == (train, val) != held_out_split(records, 30, seed=2)
    assert held_out_split(records[::-1], 30, seed=1)[1] == val[::-1]  # the choice hangs on the prompts, not on their order
    with says('cannot hold out 0 prompts of 80 different ones'):
        held_out_split(records, 0, seed=1)
    assert len({r['prompt'] for r in held_out_split(records, 80, seed=1)[1]}) == 8


def test_an_epoch_takes_each_record_once():
    for n, count in ((10, 5), (10, 3), (7, 7), (3, 8)):  # 8 > 3: an iteration may span epochs
        stream = [i for it in range(n) for i in draw_indices(n, count, it, seed=4)]
        epochs = [stream[e * n:(e + 1) * n] for e in range(count)]
        assert len(stream) == n * count and all(sorted(epoch) == list(range(n)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1  # each in another order
    assert draw_indices(1000, 5, 3, seed=4) != draw_indices(1000, 5, 3, seed=5)


def test_order_needs_no_state():
    """A resumed run asks for iteration 7 first; a process of another life must answer the same (Python's hash() would not)."""
    direct = draw_indices(50, 8, 7, seed=1)
    assert direct == [i for it in range(8) for i in draw_indices(50, 8, it, seed=1)][-8:]
    other = subprocess.run(
        [sys.executable, '-c', 'from data.prompts import draw_indices; print(draw_indices(50, 8, 7, seed=1))'],
        cwd=ROOT,
        env={**os.environ, 'PYTHONHASHSEED': '7'},
        capture_output=True,
        text=True,
    )
    assert json.loads(other.stdout) == direct, other.stderr


@pytest.mark.parametrize('ranks', [1, 2, 4])
def test_any_number_of_ranks_sees_the_same_prompts(ranks):
    for it in range(5):
        shares = [draw_indices(50, 8, it, seed=1)[rank * 8 // ranks:(rank + 1) * 8 // ranks] for rank in range(ranks)]
        assert sum(shares, []) == draw_indices(50, 8, it, seed=1)


# ---------------------------------------------------------------------------------------------------------------------
# encoding

class Letters(Tokenizer):
    """A token per character, its code; a chat wraps each message in <role>."""
    has_chat_template = True

    def encode(self, text):
        if '?' in text:
            raise ValueError("character '?' is unknown")
        return [ord(c) for c in text]

    def decode(self, ids, special=False):
        return ''.join(map(chr, ids))

    def chat(self, messages):
        return self.encode(''.join(f"<{m['role']}>{m['content']}" for m in messages) + '<assistant>')


def test_encode_plain():
    (record,), n_dropped = encode_prompts([{'prompt': 'ab', 'answer': 'c'}], Letters(), system_prompt='S:')
    columns = {'prompt': 'ab', 'answer': 'c'}
    assert record == {**columns, 'text': 'S:ab', 'ids': [83, 58, 97, 98], 'columns': columns, 'templated': False} and n_dropped == 0


def test_encode_chat():
    own = [{'role': 'system', 'content': 'own'}, {'role': 'user', 'content': 'q'}]
    records, _ = encode_prompts([{'prompt': 'ab'}, {'prompt': own}], Letters(), system_prompt='S', chat_template=True)
    assert [r['text'] for r in records] == ['<system>S<user>ab<assistant>', '<system>own<user>q<assistant>']
    assert encode_prompts([{'prompt': 'ab'}], Letters(), chat_template=True)[0][0]['text'] == '<user>ab<assistant>'
    with says("prompt 1: it is a list of chat messages: set chat_template='auto'"):
        encode_prompts([{'prompt': 'ab'}, {'prompt': own}], Letters(), chat_template=False)


def test_the_template_is_for_lists_of_messages():
    own = [{'role': 'user', 'content': 'q'}]
    records, _ = encode_prompts([{'prompt': 'ab'}, {'prompt': own}], Letters(), system_prompt='S')
    assert [r['text'] for r in records] == ['Sab', '<system>S<user>q<assistant>']
    plain = Letters()
    plain.has_chat_template = False
    with says('prompt 0: it is a list of chat messages, and the model has no chat template: give texts, or put a chat_template.jinja'):
        encode_prompts([{'prompt': own}], plain)


def test_too_long():
    records = [{'prompt': 'a' * n} for n in (2, 4, 6)]
    assert len(encode_prompts(records, Letters(), max_prompt_length=6)[0]) == 3
    with says('prompt 2 has 6 tokens and max_prompt_length is 5', "too_long='drop'"):
        encode_prompts(records, Letters(), max_prompt_length=5)
    kept, n_dropped = encode_prompts(records, Letters(), max_prompt_length=3, too_long='drop')
    assert [r['text'] for r in kept] == ['aa'] and n_dropped == 2
    with says('all 3 prompts are longer than max_prompt_length 1'):
        encode_prompts(records, Letters(), max_prompt_length=1, too_long='drop')


def test_what_the_tokenizer_cannot_say():
    with says("prompt 1: character '?' is unknown"):
        encode_prompts([{'prompt': 'a'}, {'prompt': '?'}], Letters())
    with says("prompt 0 has no tokens: '\\u200b'"):
        encode_prompts([{'prompt': '\u200b'}], types.SimpleNamespace(encode_prompt=lambda text: []))


# ---------------------------------------------------------------------------------------------------------------------
# the data sets

def test_sums():
    train, val = sums()
    assert (len(train), len(val)) == (9000, 1000) and (train, val) == sums()
    split_of = {record['prompt']: split for split, records in (('train', train), ('val', val)) for record in records}
    assert len(split_of) == 10000  # all of them, and none twice
    assert all(split_of[f'{a}+{b}='] == split_of[f'{b}+{a}='] for a in range(100) for b in range(100))
    assert {'prompt': '12+34=', 'answer': '46'} in train + val and all(str(eval(r['prompt'][:-1])) == r['answer'] for r in train + val)


def copy_rooms(folder):
    """The rooms and root files beside data/."""
    for room in ('formats', 'kernels', 'rewards', 'runtime', 'sandbox', 'tasks', 'report'):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns('__pycache__'))
    for path in ROOT.glob('*.py'):
        shutil.copy(path, folder)


def script(name, folder, *arguments):
    """Run data/name/prepare.py as a user does, from a copy of the repo in folder, and without a network."""
    shutil.copytree(
        ROOT / 'data',
        folder / 'data',
        ignore=shutil.ignore_patterns('*.bin', '*.jsonl', 'vocab.json', 'input.txt', 'original', '__pycache__'),
    )
    copy_rooms(folder)
    nowhere = {'https_proxy': 'http://127.0.0.1:9', 'HTTPS_PROXY': 'http://127.0.0.1:9', 'no_proxy': ''}  # nobody answers there
    done = subprocess.run(
        [PYTHON, str(folder / 'data' / name / 'prepare.py'), *arguments], env={**os.environ, **nowhere}, capture_output=True, text=True
    )
    return done, folder / 'data' / name


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_arithmetic_script(tmp_path):
    done, folder = script('arithmetic', tmp_path)
    assert done.returncode == 0, done.stderr
    assert (read(folder / 'train.jsonl'), read(folder / 'val.jsonl')) == sums()
    assert not [name for name in os.listdir(folder) if name.endswith('.tmp')]


def test_a_folder_is_prepared_on_first_use(tmp_path, monkeypatch, capsys):
    """Through importlib, into the prepare.py's own folder: point both at a copy."""
    (tmp_path / 'arithmetic').mkdir()
    (tmp_path / 'arithmetic' / 'prepare.py').touch()
    monkeypatch.setattr(data.prompts, 'FOLDER', str(tmp_path))
    monkeypatch.setattr(arithmetic, '__file__', str(tmp_path / 'arithmetic' / 'prepare.py'))
    assert len(load_prompts('arithmetic', split='val')) == 1000 and len(load_prompts('arithmetic')) == 9000
    assert capsys.readouterr().out.count('preparing data/arithmetic, once') == 1
    with says("wrote no test.jsonl"):
        load_prompts('arithmetic', split='test')


def test_gsm8k(tmp_path, monkeypatch):
    original, ours = tmp_path / 'original', tmp_path / 'ours'
    original.mkdir(), ours.mkdir()
    monkeypatch.setattr(gsm8k, '__file__', str(ours / 'prepare.py'))
    for name in ('train', 'test'):
        (original / f'{name}.jsonl').write_text(json.dumps({'question': f'{name}: 6*7?', 'answer': '6*7=<<6*7=42>>42\n#### 42'}) + '\n')
    gsm8k.main(str(original))
    assert (
        read(ours / 'val.jsonl') == [{'prompt': 'test: 6*7?', 'answer': '6*7=<<6*7=42>>42\n#### 42'}]
        and read(ours / 'train.jsonl')[0]['prompt'] == 'train: 6*7?'
    )
    (original / 'train.jsonl').write_text('{"question": "one", "answer": "1"}\n')
    for path, message in (
        (original, "problem 1: the answer '1' has no line `#### number`"),
        (ours, 'is where the result goes'),
        (tmp_path / 'nowhere', 'no prompts at'),
    ):
        with says(message):
            gsm8k.main(str(path))
    assert read(ours / 'train.jsonl')[0]['prompt'] == 'train: 6*7?'  # what was there is still there


def test_gsm8k_without_a_network(tmp_path):
    done, folder = script('gsm8k', tmp_path)
    assert (
        done.returncode == 1
        and 'could not download https://raw' in done.stderr
        and '--path=WHERE_IT_IS' in done.stderr
        and len(done.stderr.splitlines()) == 1
    )
    assert os.listdir(folder) == ['prepare.py']


@pytest.mark.parametrize('name', ['reasoning_gym', 'pyfunc'])
def test_generated_sets_need_a_problem_each(tmp_path, name):
    for key in ('n', 'n_val'):
        done, folder = script(name, tmp_path / key, f'--{key}=0')
        assert done.returncode == 1 and done.stderr == f'error: --{key}=0: {key} is 0; it must be at least 1 (int)\n'
        assert not list(folder.glob('*.json*'))


def test_reasoning_gym_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, 'reasoning_gym', None)
    with says('pip install reasoning-gym'):
        make_problems('chain_sum', 20, 5, 0, {})


@pytest.mark.skipif(importlib.util.find_spec('reasoning_gym') is None, reason='reasoning-gym is not installed')
def test_reasoning_gym():
    train, val = make_problems('chain_sum', 20, 5, 0, {'max_terms': 2, 'max_digits': 2})
    assert len(train) == 20 and len(val) == 5 and len({r['prompt'] for r in train + val}) == 25
    assert (train, val) == make_problems('chain_sum', 20, 5, 0, {'max_terms': 2, 'max_digits': 2})
    assert all(
        score('reasoning_gym', r['answer'], context=r['context']) == 1 and score('reasoning_gym', 'x', context=r['context']) == 0
        for r in train
    )
    _, val = make_problems('prime_factorization', 20, 5, 0, {})  # its scoring raises on junk
    assert score('reasoning_gym', 'junk', context=val[0]['context']) == 0
    make_problems('countdown', 20, 5, 0, {})  # its own answers pass our filter
    for task, options, message in (
        ('chain_sun', {}, "refuses the task 'chain_sun'"),
        ('n_queens', {}, "runs the model's answer as Python code"),
        ('game_of_life_halting', {}, "full marks to 'I do not know.'"),
        ('arc_agi', {}, 'does not accept its own answer'),
        ('chain_sum', {'max_turms': 2}, 'max_turms'),
        ('chain_sum', {'min_terms': 2, 'max_terms': 2, 'max_digits': 1, 'allow_negation': False}, 'different questions'),
        ('composite', {}, "refuses the task 'composite'"),
    ):
        with says(message):
            make_problems(task, 2000 if message == 'different questions' else 5, 1, 0, options)
