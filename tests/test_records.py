"""Records from files as they come in real life: ten of each form, what others call a prompt, pairs, mixtures, small files."""
import csv
import functools
import gzip
import io
import json
import random
import resource
import sys
import time
import types
from collections import Counter
from pathlib import Path

import pytest

import data.sources
from data.prompts import draw_indices, draw_mixture, held_out_split, is_one_split, load_prompts, load_split
from formats.text_files import near_path, read_text
from formats.tokenizer import CharTokenizer
from tasks.alignment import load_preferences, preference_rows
from test_prompts import says

QA = [{'prompt': 'What is 6 times 7?', 'answer': '42'}, {'prompt': 'And 2+2?', 'answer': '4'}]

packed = functools.partial(gzip.compress, mtime=0)  # the same bytes in every process that collects the tests


def table(rows, **options):
    text = io.StringIO(newline='')
    csv.writer(text, **options).writerows(rows)
    return text.getvalue()


ROWS = [['prompt', 'answer'], *([r['prompt'], r['answer']] for r in QA)]
NESTED = {'prompt': [{'role': 'user', 'content': 'Hi'}], 'tests': ['a', ['b', None]], 'n': 1.5, 'none': None}

# ---------------------------------------------------------------------------------------------------------------------
# ten files of each form: name, bytes, the records (the columns that matter)

