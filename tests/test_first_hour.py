"""What newcomers stumbled over: commands that are recommended, names of what is not there yet, too little data, chat prompts."""
import types

import numpy as np
import pytest
import torch

import nla
from formats.tokenizer import CharTokenizer
from formats.weights import local_folder
from runtime import console
from tasks.alignment import Alignment
from tasks.fill_in import FillIn, text_with_slots
from tasks.nla import NLA
from tasks.task import say_if_few


def bare(task, **attributes):
    """A job without its data and models."""
    job = task.__new__(task)
    vars(job).update(attributes)
    return job


def test_a_slot_has_a_sign_that_the_text_has_not():
    for chars, sign in (('ab_', '□'), ('a□', '▯'), ('□▯', '▢')):
        tokenizer = CharTokenizer(chars)
        assert tokenizer.decode([0, tokenizer.mask_id]) == chars[0] + sign and sign not in chars
    letters = CharTokenizer('ab_')
    assert text_with_slots(letters, 'a_□b□')['slots'].tolist() == [[2, 4]]  # an underscore is a character like others
    assert text_with_slots(letters, 'a?b', '?')['slots'].tolist() == [[1]]
    with pytest.raises(ValueError, match="no slot: mark some with '□' .--mask_char="):
        text_with_slots(letters, 'a_b')


def test_what_is_not_there_yet(tmp_path, monkeypatch):
    """A run's export before it has trained is no name on the hub; of a run's folder what is in it is recommended."""
    monkeypatch.chdir(tmp_path)
    for name in ('out-arithmetic-grpo/export', 'out/adapter', 'runs/7/export'):
        with pytest.raises(FileNotFoundError, match=f'^there is no {name}: a run makes it at its end, so train it first$'):
            local_folder(name)
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / 'ckpt.pt').write_bytes(b'')
    with pytest.raises(ValueError, match='out is the folder of a run: name out/ckpt.pt$'):
        local_folder('out')
    (tmp_path / 'out' / 'export').mkdir()
    with pytest.raises(ValueError, match='out is the folder of a run: name out/export$'):
        local_folder('out')


@pytest.mark.parametrize('steps, more', [(1, []), (4, ['--unmask_steps=4'])])
def test_try_a_fill_in(steps, more):
    job = bare(FillIn, cfg=types.SimpleNamespace(unmask_steps=steps), tokenizer=CharTokenizer('ab'))
    job.eval_batch = {'original': torch.tensor([[0, 1, 1]])}
    assert job.try_out() == ('ckpt.pt', ['--text=abb', '--mask_ratio=0.3', *more])


def test_try_an_autoencoder():
    """Own vectors, also with texts, are of another width than the model's: their file is named. Of its own activations a text is."""
    job = bare(NLA, activations_path='mine.npy', tokenizer=CharTokenizer('ab'))
    vectors = np.zeros((1, 2), dtype=np.float32)
    for held_out, wanted in (
        (nla.Activations(vectors), ['--activations=mine.npy', '--row=0']),
        (nla.Activations(vectors, texts=[[0, 1]]), ['--activations=mine.npy', '--row=0']),
        (nla.Activations(vectors, contexts=np.array([[1, 0]])), ['--text=ba']),
    ):
        job.held_out = held_out
        assert job.try_out() == ('nla.pt', wanted)


@pytest.mark.parametrize('n, said', [(100, ''), (99, '±0.10'), (25, '±0.20'), (1, '±1.00'), (0, '±1.00')])
def test_what_few_prompts_are_worth(monkeypatch, capsys, n, said):
    """Two standard errors of a share of one half: 2 sqrt(1/4 / n) = 1 / sqrt(n)."""
    monkeypatch.setattr(console, 'quiet', False)
    say_if_few(n, 'held-out prompts')
    note = f'note: {n} held-out prompts are few: a share measured on them is known to {said} at best\n'
    assert capsys.readouterr().out == (note if said else '')


@pytest.mark.parametrize('key, joined', [
    ('prompt', 'be brief\n\nhi+yes'),      # score models made here read texts, as their pairs are
    ('text', '<be brief><hi>+yes')])       # a service of somebody's gets what the policy reads
def test_chat_prompts_are_scored(key, joined):
    def score(texts):
        asked.extend(texts)
        return [1.0] * len(texts), [0.0] * len(texts)

    asked, messages = [], [{'role': 'system', 'content': 'be brief'}, {'role': 'user', 'content': 'hi'}]
    job = bare(Alignment, client=types.SimpleNamespace(score=score), join=lambda prompt, response: f'{prompt}+{response}')
    job.prompt_key = key
    job.ask([['yes']], [{'prompt': messages, 'text': '<be brief><hi>'}])
    assert asked == [joined]
