"""
sample.py as a script: each job through pipes and at a terminal, with models written here; best-of-n against scoring each answer by itself.
"""

import io
import json
import os
import re
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel

from formats.tokenizer import CharTokenizer, load_tokenizer
from judge import Judge, ScoreModel, TextScorer
from model import GPT, GPTConfig
from nla import Critic, Injection, truncate
from policy import CausalPolicy, generate
from rewards import score
from runtime.checkpoint import save_checkpoint
from tasks import show as talk
from tasks.fill_in import filler_config, score_fills, text_with_slots
from tasks.supervised import small_config
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = CharTokenizer('0123456789+= ab', end=True)
TEMPLATE = "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}|{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
NUMBER = r'-?\d+\.\d{3}'


def written(path, kind, model, tokenizer=TOKENIZER, std=0.3, **more):
    """A checkpoint of a model with random weights; returns it frozen."""
    torch.manual_seed(sum(path.name.encode()))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=std)
    config = vars(getattr(model, 'trunk', model).config)
    own = {'chars': tokenizer.chars} | ({'end': True} if tokenizer.eos_id is not None else {})
    save_checkpoint(str(path), {'kind': kind, 'model': model.state_dict(), 'model_config': config, **own, **more})
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """
    answers.pt, an alignment run with reward.pt and cost.pt; fills.pt with judge.pt; nla.pt about answers.pt; bytes/, a Hugging Face folder
    with a chat template.
    """
    folder = tmp_path_factory.mktemp('models')
    config = small_config(TOKENIZER, types.SimpleNamespace(block_size=24, n_layer=1, n_head=2, n_embd=16))
    learned = {
        'task': 'alignment',
        'reward_checkpoint': str(folder / 'reward.pt'),
        'cost_checkpoint': str(folder / '{dataset}.pt'),
        'train_prompts': None,
        'dataset': 'cost',
        'scorer_template': None,
    }
    answers = written(folder / 'answers.pt', 'run', GPT(config), config=learned, lagrange={'value': 0.5})
    for kind in ('reward', 'cost'):
        written(folder / f'{kind}.pt', kind, ScoreModel(GPTConfig(**vars(config) | {'block_size': 48}), kind))

    letters = CharTokenizer('abcdefgh')
    fills = GPT(filler_config(letters, 16, 1, 2, 16))
    written(folder / 'fills.pt', 'run', fills, letters, judge_checkpoint=str(folder / 'judge.pt'))
    written(folder / 'judge.pt', 'judge', Judge(fills.config, letters.cls_id), letters, quality={})

    actor = GPT(config)
    actor.injection = Injection(actor, 16, 'project', (0,))
    critic = Critic(truncate(answers, 1), torch.zeros(16), 1.0)
    about = {
        'injection': actor.injection.settings,
        'critic': critic.settings,
        'layer': 1,
        'source': str(folder / 'answers.pt'),
        'context': 8,
        'prompt': [TOKENIZER.mask_id],
        'max_new_tokens': 6,
        'settings': {'injection_token': '<INJECT>', 'text_reversed': False},
    }
    written(folder / 'nla.pt', 'nla', actor, critic=critic.state_dict(), nla=about)

    end = {'id': 256, 'content': '<end>', 'special': True, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    spec = {
        'model': {'type': 'BPE', 'vocab': {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}, 'merges': []},
        'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True},
        'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
        'added_tokens': [end],
    }
    torch.manual_seed(0)
    GPT(GPTConfig(**vars(config) | {'block_size': 64, 'vocab_size': 257})).save_pretrained(str(folder / 'bytes'), eos_id=256)
    (folder / 'bytes' / 'tokenizer.json').write_text(json.dumps(spec))
    (folder / 'bytes' / 'tokenizer_config.json').write_text(json.dumps({'eos_token': '<end>', 'chat_template': TEMPLATE}))
    return folder


def settings(max_new_tokens, system_prompt=''):
    """Those of a conversation."""
    return types.SimpleNamespace(system_prompt=system_prompt, chat_template_kwargs=None, add_special_tokens=True, seed=1,
                                 max_new_tokens=max_new_tokens)


def run(folder, *arguments, piped=''):
    """sample.py between pipes."""
    return subprocess.run(
        [PYTHON, str(ROOT / 'sample.py'), *arguments],
        cwd=folder,
        env=os.environ | {'OMP_NUM_THREADS': '1'},
        input=piped,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture
def script(folder, monkeypatch, capsys):
    """sample.py in this process, quicker: (stdout, stderr), or what it raises. piped: bytes; without, standard input is closed."""
    monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
    monkeypatch.chdir(folder)

    def call(*arguments, piped=None):
        monkeypatch.setattr(sys, 'argv', ['sample.py', *arguments])
        monkeypatch.setattr(sys, 'stdin', piped and io.TextIOWrapper(io.BytesIO(piped)))
        runpy.run_path(str(ROOT / 'sample.py'), run_name='__main__')
        return capsys.readouterr()
    return call


def table(text, columns):
    """The rows of a ranked table: numbers, then the answer with what is noted behind it."""
    heading, *lines = text.splitlines()
    assert heading.split() == columns, text
    found = [
        re.fullmatch(' *' + ' +'.join(r'(\d+)' if name in ('tokens', 'times') else f'({NUMBER})' for name in columns[:-1]) + '  (.*)', line)
        for line in lines
    ]
    assert all(found), text
    return [([float(x) for x in match.groups()[:-1]], match.groups()[-1]) for match in found]


def sampled(folder, prompt, n, temperature=0.8, max_new_tokens=256):
    """(text, whether it ended) of the answers that sample.py's seed 1 draws."""
    model, ids = GPT.from_pretrained(str(folder / 'answers.pt')).eval(), TOKENIZER.encode(prompt)
    forbidden = torch.zeros(TOKENIZER.vocab_size, dtype=torch.bool)
    forbidden[TOKENIZER.special_ids[:3]] = True
    answers = generate(
        model, [ids], n, min(max_new_tokens, 24 - len(ids)), temperature, eos_id=TOKENIZER.eos_id, seed=1, forbidden=forbidden
    )
    return [
        (TOKENIZER.decode(t[:k]), whole)
        for t, k, whole in zip(answers.tokens[0].tolist(), answers.lengths[0].tolist(), answers.ended[0].tolist(), strict=False)
    ]


def test_a_prompt_from_a_pipe(folder, script):
    """What is piped in is completed, without its line end; stdout is the answer and no more. A --prompt wins."""
    done = run(folder, '--checkpoint=answers.pt', piped='1+2=\n')
    assert (done.returncode, done.stdout, done.stderr) == (0, sampled(folder, '1+2=', 1)[0][0] + '\n', '')
    assert script('--checkpoint=answers.pt', '--prompt=3+4=', '--max_new_tokens=5', piped=b'1+2=\n') == (
        sampled(folder, '3+4=', 1, max_new_tokens=5)[0][0] + '\n',
        '',
    )
    with pytest.raises(ValueError, match=r'piped in is not UTF-8 text \(byte 2\)'):
        script('--checkpoint=answers.pt', piped=b'1+\xff')
    with pytest.raises(ValueError, match='no prompt'):
        script('--checkpoint=answers.pt', piped=b'\n')


def test_best_by_the_models_that_a_run_learned_from(folder):
    """score = reward - lambda cost with the run's own lambda, 0.5, each answer scored by itself; the best alone on stdout."""
    done = run(folder, '--checkpoint=answers.pt', '--num_samples=6', piped='1+2=\n')
    assert done.returncode == 0, done.stderr
    rows = table(done.stderr, ['score', 'reward', 'cost', 'log-prob', 'tokens', 'completion'])
    scorer, expected = TextScorer(str(folder / 'reward.pt'), str(folder / 'cost.pt')), []
    for text, ended in sampled(folder, '1+2=', 6):
        (reward,), (cost,) = scorer.score(scorer.encode(['1+2=' + text]))
        expected.append((reward - 0.5 * cost, reward, cost, text, ended))
    expected.sort(reverse=True)
    assert len(rows) == 6 and done.stdout == expected[0][3] + '\n'
    for (values, answer), (*scores, text, ended) in zip(rows, expected, strict=False):
        assert values[:3] == pytest.approx(scores, abs=6e-4) and answer == text + ('' if ended else ' ...')


def test_best_by_rewards_and_by_a_reward_model(folder, script):
    """From the catalogue, weighted; ties go to the likelier answer. A reward model alone needs no lambda."""
    out, err = script(
        '--checkpoint=answers.pt',
        '--prompt=1+2=',
        '--rewards=[("length", 0.5, {"min_length": 2}), "number_answer"]',
        '--reference=8',
        '--temperature=1.5',
    )
    rows, texts = table(err, ['score', 'length', 'number_answer', 'log-prob', 'tokens', 'completion']), sampled(folder, '1+2=', 8, 1.5)
    assert sorted(answer for _, answer in rows) == sorted(text + ('' if ended else ' ...') for text, ended in texts)
    for values, answer in rows:
        text = answer.removesuffix(' ...')
        assert (
            values[1:3] == [score('length', text, min_length=2), score('number_answer', text, reference='8')]
            and values[0] == 0.5 * values[1] + values[2]
        )
    assert [values[::3] for values, _ in rows] == sorted((values[::3] for values, _ in rows), reverse=True) and out == rows[0][
        1
    ].removesuffix(' ...') + '\n'
    out, err = script('--checkpoint=answers.pt', '--prompt=1+2=', '--reward_checkpoint=reward.pt', '--num_samples=3')
    scorer = TextScorer(str(folder / 'reward.pt'), '')
    best = max((text for text, _ in sampled(folder, '1+2=', 3)), key=lambda text: scorer.score(scorer.encode(['1+2=' + text]))[0][0])
    assert out == best + '\n' and len(table(err, ['score', 'log-prob', 'tokens', 'completion'])) == 3


def test_without_a_judge_the_likeliest_is_first(script):
    rows = table(
        script('--checkpoint=bytes', '--prompt=é', '--num_samples=4', '--max_new_tokens=8')[1], ['log-prob', 'tokens', 'completion']
    )
    assert [values[0] for values, _ in rows] == sorted((values[0] for values, _ in rows), reverse=True)


def test_fills_from_a_pipe_best_by_the_judge(folder):
    """Each fill once, the greedy one among them; the judge's score of each as if it came alone, the least machine-made first."""
    done = run(folder, '--checkpoint=fills.pt', '--num_samples=6', piped='ab□d□f\n')
    assert done.returncode == 0, done.stderr
    masked, rest = done.stderr.split('\n', 1)
    assert masked.startswith('masked: ab□d□f  (reward')
    rows, letters = table(rest, ['reward', 'log-prob', 'times', 'text']), CharTokenizer('abcdefgh')
    judge, batch = Judge.from_pretrained(str(folder / 'judge.pt'), letters), text_with_slots(letters, 'ab□d□f')
    for values, filled in rows:
        text = re.fullmatch(r'(ab[a-h]d[a-h]f)(  \(greedy\))?', filled)[1]
        alone = score_fills(judge, batch, torch.tensor([[letters.encode(text[2] + text[4])]])).item()
        assert values[0] == pytest.approx(1 - alone, abs=6e-4)
    assert (
        [values[0] for values, _ in rows] == sorted((values[0] for values, _ in rows), reverse=True)
        and sum(values[2] for values, _ in rows) == 6
        and sum('(greedy)' in filled for _, filled in rows) == 1
    )
    assert len({filled for _, filled in rows}) == len(rows) and done.stdout == rows[0][1][:6] + '\n'


def test_fills_otherwise(script, tmp_path):
    """Without its judge by log-prob; at temperature 0 the greedy one alone; slots at random."""
    saved = torch.load('fills.pt', weights_only=True)
    torch.save(saved | {'judge_checkpoint': 'gone.pt'}, tmp_path / 'alone.pt')
    rows = table(
        script(f'--checkpoint={tmp_path}/alone.pt', '--text=a?c?', '--mask_char=?')[1].split('\n', 1)[1], ['log-prob', 'times', 'text']
    )
    assert len(rows) > 1 and [values[0] for values, _ in rows] == sorted((values[0] for values, _ in rows), reverse=True)
    out, err = script('--checkpoint=fills.pt', '--text=a□c□', '--temperature=0')
    assert re.fullmatch(r'masked.*\nreward  log-prob  times  text\n *0\.\d{3} +-\d+\.\d{3} +0  a.c.  \(greedy\)\n', err) and re.fullmatch(
        'a.c.\n', out
    )
    assert script('--checkpoint=fills.pt', '--text=abcdefgh', '--mask_ratio=0.5')[1].split()[1].count('□') == 4


def test_explanations_from_a_pipe(folder, script):
    """
    Best first; each FVE is that of the critic's guess from this text alone. A text's last token and a file that holds its activation come
    to the same.
    """
    done = run(folder, '--checkpoint=nla.pt', '--num_samples=5', piped='12+34\n')
    assert done.returncode == 0, done.stderr
    rows = table(done.stderr, ['FVE', 'explanation'])
    source = truncate(GPT.from_pretrained(str(folder / 'answers.pt')), 1)
    with torch.no_grad():
        h = source(torch.tensor([TOKENIZER.encode('12+34')]))[0, -1]
        for (value,), shown in rows:  # the critic starts as the identity: it guesses the residual at the text's end
            text = TOKENIZER.encode(re.sub(r'(  \(greedy\))?( \.\.\.)?$', '', shown))
            guess = source(torch.tensor([text or [0]]))[0, -1]
            assert value == pytest.approx(1 - ((guess - h).square().sum() / h.square().sum()).item(), abs=6e-4)
    assert (
        len(rows) == 6
        and [v for v, _ in rows] == sorted((v for v, _ in rows), reverse=True)
        and re.sub(r'(  \(greedy\))?( \.\.\.)?$', '', rows[0][1]) + '\n' == done.stdout
    )
    np.save(folder / 'h.npy', torch.stack((h * 2, h)).numpy())
    assert script('--checkpoint=nla.pt', '--num_samples=5', '--activations=h.npy', '--row=1')[1] == done.stderr
    with pytest.raises(ValueError, match='row is 2 and h.npy has 2'):
        script('--checkpoint=nla.pt', '--activations=h.npy', '--row=2')


def test_stream_waits_for_whole_characters(folder, capsys):
    """The four bytes of 😀 one at a time, then half an é at the very end, which no further byte will complete."""
    tokenizer = load_tokenizer(str(folder / 'bytes'))
    stream, seen = talk.Stream(tokenizer), []
    for step, token in enumerate(tokenizer.encode('a😀€é')[:-1]):
        stream(step, None, torch.tensor([token]))
        seen.append(capsys.readouterr().out)
    assert seen == ['a', '', '', '', '😀', '', '', '€', '']
    assert stream.end() == 'a😀€\ufffd' and capsys.readouterr().out == '\ufffd\n'


@pytest.fixture
def chatting(folder, monkeypatch, capsys):
    """
    A conversation in which these lines are typed; each answer is the number of tokens of its prompt. Returns the prompts, as text, and
    (stdout, stderr).
    """
    tokenizer, prompts = load_tokenizer(str(folder / 'bytes')), []

    def answer(model, ids, group_size, max_new_tokens, *more):
        *_, on_token = more
        prompts.append(tokenizer.decode(ids[0]))
        for step, token in enumerate(tokenizer.encode(str(len(ids[0])))):
            on_token(step, None, torch.tensor([token]))
        if 'stop' in prompts[-1]:
            raise KeyboardInterrupt
        assert len(ids[0]) + max_new_tokens <= 64

    def talked(*lines, system_prompt='', max_new_tokens=16):
        typed = iter(lines)
        monkeypatch.setattr('builtins.input', lambda mark: next(typed))
        monkeypatch.setattr(talk, 'generate', answer)
        model = GPT(GPTConfig(block_size=64, vocab_size=257, n_layer=1, n_head=1, n_embd=8))
        talk.chat(CausalPolicy(model, tokenizer), settings(max_new_tokens, system_prompt))
        return prompts, capsys.readouterr()
    return talked


def test_a_conversation_forgets_its_beginning(chatting):
    """
    The oldest turns leave, two at a time, and never the system prompt; what is too long by itself is refused and forgotten. 64 tokens, 16
    of them for the answer.
    """
    prompts, (out, err) = chatting('hello', 'x' * 20, 'y' * 70, 'z' * 10, '', system_prompt='S')
    assert prompts == ['s:S|u:hello|a:', 's:S|u:hello|a:14|u:' + 'x' * 20 + '|a:', 's:S|u:' + 'x' * 20 + '|a:42|u:' + 'z' * 10 + '|a:']
    assert out == '14\n42\n47\n'
    assert err.splitlines()[1:] == ['error: the prompt has 79 tokens, and this model reads 64 with its answer: shorten it',
                                    '(this model reads 64 tokens: the first 2 messages are forgotten)']


def test_ctrl_c_ends_the_answer_and_not_the_conversation(chatting):
    prompts, (out, _) = chatting('stop', 'go', '')
    assert prompts == ['u:stop|a:'] + prompts[1:] and len(prompts) == 2 and prompts[1].startswith('u:stop|a:9|u:go') and out == '9\n18\n'


def test_at_a_terminal_it_chats(folder):
    """Through a pseudo-terminal: a question and its answer, then an empty line, which ends it."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / 'sample.py'), '--checkpoint=bytes', '--max_new_tokens=3', '--temperature=0'],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)

    def until(mark):
        seen = b''
        while mark not in seen:
            seen += os.read(ours, 1000)
        return seen.decode()

    assert 'an empty line ends the conversation' in until(b'> ')
    os.write(ours, b'hi\n')
    assert until(b'\n> ').startswith('hi')
    os.write(ours, b'\n')
    assert process.wait(60) == 0
    os.close(ours)


@pytest.mark.parametrize('end', [EOFError, KeyboardInterrupt])
def test_how_else_a_conversation_ends(folder, monkeypatch, end):
    """At the end of input and at Ctrl-C at the prompt, without a traceback."""
    def nobody(prompt):
        raise end
    monkeypatch.setattr('builtins.input', nobody)
    model = GPT.from_pretrained(str(folder / 'bytes')).eval()
    assert talk.chat(CausalPolicy(model, load_tokenizer(str(folder / 'bytes'))), settings(3)) is None


def test_a_reader_that_leaves(folder):
    """`sample.py | true`: no traceback, and a status that says it was not all read."""
    command = f'{sys.executable} {ROOT / "sample.py"} --checkpoint=answers.pt --prompt=1+2= | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240)
    assert (done.stdout, done.stderr) == ('1\n', '')


def test_what_is_refused(folder, script, tmp_path):
    """Each with one line that says what is wrong."""
    for name in ('config.json', 'model.safetensors'):
        (tmp_path / name).write_bytes((folder / 'bytes' / name).read_bytes())
    answers = ('--checkpoint=answers.pt', '--prompt=1+2=')
    for arguments, error, words in (
        (('--checkpoint=nowhere.pt',), FileNotFoundError, 'nowhere.pt'),
        (('--checkpoint=nowhere',), FileNotFoundError, "'nowhere'"),
        (('--checkpoint=answrs.pt',), FileNotFoundError, 'did you mean answers.pt'),
        (('--checkpoint=./bites/model.safetensors',), FileNotFoundError, 'did you mean bytes/model.safetensors'),
        ((f'--checkpoint={tmp_path}', '--prompt=a'), FileNotFoundError, 'tokenizer'),
        ((*answers, '--device=cuda:99'), ValueError, "'cuda:99', which torch cannot use here"),
        ((*answers, '--device=gpu'), ValueError, "'gpu', which torch cannot use here"),
        ((*answers, '--precision=fp64'), ValueError, "'fp64'"),
        ((*answers, '--num_samples=0'), ValueError, 'num_samples is 0; it must be at least 1'),
        ((*answers, '--rewards=number_answer'), ValueError, "'number_answer' does not apply.*reference"),
        ((*answers, '--rewards=number_anser'), ValueError, "did you mean 'number_answer'"),
        ((*answers, '--reward_checkpoint=cost.pt'), ValueError, 'cost.pt holds a cost'),
        ((*answers, '--reward_checkpoint=reward.pt', '--scorer_template={prompt}'), ValueError, 'response'),
        (('--checkpoint=answers.pt', '--prompt=' + '1' * 24), ValueError, '24 tokens, and this model reads 24'),
        (('--checkpoint=answers.pt', '--text=1'), ValueError, '--prompt'),
        (('--checkpoint=answers.pt', '--prompt=x'), ValueError, "'x' at position 0"),
        (('--checkpoint=answers.pt',), ValueError, 'no prompt.*--prompt='),
        (('--checkpoint=fills.pt',), ValueError, 'no text.*--text='),
        (('--checkpoint=fills.pt', '--prompt=a'), ValueError, '--text'),
        (('--checkpoint=fills.pt', '--text=abc'), ValueError, 'no slot'),
        (('--checkpoint=fills.pt', '--text=a□', '--judge_checkpoint=none.pt'), FileNotFoundError, 'none.pt'),
        (('--checkpoint=fills.pt', '--text=' + 'a_' * 9), ValueError, '18 characters.*reads 16'),
        (('--checkpoint=nla.pt',), ValueError, 'no text'),
        (('--checkpoint=reward.pt',), ValueError, 'holds a reward'),
    ):
        with pytest.raises(error, match=words) as raised:
            script(*arguments)
        assert '\n' not in str(raised.value)