CSV = {
    'plain.csv': (table(ROWS), QA),
    'bom-crlf.csv': (b'\xef\xbb\xbf' + table(ROWS).encode(), QA),
    'unix-ends.csv': (table(ROWS, lineterminator='\n') + '\n\n', QA),
    'old-mac.csv': (table(ROWS, lineterminator='\r'), QA),
    'quoted.csv': ('prompt,answer\r\n"He said ""go"", twice.\r\nThen, left.",3\r\n',
                   [{'prompt': 'He said "go", twice.\r\nThen, left.', 'answer': '3'}]),
    'empty-cells.csv': ('prompt,answer,note\nq,,\nr,0,x\n', [{'prompt': 'q', 'answer': None, 'note': None},
                                                             {'prompt': 'r', 'answer': '0', 'note': 'x'}]),
    'pandas-index.csv': (',prompt,answer\n0,q,1\n1,r,2\n', [{'prompt': 'q', 'answer': '1'}, {'prompt': 'r', 'answer': '2'}]),
    'excel-sep.csv': ('sep=;\r\nprompt;answer\r\n"a; b";1,5\r\n;\r\n', [{'prompt': 'a; b', 'answer': '1,5'}]),
    'semicolons.csv': ('\ufeffprompt;answer\r\nWhat, then?;"1,5"\r\n', [{'prompt': 'What, then?', 'answer': '1,5'}]),
    'utf-16-excel.csv': ('prompt\tanswer\r\nWie weit ist es zum Café?\t3 km\r\n'.encode('utf-16'),
                         [{'prompt': 'Wie weit ist es zum Café?', 'answer': '3 km'}]),
    'separators.csv': ('prompt,answer\na\u2028b\x0cc,1\n', [{'prompt': 'a\u2028b\x0cc', 'answer': '1'}]),
    'spaces.csv': ('prompt , answer\nq, 1\n', [{'prompt': 'q', 'answer': ' 1'}]),
    'trailing-commas.csv': ('prompt,answer,\nq,1,\n,,\n', [{'prompt': 'q', 'answer': '1'}]),
    'short-row.csv': ('prompt,answer,note\nq,1\n', [{'prompt': 'q', 'answer': '1', 'note': None}]),
    'one-column.csv': ('prompt\nq\n"r, s"\n', [{'prompt': 'q'}, {'prompt': 'r, s'}]),
    'packed.csv.gz': (packed(table(ROWS).encode()), QA),
    'book.csv': ('prompt,answer\n' + 'x' * 200_000 + ',1\n', [{'prompt': 'x' * 200_000, 'answer': '1'}]),
    'plain.tsv': (table(ROWS, delimiter='\t'), QA),
    'commas.tsv': (table([['prompt', 'answer'], ['a, b', 'c, d']], delimiter='\t'), [{'prompt': 'a, b', 'answer': 'c, d'}]),
    'packed.TSV.GZ': (packed(table(ROWS, delimiter='\t').encode()), QA),
}
JSONL = {
    'plain.jsonl': (''.join(json.dumps(r) + '\n' for r in QA), QA),
    'bom-crlf.jsonl': (b'\xef\xbb\xbf' + ''.join(json.dumps(r) + '\r\n' for r in QA).encode(), QA),
    'no-last-end.jsonl': (json.dumps(QA[0]), QA[:1]),
    'blank-lines.jsonl': ('\n \n' + json.dumps(QA[0]) + '\n\n\r\n', QA[:1]),
    'separators.jsonl': (json.dumps({'prompt': 'a\u2028b\u0085c\x0c'}, ensure_ascii=False), [{'prompt': 'a\u2028b\u0085c\x0c'}]),
    'nested.jsonl': (json.dumps(NESTED), [NESTED]),
    'numbers.jsonl': ('{"prompt": "q", "answer": 42}\n{"prompt": "r", "answer": 0.5}\n{"prompt": "s", "answer": null}\n',
                      [{'prompt': 'q', 'answer': 42}, {'prompt': 'r', 'answer': 0.5}, {'prompt': 's', 'answer': None}]),
    'pairs-of-surrogates.jsonl': ('{"prompt": "\\ud83d\\ude00"}', [{'prompt': '😀'}]),
    'texts.jsonl': ('"one"\n"two"\n', [{'prompt': 'one'}, {'prompt': 'two'}]),
    'really-a-list.jsonl': (json.dumps(QA, indent=1), QA),
    'packed.jsonl.gz': (packed(json.dumps(QA[0]).encode()), QA[:1]),
    'two-members.jsonl.gz': (packed(json.dumps(QA[0]).encode() + b'\n') + packed(json.dumps(QA[1]).encode()), QA),
    'utf-16.jsonl': (json.dumps(QA[0]).encode('utf-16'), QA[:1]),
    'other-columns.jsonl': ('{"prompt": "q"}\n{"prompt": "r", "more": 1}\n', [{'prompt': 'q'}, {'prompt': 'r', 'more': 1}]),
}
JSON = {
    'list.json': (json.dumps(QA), QA),
    'prompts.json': (json.dumps({'prompts': QA}, indent=2), QA),
    'bom.json': (b'\xef\xbb\xbf' + json.dumps(QA).encode(), QA),
    'crlf.json': (json.dumps(QA, indent=2).replace('\n', '\r\n'), QA),
    'texts.json': ('["one", "two"]', [{'prompt': 'one'}, {'prompt': 'two'}]),
    'really-lines.json': (''.join(json.dumps(r) + '\n' for r in QA), QA),
    'nested.json': (json.dumps([NESTED]), [NESTED]),
    'chats.json': (json.dumps({'prompts': [NESTED['prompt'], {'prompt': NESTED['prompt']}]}), [{'prompt': NESTED['prompt']}] * 2),
    'packed.json.gz': (packed(json.dumps(QA).encode()), QA),
    'no-ascii.json': (json.dumps([{'prompt': 'naïve 問'}], ensure_ascii=False), [{'prompt': 'naïve 問'}]),
    'nan.json': ('[{"prompt": "q", "answer": 1e400}]', [{'prompt': 'q', 'answer': float('inf')}]),
}
TXT = {
    'plain.txt': ('one\ntwo\n', ['one', 'two']), 'bom.txt': (b'\xef\xbb\xbfone', ['one']), 'crlf.txt': ('one\r\ntwo\r\n', ['one', 'two']),
    'old-mac.txt': ('one\rtwo', ['one', 'two']), 'blank.txt': ('\n\none\n \n', ['one']), 'spaces.txt': (' one \n', [' one ']),
    'separators.txt': ('one\u2028two\x85three\x0c\n', ['one\u2028two\x85three\x0c']), 'packed.txt.gz': (packed(b'one\n'), ['one']),
    'utf-16.txt': ('één\r\n'.encode('utf-16'), ['één']), 'big-endian.txt': (b'\xfe\xff' + 'één'.encode('utf-16-be'), ['één']),
}


@pytest.mark.parametrize('name', [*CSV, *JSONL, *JSON, *TXT])
def test_files(file, name):
    content, records = (CSV | JSONL | JSON | TXT)[name]
    wanted = [{'prompt': record} if isinstance(record, str) else record for record in records]
    assert load_prompts(file(name, content)) == wanted


