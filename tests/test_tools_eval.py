"""tools/eval.py: means and standard errors by hand, and what a run's own evaluation says."""
import json
import os
import re
import shutil
import statistics
import subprocess
import types

import pytest
import torch

from runtime import console
from test_tools_export import ROOT, SUMS
from test_train_grpo import refused, run
from tools import eval as evaluation
from warm import PYTHON


@pytest.fixture
def ask(monkeypatch, capsys):
    """ask(folder, name, ..., setting=...) -> the table that main prints there, {row: {model: cell}}"""
    monkeypatch.setattr(console, 'quiet', False)

    def table(folder, *names, **settings):
        monkeypatch.chdir(folder)
        unset = dict.fromkeys(('rewards', 'eval_samples', 'max_new_tokens', 'temperature', 'chat_template', 'device'))
        evaluation.main(names, types.SimpleNamespace(**unset | {'prompts': '', 'config': '', **settings}))
        lines = [re.split(r'  +', line) for line in capsys.readouterr().out.splitlines()]
        return {row: dict(zip(lines[0][1:], cells, strict=True)) for row, *cells in lines[1:]}

    return table


def test_numbers_by_hand():
    """
    Three prompts of 1, 0, .5: mean .5, standard deviation .5, error .5 / sqrt 3 = .289. The second model has 1, .5, .5: differences 0, .5,
    0, mean .167, deviation .289, error .167. A prompt that a reward does not judge is left out.
    """
    first, second = torch.tensor([1, 0, 0.5]).double(), torch.tensor([1, 0.5, 0.5]).double()
    assert evaluation.cell(first, first) == '0.500 ± 0.289'
    assert evaluation.cell(second, first) == '0.667 ± 0.167 (+0.167 ± 0.167)'
    assert statistics.stdev([0, 0.5, 0]) / 3 ** 0.5 == pytest.approx(1 / 6)
    unjudged = torch.tensor([1, torch.nan, 0]).double()
    assert evaluation.cell(unjudged, first) == '0.500 ± 0.500 (-0.250 ± 0.250)'
    one = torch.tensor([0.25]).double()
    assert evaluation.cell(one, one) == '0.250' and evaluation.cell(None, one) == '' and evaluation.cell(one, None) == '0.250'
    with pytest.raises(ValueError, match='of 3 prompts one model reads 1'):
        evaluation.cell(one, first)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two rewards, one of them a function of a config; all weights, and LoRA."""
    folder = tmp_path_factory.mktemp('eval')
    lines = [json.dumps({'prompt': f'{a}+{b}=', 'answer': str(a + b)}) + '\n' for a in range(9) for b in range(9)]
    (folder / 'sums.jsonl').write_text(''.join(lines))
    short = 'def short(text, **_):\n    return 1 / (1 + len(text))\n\n'
    (folder / 'two.py').write_text(short + 'rewards = [("number_answer", 0.75), (short, 0.25)]\n')
    for more in (['--out_dir=out'], ['--out_dir=lora', '--lora_r=2']):
        done = run(folder, 'two.py', *[argument for argument in SUMS if 'generator' not in argument], *more)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_run_and_its_own_evaluation(folder, ask):
    """start, a checkpoint, an out_dir, an export: the run's metrics say the same, and so does the same model under another name."""
    models = ('start', 'out/ckpt_best.pt', 'out', 'out/export', 'lora', 'lora/export')
    rows = ask(folder, *models, config='two.py')
    metrics = [json.loads(line) for line in open(folder / 'out' / 'metrics.jsonl')]
    for it, model in ((0, 'start'), (2, 'out'), (2, 'out/export')):
        for row, name in (('number_answer, greedy', 'accuracy_greedy'), ('number_answer, sampled', 'accuracy_sampled'),
                          ('all, weighted, sampled', 'reward')):
            assert rows[row][model].startswith(f"{metrics[it][f'eval/{name}']:.3f} ± "), (row, model)
    assert list(rows) == [f'{name}, {kind}' for kind in ('greedy', 'sampled')
                          for name in ('number_answer', 'short', 'all, weighted', 'tokens')]
    for cells in rows.values():
        assert '(' not in cells['start'] and cells['out'] == cells['out/export'] and cells['lora'] == cells['lora/export']
        assert re.fullmatch(r'\d+\.\d{3} ± \d+\.\d{3} \([+-]\d+\.\d{3} ± \d+\.\d{3}\)', cells['out'])