@pytest.mark.parametrize('name, content, parts', [
    ('a.csv', 'prompt,answer\n', ['a.csv holds no prompts']),
    ('a.csv', '', ['a.csv is empty']),
    ('a.csv', 'prompt,answer,answer\nq,1,2\n', ["a.csv has two columns 'answer'"]),
    ('a.csv', 'prompt,answer\nq,1\nr, s,2\n', ['line 3 has 3 cells and the header 2', "holds ',' must stand in quotes"]),
    ('a.csv', 'prompt,answer\n"q\nr",1\n"never closed,2\n', ['a.csv, line 4: not a table']),
    ('a.csv', 'prompt,answer\nq,1\n,2\n', ['a.csv, line 3: the prompt is None']),
    ('a.csv', 'text;label\nq;1\n', ["a.csv, line 2: there is no field 'prompt', only: text, label"]),
    ('a.csv', 'prompt\nna\xefve'.encode('latin-1'), ['a.csv is not UTF-8 text (byte 9)']),
    ('a.csv.gz', packed(table(ROWS).encode())[:-9], ['a.csv.gz is not a whole gzip file']),
    ('a.jsonl.gz', packed(b'{"prompt": 1}'), ['a.jsonl.gz, line 1: the prompt is 1 (int)']),
    ('a.xlsx', b'PK', ['a.xlsx', '.csv', '.parquet', 'not as .xlsx']),
    ('a.parquet', b'PAR1', ['could not read', 'a.parquet']),
    ('a.jsonl', '{"messages": "hello"}', ['a.jsonl, line 1', 'the conversation is', 'hello']),
])
def test_broken_files(file, name, content, parts):
    with says(*parts):
        load_prompts(file(name, content))


def test_parquet(tmp_path, monkeypatch):
    """Ten tables: types, nulls, lists, messages, categories, pandas' index, many row groups, no rows, two columns of one name."""
    pa, pq = pytest.importorskip('pyarrow'), pytest.importorskip('pyarrow.parquet')

    def load(columns, **options):
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        pq.write_table(table, tmp_path / 'a.parquet', **options)
        return load_prompts(str(tmp_path / 'a.parquet'))

    assert load({'prompt': ['q', 'r'], 'answer': ['1', None]}) == [{'prompt': 'q', 'answer': '1'}, {'prompt': 'r', 'answer': None}]
    assert load({'prompt': ['q'], 'answer': [42], 'n': [0.5], 'ok': [True]}) == [{'prompt': 'q', 'answer': 42, 'n': 0.5, 'ok': True}]
    assert load({'prompt': ['q'], 'tests': [['a', 'b']], 'more': [[[1], []]]}) == [{'prompt': 'q', 'tests': ['a', 'b'], 'more': [[1], []]}]
    chat = [{'role': 'user', 'content': 'Hi'}]
    assert load({'prompt': [chat]}) == [{'prompt': chat}]
    assert load({'messages': [[*chat, {'role': 'assistant', 'content': 'Ho'}]]})[0].items() >= {'prompt': chat, 'answer': 'Ho'}.items()
    assert load({'prompt': pa.array(['q', 'q']).dictionary_encode()}) == [{'prompt': 'q'}] * 2
    assert load({'prompt': pa.array(['q'], pa.large_string()), '__index_level_0__': [5]}) == [{'prompt': 'q'}]
    assert len(load({'prompt': [str(i) for i in range(5000)]}, row_group_size=100)) == 5000
    assert load({'question': ['q'], 'answer': ['x']}, compression='zstd')[0]['prompt'] == 'q'
    with says('a.parquet holds no prompts'):
        load({'prompt': pa.array([], pa.string())})
    with says("has two columns 'prompt'"):
        load(pa.Table.from_arrays([pa.array(['q']), pa.array(['r'])], names=['prompt', 'prompt']))
    with says('row 1: the prompt is None'):
        load({'prompt': ['q', None]})
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    with says('pip install pyarrow'):
        load_prompts(str(tmp_path / 'a.parquet'))


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.jsonl', '.json', '.csv', '.tsv', '.txt', '.jsonl.gz', '.parquet'])
def test_fifty_megabytes(tmp_path, suffix):
    """Seconds, and memory of some times the file."""
    records = [{'prompt': f'{i} ' + 'word, ' * 80, 'answer': str(i)} for i in range(100_000)]
    path = tmp_path / f'big{suffix}'
    if suffix == '.parquet':
        pa = pytest.importorskip('pyarrow')
        pytest.importorskip('pyarrow.parquet').write_table(pa.Table.from_pylist(records), path)
    elif suffix in ('.csv', '.tsv'):
        rows = [['prompt', 'answer'], *(list(record.values()) for record in records)]
        path.write_text(table(rows, delimiter=',' if suffix == '.csv' else '\t'))
    elif suffix == '.json':
        path.write_text(json.dumps(records))
    else:
        text = '\n'.join(json.dumps(record) for record in records)
        path.write_bytes(gzip.compress(text.encode(), 1) if suffix.endswith('gz') else text.encode())
    del records
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assert len(load_prompts(str(path))) == 100_000
    assert time.process_time() - began < 20 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


# ---------------------------------------------------------------------------------------------------------------------
# columns

def first(file, **columns):
    return load_prompts(file('a.jsonl', json.dumps(columns)))[0]


def test_what_others_call_a_prompt_and_an_answer(file, capsys):
    for theirs in ('question', 'problem', 'instruction', 'query', 'input', 'Question', ' Prompt'):
        assert first(file, **{theirs: 'q', 'answer': 1}) == {theirs: 'q', 'answer': 1, 'prompt': 'q'}
    for theirs in ('solution', 'ground_truth', 'label', 'target', 'response', 'output', 'Answer'):
        assert first(file, **{'prompt': 'q', theirs: 0}) == {'prompt': 'q', theirs: 0, 'answer': 0}
    capsys.readouterr()
    path = file('b.jsonl', '{"question": "q", "solution": "s"}')
    assert load_prompts(path) == load_prompts(path) == [{'question': 'q', 'solution': 's', 'prompt': 'q', 'answer': 's'}]
    assert capsys.readouterr().out == f"{path}: taking 'question' as the prompt, 'solution' as the answer\n"
    assert first(file, question='q', answer='1 #### 42', solution='s')['answer'] == '1 #### 42'
    assert 'answer' not in first(file, prompt='q', reference='r', label=1)
    with says('a.jsonl, line 1', "'question' and 'problem' could each be it", "column_mapping={'question': 'prompt'}"):
        first(file, question='q', problem='p')
    with says("'solution' and 'label' could each be it", "column_mapping={'solution': 'answer'}"):
        first(file, prompt='q', solution='s', label=1)
    path = file('c.jsonl', json.dumps({'question': 'q', 'problem': 'p', 'solution': 's', 'label': 1}))
    record = load_prompts(path, {'question': 'prompt', 'solution': 'answer'})[0]
    assert record == {'problem': 'p', 'label': 1, 'prompt': 'q', 'answer': 's'}


def test_column_mapping_both_ways_round(file):
    path = file('a.jsonl', json.dumps({'question': 'q', 'solution': 's'}))
    for mapping in ({'prompt': 'question', 'answer': 'solution'}, {'question': 'prompt', 'solution': 'answer'},
                    {'prompt': 'question', 'solution': 'answer'}):
        assert load_prompts(path, mapping) == [{'prompt': 'q', 'answer': 's'}]
    path = file('b.jsonl', json.dumps({'prompt': 'old', 'question': 'q', 'answer': 'a', 'solution': 's'}))
    assert load_prompts(path, {'question': 'prompt', 'prompt': 'old'})[0].items() >= {'prompt': 'q', 'old': 'old'}.items()
    for ours, theirs in (('answer', 'solution'), ('prompt', 'question')):
        with says(f"column_mapping={{'{ours}': '{theirs}'}} can mean both", f"{{'{theirs}': '{ours}'}} takes '{theirs}' as the {ours}"):
            load_prompts(path, {ours: theirs})