def test_other_prompts_and_folders_of_no_run(folder, tmp_path, ask):
    """--prompts: all of a file, and the start is still found; a folder that is no run's needs prompts and rewards, and nothing else."""
    (tmp_path / 'few.jsonl').write_text('{"prompt": "1+1=", "answer": "2"}\n{"prompt": "2+2=", "answer": "4"}\n')
    rows = ask(folder, 'start', 'lora/adapter', prompts=str(tmp_path / 'few.jsonl'), rewards='exact_answer', eval_samples=2)
    assert list(rows)[0] == 'exact_answer, greedy'
    shutil.copytree(folder / 'out' / 'export', tmp_path / 'hf')
    rows = ask(tmp_path, 'hf', prompts='few.jsonl', rewards='exact_answer', max_new_tokens=3)
    assert list(rows['tokens, greedy']) == ['hf']
    with pytest.raises(ValueError, match='none of hf lies in a run.* give --prompts and --rewards'):
        ask(tmp_path, 'hf')


def test_what_is_refused(folder, ask):
    for names, settings, message in (
            (('start', 'out'), {}, "'short' is not in the catalogue; .*--config="), (('out', 'no.pt'), {}, 'no checkpoint at no.pt'),
            (('out', 'nowhere'), {}, "no file or folder 'nowhere'"), ((), {}, 'each once'), (('out', 'out'), {}, 'each once'),
            (('out',), {'rewards': 'number_anser'}, 'number_anser')):
        config = {} if 'start' in names else {'config': 'two.py'}
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ask(folder, *names, **config | settings)
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([PYTHON, '-m', 'tools.eval', 'out', '--promts=a'], cwd=folder, env=env, capture_output=True, text=True)
    refused(done, "'promts'", "'prompts'")


def test_another_job_shows_its_own_measures(tmp_path, ask):
    """Fill-in from nothing: the run's evaluation of its last checkpoint; a judge that is gone is not trained again."""
    (tmp_path / 'toy.txt').write_text('the cat sat on the mat and the dog sat on the log; a man saw the cat and the dog. ' * 60)
    done = run(tmp_path, '--dataset=toy.txt', '--block_size=20', '--judge_iters=5', '--eval_prompts_n=8', '--n_layer=1', '--n_head=2',
               '--n_embd=16', '--pretrain_iters=10', '--batch_size=4', '--max_iters=2', '--eval_show=0', '--device=cpu', '--precision=fp32')
    assert done.returncode == 0, done.stderr
    rows = ask(tmp_path, 'start', 'out-grpo', 'out-grpo/fill_in.pt')
    last = json.loads(open(tmp_path / 'out-grpo' / 'metrics.jsonl').readlines()[-1])
    for name in ('eval/judge_reward', 'eval/exact_match_greedy'):
        assert rows[name]['out-grpo'].startswith(f'{last[name]:.3f} (') and rows[name]['out-grpo'] == rows[name]['out-grpo/fill_in.pt']
    os.remove(tmp_path / 'out-toy.txt' / 'judge_gold.pt')
    with pytest.raises(FileNotFoundError, match='judge_gold.pt, which the run made, is gone'):
        ask(tmp_path, 'out-grpo')


def test_models_of_runs_that_share_no_prompts(tmp_path):
    """Causal runs answer the same prompts, whatever their task; those of other jobs are named before anything is loaded."""
    for task in ('completion', 'alignment', 'fill_in', 'nla'):
        (tmp_path / task).mkdir()
        settings = {'task': task, 'train_prompts': None, 'dataset': 'shop', 'generator_checkpoint': 'out-{dataset}/g.pt'}
        (tmp_path / task / 'config.json').write_text(json.dumps(settings))
    folder = {path.name: str(path) for path in tmp_path.iterdir()}
    assert evaluation.settings_of(['start', folder['alignment'], folder['completion']])['generator_checkpoint'] == 'out-shop/g.pt'
    for one, other in (('completion', 'fill_in'), ('nla', 'alignment'), ('fill_in', 'nla')):
        with pytest.raises(ValueError, match=f'runs of {one} and {other} cannot be asked the same'):
            evaluation.settings_of([folder[one], folder[other] + '/ckpt.pt'])