def test_conversations_in_the_cells_of_tables(file):
    """As pandas writes them, as JSON, and what only begins like one."""
    turns = [{'role': 'user', 'content': "It's 6, isn't it?"}, {'role': 'assistant', 'content': 'Yes.'}]
    rows = [['messages', 'tests'], [str(turns), '[{"a": 1}]'], [json.dumps(turns), '[{1: 2'], [f' {json.dumps(turns, indent=1)}', '']]
    records = load_prompts(file('chat.csv', table(rows)))
    assert [(record['prompt'], record['answer']) for record in records] == [(turns[:1], 'Yes.')] * 3
    assert [record['tests'] for record in records] == ['[{"a": 1}]', '[{1: 2', None]
    sharegpt = [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Ho'}]
    [record] = load_prompts(file('chat.tsv', table([['conversations'], [json.dumps(sharegpt)]], delimiter='\t')))
    assert (record['prompt'], record['answer']) == ([{'role': 'user', 'content': 'Hi'}], 'Ho')
    assert load_prompts(file('deep.csv', table([['prompt'], ['[{' + '(' * 2000]])))[0]['prompt'] == '[{' + '(' * 2000


def test_conversations(file):
    user, other = {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}
    system = {'role': 'system', 'content': 's'}
    record = first(file, messages=[system, user, other, user, other], source='x')
    assert record['prompt'] == [system, user, other, user] and record['answer'] == 'a' and record['source'] == 'x'
    assert first(file, messages=[user, other, user]) == {'messages': [user, other, user], 'prompt': [user, other, user]}
    share = [{'from': 'system', 'value': 's'}, {'from': 'human', 'value': 'q'}, {'from': 'gpt', 'value': 'a'}]
    record = first(file, conversations=share)
    assert record['prompt'] == [system, user] and record['answer'] == 'a'
    record = first(file, messages=[user, other], answer='42', chat='mine')
    assert record['answer'] == '42' and record['chat'] == 'mine'
    assert first(file, problem='p', messages=[user, other])['prompt'] == 'p'
    with says('a.jsonl, line 1', "must have the texts 'role' and 'content'"):
        first(file, messages=[{'role': 'user', 'content': None}, other])


def turn(role, text):
    return {'role': role, 'content': text}


@pytest.mark.parametrize('pair', [
    {'chosen': '\n\nHuman: Hi\n\nAssistant: Yes.', 'rejected': '\n\nHuman: Hi\n\nAssistant: No.'},
    {'chosen': 'Q: a b', 'rejected': 'Q: a c'},
    {'chosen': [turn('user', 'Hi'), turn('assistant', 'Yes.')], 'rejected': [turn('user', 'Hi'), turn('assistant', 'No.')]},
    {'chosen': [turn('system', 's'), turn('user', 'Hi'), turn('assistant', 'Yes.')],
     'rejected': [turn('system', 's'), turn('user', 'Hi'), turn('assistant', 'No.')]},
    {'prompt': 'Hi', 'chosen': 'Yes.', 'rejected': 'No.'},
    {'prompt': [turn('user', 'Hi')], 'chosen': [turn('assistant', 'Yes.')], 'rejected': [turn('assistant', 'No.')]},
    {'prompt': 'Hi', 'chosen': [turn('user', 'Hi'), turn('assistant', 'Yes.')], 'rejected': [turn('user', 'Hi'), turn('assistant', 'No.')]},
])
def test_pairs_are_cut_as_trl_cuts_them(file, pair):
    wanted = pytest.importorskip('trl.data_utils').maybe_extract_prompt(pair)
    def text(part): return part if isinstance(part, str) else '\n\n'.join(message['content'] for message in part)
    loaded, = load_preferences(file('p.jsonl', json.dumps(pair)), kinds=['reward'])
    assert loaded == {'prompt': text(wanted['prompt']), 'response_0': text(wanted['chosen']), 'response_1': text(wanted['rejected']),
                      'better_response_id': 0}


def test_pairs_that_do_not_serve(file):
    path = file('p.jsonl', json.dumps({'prompt': 'q', 'chosen': 'a', 'rejected': 'b'}))
    with says('safer_response_id = None', 'a reward and a cost model needs response_0, response_1, better_response_id, safer_response_id',
              'is_response_1_safe', "for a reward TRL's chosen and rejected will do"):
        load_preferences(path)
    with says('a cost model needs response_0, response_1, safer_response_id, is_response_0_safe, is_response_1_safe'):
        load_preferences(file('p.jsonl', '{"prompt": "q"}'), kinds=['cost'])
    with says("chosen is 3 and rejected 'b'", 'must be two texts'):
        load_preferences(file('p.jsonl', '{"chosen": 3, "rejected": "b"}'), kinds=['reward'])


# ---------------------------------------------------------------------------------------------------------------------
# the hub, played by folders that the package `datasets` reads

@pytest.fixture
def hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets')
    for name, splits in (('plain', ('train', 'test')), ('configs', ('train', 'test')), ('alone', ('train',))):
        (tmp_path / name).mkdir()
        for split in splits:
            lines = [json.dumps({'question': f'{split} {i}', 'answer': '1'}) for i in range(20)]
            (tmp_path / name / f'{split}.jsonl').write_text('\n'.join(lines))
    (tmp_path / 'configs' / 'README.md').write_text(
        '---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n'
        '  - split: test\n    path: test.jsonl\n- config_name: socratic\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n')

    def local(function):
        return lambda name, *rest, **options: function(str(tmp_path / name.partition('/')[2]), *rest, **options)
    names = ('load_dataset', 'get_dataset_split_names', 'get_dataset_config_names')
    stub = types.SimpleNamespace(**{name: local(getattr(datasets, name)) for name in names})
    datasets.disable_progress_bars()
    monkeypatch.setattr(data.sources, 'optional', lambda module, told: stub)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)


def test_hub_names(hub):
    def prompts(source, split='train'): return [record['prompt'] for record in load_prompts(source, split=split)]
    every = [f'train {i}' for i in range(20)]
    assert prompts('me/plain') == prompts('me/plain:train') == prompts('me/configs:main') == prompts('me/configs:main:train') == every
    assert prompts('me/plain:train[:10%]') == prompts('me/configs:socratic:train[:2]') == every[:2]
    assert prompts('me/plain:train[18:]+test[:1]') == ['train 18', 'train 19', 'test 0']
    assert prompts('me/plain', 'val')[0] == prompts('me/configs:main', 'val')[0] == 'test 0'
    assert prompts('me/plain:test[:1]', 'val') == ['test 0']  # a named split is that split
    assert not is_one_split('me/plain') and not is_one_split('me/configs:main')
    assert all(map(is_one_split, ('me/plain:train', 'me/plain:train[:2]', 'me/configs:main:train')))
    for name, parts in (('me/plain:trian', ['Unknown split "trian". Should be one of']),
                        ('me/configs', ["available configs: ['main', 'socratic']"]),
                        ('me/plain:train:test:x', ['at most a config and a split']),
                        ('me/configs:main:trian', ['Unknown split "trian"'])):
        with says(*parts):
            load_prompts(name)
    with pytest.raises(data.sources.NoSplit, match='has the splits train and none of val, validation'):
        load_prompts('me/alone', split='val')


# ---------------------------------------------------------------------------------------------------------------------
# small files, order, mixtures

def test_evaluation_prompts_that_are_trained_on_are_told_of(file, capsys):
    path, other = file('a.jsonl', '"x"\n"y"\n"z"'), file('b.jsonl', '"z"\n"new"')
    load_split(path, None, None, other, 8, 1)
    assert f'note: 1 of the 2 prompts of {other} are trained on too' in capsys.readouterr().out


def test_a_tenth_of_a_small_file(capsys):
    for n, held in ((10, 1), (2, 1), (19, 1), (30, 3), (512, 51)):
        train, val = held_out_split([{'prompt': str(i)} for i in range(n)], 512, seed=1)
        assert len(val) == held and len(train) == n - held
    assert 'only 1 of 10 prompts held out: 512 would leave none to train on' in capsys.readouterr().out
    with says('cannot hold out 512 prompts of 1 different ones'):
        held_out_split([{'prompt': 'one'}] * 3, 512, seed=1)


def test_a_fixed_order():
    assert [draw_indices(5, 3, it, seed=7, shuffle=False) for it in range(3)] == [[0, 1, 2], [3, 4, 0], [1, 2, 3]]
    assert draw_mixture([5], [0.3], 3, 1, 7, shuffle=False) == [3, 4, 0] and draw_mixture([50], [0.3], 8, 3, 7) == draw_indices(50, 8, 3, 7)


@pytest.mark.parametrize('weights', [[0.7, 0.3], [1, 1, 1], [5, 0.01, 2, 2]])
def test_a_mixture_keeps_its_shares(weights):
    """Of all prompts drawn so far each source has its share, to one prompt a source; each goes through its records epoch by epoch."""
    rng = random.Random(0)
    sizes, count = [rng.randint(1, 40) for _ in weights], 7
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    sources = [[i for i, start in enumerate(starts) for _ in range(sizes[i])][n] for n in range(sum(sizes))]
    drawn, seen = [], [[] for _ in weights]
    for it in range(200):
        indices = draw_mixture(sizes, weights, count, it, seed=3)
        assert len(indices) == count and indices == draw_mixture(sizes, weights, count, it, seed=3)
        drawn += indices
        shares = Counter(sources[n] for n in drawn)
        for i, weight in enumerate(weights):
            assert abs(shares[i] - len(drawn) * weight / sum(weights)) <= len(weights), (it, i)
    for n in drawn:
        seen[sources[n]].append(n - starts[sources[n]])
    for size, places in zip(sizes, seen, strict=True):
        for epoch in range(len(places) // size):
            assert sorted(places[epoch * size:(epoch + 1) * size]) == list(range(size))


def test_folders_of_other_files(tmp_path):
    (tmp_path / 'train.csv').write_text('question,answer\nq,1\n')
    assert load_prompts(str(tmp_path))[0]['prompt'] == 'q'
    with pytest.raises(data.sources.NoSplit, match='has no val.jsonl'):
        load_prompts(str(tmp_path), split='val')
    Path(tmp_path / 'val.json').write_text('["v"]')
    assert load_prompts(str(tmp_path), split='val') == [{'prompt': 'v'}]


def split(sources, n_eval=512, n_train=None):
    return load_split(sources, None, n_train, None, n_eval, seed=1)


def test_sources_hold_out_by_their_shares(file, tmp_path):
    """What one source holds out is not learned from the other; a source of one prompt is learned and evaluated."""
    a = file('a.jsonl', ''.join(json.dumps({'prompt': str(i), 'source': 'mine'}) + '\n' for i in range(100)))
    b = file('b.txt', ''.join(f'{i}\n' for i in range(50, 100)))
    one = file('one.txt', 'alone\n')
    train, held, _ = split({a: 3, b: 1, one: 0.4}, n_eval=20)
    assert Counter(record['source'] for record in held) == {'mine': 14, b: 5, one: 1}
    assert {r['prompt'] for records in train for r in records} & {r['prompt'] for r in held} == {'alone'}
    assert len(train) == 3 and len(train[2]) == 1 and all(r['source'] == 'mine' for r in train[0])
    with says(f'nothing of {one} is left to train on'):
        split({one: 1, file('two.txt', 'alone\nelse\n'): 1, file('three.txt', 'alone\nother\n'): 1}, n_eval=3)
    assert len(split(b, n_train=10)[1]) == 1  # a tenth of ten
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'train.csv').write_text('prompt\n' + ''.join(f'{i}\n' for i in range(40)))
    (train,), held, by_seed = split(str(tmp_path / 'folder'))
    assert (len(train), len(held), by_seed) == (36, 4, True)
    (tmp_path / 'folder' / 'val.txt').write_text('v\n')
    assert split(str(tmp_path / 'folder'))[1:] == ([{'prompt': 'v'}], False)
    for shares in ({b: 0}, {b: float('nan')}, {b: True}, {b: '1'}):
        with says('each source needs a share above 0'):
            split(shares)


def test_the_better_of_a_trl_pair_comes_first(file):
    pairs = load_preferences(file('p.jsonl', json.dumps({'prompt': 'q', 'chosen': 'good', 'rejected': 'bad'})), kinds=['reward'])
    tokenizer = CharTokenizer('abdgoq', end=True)
    (ids, _), = preference_rows(pairs, 'reward', tokenizer, lambda prompt, response: prompt + response, 50)
    assert [tokenizer.decode(row) for row in ids] == ['qgood', 'qbad']


def test_the_path_that_was_meant(tmp_path, monkeypatch):
    """Each part is looked for beside it; nothing is said of a path that is there, of none, of a file as a folder, or of what is far."""
    (tmp_path / 'out-sums/export').mkdir(parents=True)
    (tmp_path / 'out-sums/ckpt.pt').touch()
    monkeypatch.chdir(tmp_path)
    for path, meant in (('out-smus/ckp.pt', 'out-sums/ckpt.pt'), ('./out-sum/exprt', 'out-sums/export'),
                        ('out-sums/../out-sus', 'out-sums/../out-sums'), (str(tmp_path / 'out-sms'), str(tmp_path / 'out-sums'))):
        assert near_path(path) == f'; did you mean {meant}?'
    for path in ('', 'out-sums', 'out-sums/ckpt.pt', 'out-sums/ckpt.pt/x', 'out-sums/ckp.pt/ckpt.pt', 'other/ckpt.pt', 'out-sums/a\0b',
                 'x' * 5000):
        assert near_path(path) == '', path
    with pytest.raises(FileNotFoundError, match='cannot be read: Is a directory$'):
        read_text('out-sums')
