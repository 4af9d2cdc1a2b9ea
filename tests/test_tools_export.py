"""tools/export.py: what a run exports at its end, of any checkpoint; transformers and peft as the oracles."""
import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from model import GPT
from runtime.checkpoint import load_checkpoint, save_checkpoint, tokenizer_of
from runtime.lora import merge_lora, quantize_int8
from test_train_grpo import refused, run, until
from tools import export
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
SMALL = ['--n_layer=1', '--n_head=2', '--n_embd=16', '--batch_size=4', '--group_size=4', '--eval_show=0', '--log_interval=1',
         '--save_interval=1', '--keep_checkpoints=5', '--device=cpu', '--precision=fp32', '--max_iters=2', '--learning_rate=1e-2']
SUMS = [*SMALL, '--task=completion', '--dataset=sums.jsonl', '--block_size=16', '--max_new_tokens=4', '--pretrain_iters=30',
        '--eval_prompts_n=10', '--generator_checkpoint=start.pt']


def made(*names, **options):
    """What main does with a command line."""
    export.main([str(name) for name in names], types.SimpleNamespace(**{'base': '', 'hub': '', 'private': True, **options}))


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob('*') if path.is_file())


def same_files(ours, theirs):
    """Byte for byte."""
    names = files(ours)
    assert names == files(theirs) and names
    assert filecmp.cmpfiles(ours, theirs, names, shallow=False) == (names, [], [])


def write_sums(folder):
    lines = [json.dumps({'prompt': f'{a}+{b}=', 'answer': str(a + b)}) + '\n' for a in range(9) for b in range(9)]
    (folder / 'sums.jsonl').write_text(''.join(lines))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run that trained all weights, in out, and LoRA runs of the same start: of fp32, int8."""
    folder = tmp_path_factory.mktemp('sums')
    lines = [json.dumps({'prompt': f'{a}+{b}=', 'answer': str(a + b)}) + '\n' for a in range(9) for b in range(9)]
    (folder / 'sums.jsonl').write_text(''.join(lines))
    for more in (['--out_dir=out'], ['--out_dir=lora', '--lora_r=2'], ['--out_dir=int8', '--lora_r=2', '--load_in_8bit=True']):
        done = run(folder, *SUMS, *more)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def sums(folder, monkeypatch):
    """The tests go on where the runs ran: a LoRA run's start is found from there."""
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize('out', ('out', 'lora', 'int8'))
def test_a_runs_export_is_that_of_its_last_checkpoint(sums, out, tmp_path):
    made(f'{out}/ckpt.pt', tmp_path / 'a')
    assert (out == 'out') == ('adapter' not in os.listdir(tmp_path / 'a'))
    if out != 'out':
        same_files(sums / out / 'adapter', tmp_path / 'a' / 'adapter')
        shutil.rmtree(tmp_path / 'a' / 'adapter')
    same_files(sums / out / 'export', tmp_path / 'a')
    made(out, tmp_path / 'b')  # the newest of an out_dir
    assert filecmp.cmp(tmp_path / 'a' / 'model.safetensors', tmp_path / 'b' / 'model.safetensors', shallow=False)


def test_int8_exports_what_was_sampled_from(sums):
    """The merged model is the adapters on the rounded base; the adapter for peft belongs to the base as it is in its file."""
    merged, plain = (GPT.from_pretrained(path) for path in ('int8/export', 'int8/adapter'))
    base, rounded = GPT.from_pretrained('start.pt'), GPT.from_pretrained('start.pt')
    quantize_int8(rounded)
    merge_lora(rounded)
    for name, weight in merged.state_dict().items():
        learned = plain.state_dict()[name] - base.state_dict()[name]
        torch.testing.assert_close(weight, rounded.state_dict()[name] + learned, atol=1e-6, rtol=0)
    assert not torch.equal(rounded.blocks[0].attn.qkv.weight, base.blocks[0].attn.qkv.weight)


def test_every_checkpoint_of_a_run(sums, tmp_path):
    """ckpt_best.pt, an older one, and the start itself; transformers computes what the checkpoint holds, the tokenizer is beside it."""
    transformers = pytest.importorskip('transformers')
    tokens = torch.arange(16).view(2, 8)
    for i, name in enumerate(('out/ckpt_best.pt', 'out/ckpt_000001.pt', 'start.pt', 'lora/ckpt_000001.pt')):
        made(name, tmp_path / str(i))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / str(i)).eval()
        ours = GPT.from_pretrained(name).eval()
        torch.testing.assert_close(ours.logits(tokens), theirs(tokens).logits, atol=1e-5, rtol=0)
        assert tokenizer_of(str(tmp_path / str(i))).chars == tokenizer_of('start.pt').chars


def test_a_damaged_checkpoint_gives_way_to_an_older_one(sums, tmp_path, capsys):
    shutil.copytree(sums / 'out', tmp_path / 'out')
    (tmp_path / 'out' / 'ckpt.pt').write_bytes(b'PK\3\4 torn')
    made(tmp_path / 'out', tmp_path / 'best')
    assert 'out/ckpt_000001.pt instead, iteration 1' in capsys.readouterr().out
    assert os.path.exists(tmp_path / 'best' / 'model.safetensors')


def test_what_is_refused(sums, tmp_path, monkeypatch):
    """Each with one line, and nothing is left behind."""
    saved = load_checkpoint('out/ckpt_best.pt', 'run')
    monkeypatch.chdir(tmp_path)
    save_checkpoint('later.pt', saved | {'config': saved['config'] | {'task': 'telepathy'}})
    save_checkpoint('wide.pt', saved | {'model_config': saved['model_config'] | {'experts': 8}})
    save_checkpoint('empty.pt', {'kind': 'run', 'model_config': saved['model_config'], 'chars': saved['chars']})
    save_checkpoint('bare.pt', {'kind': 'run'})
    save_checkpoint('judge.pt', {'kind': 'judge'})
    save_checkpoint('nla.pt', {key: saved[key] for key in ('kind', 'model', 'model_config')} | {'nla': {}})
    save_checkpoint('fill.pt', saved | {'config': saved['config'] | {'task': 'fill_in'}, 'model': {}})
    open('text.pt', 'w').write('no checkpoint')
    os.mkdir('full')
    open('full/note.txt', 'w').write('mine')
    for name, folder, message in (
            ('nowhere.pt', 'new', 'no checkpoint at nowhere.pt'), ('full', 'new', 'no checkpoint at full'),
            ('text.pt', 'new', 'text.pt cannot be read as a checkpoint'), ('later.pt', 'new', "later.pt is of task 'telepathy'"),
            ('wide.pt', 'new', 'wide.pt.*experts'), ('empty.pt', 'new', "empty.pt has no dict 'model'"),
            ('bare.pt', 'new', "bare.pt has no dict 'model_config'"), ('judge.pt', 'new', 'holds a judge checkpoint; it must be run'),
            ('nla.pt', 'new', "nla.pt has no dict 'critic'"), ('fill.pt', 'new', 'fill.pt: n_layer is 1, but the file holds 0'),
            (sums / 'out', 'full', 'full is there and not empty'), (sums / 'out', 'text.pt', 'text.pt is there')):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            made(name, folder)
    with pytest.raises(ValueError, match='it takes two names, .*; given: 1'):
        made('later.pt')
    assert not os.path.exists('new')


def test_adapters_need_their_base(sums, tmp_path, monkeypatch):
    """Gone: one line, and --base says where it is now. Another one: refused, for nobody trained these adapters on it."""
    shutil.copytree('lora', tmp_path / 'lora')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="lora/ckpt.pt holds adapters alone, and their base is gone: .*start.pt"):
        made('lora', 'new')
    made('lora', 'new', base=str(sums / 'start.pt'))
    assert filecmp.cmp('new/model.safetensors', sums / 'lora' / 'export' / 'model.safetensors', shallow=False)
    shutil.copy(sums / 'out' / 'ckpt.pt', 'start.pt')
    with pytest.raises(ValueError, match='start.pt is not the one this run started from'):
        made('lora', 'other')


def test_an_interrupted_lora_run_says_how_to_use_it(sums, tmp_path):
    """The command that it prints, word by word; an unknown option of it is one line."""
    for name in ('sums.jsonl', 'start.pt'):
        shutil.copy(name, tmp_path)
    status, printed = until(tmp_path, 'iter 2: reward', signal.SIGINT, *SUMS, '--lora_r=2', '--max_iters=4000', '--out_dir=half')
    assert status == 0
    where, python, *command = printed[printed.index('To export the model as it is now:\n'):].splitlines()[1].split()
    assert (where, python) == (f'PYTHONPATH={ROOT}', 'python') and command[:3] == ['-m', 'tools.export', 'half/ckpt.pt']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([PYTHON, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {'config.json', 'model.safetensors', 'adapter'} <= set(os.listdir(tmp_path / command[-1]))
    refused(subprocess.run([PYTHON, *command, '--hubb=a'], cwd=tmp_path, env=env, capture_output=True, text=True), "'hubb'", "'hub'")


NLA = [str(ROOT / 'config' / 'nla.py'), '--activations_n=200', '--warm_start_iters=5', '--critic_start_iters=5', '--eval_prompts_n=20',
       '--max_new_tokens=8', '--activation_layer=1', '--activation_context=8', '--critic_warmup_iters=0']


@pytest.mark.parametrize('out, own, arguments', (
    ('fill', 'fill_in.pt', ['--dataset=toy.txt', '--block_size=20', '--judge_iters=5', '--eval_prompts_n=8', '--n_layer=1']),
    ('nla', 'nla.pt', NLA), pytest.param('nla', 'nla.pt', [*NLA, '--lora_r=2'], marks=pytest.mark.slow),
    pytest.param('safe', 'export', [str(ROOT / 'config' / 'alignment.py'), '--score_iters=5', '--eval_prompts_n=8'],
                 marks=pytest.mark.slow)))
def test_the_other_jobs(out, own, arguments, tmp_path, monkeypatch):
    """From nothing: what a run leaves is what the tool makes of its last checkpoint, and sample.py takes both."""
    (tmp_path / 'toy.txt').write_text('the cat sat on the mat and the dog sat on the log; a man saw the cat and the dog. ' * 60)
    short = ['--pretrain_iters=10', '--batch_size=4', '--group_size=4', '--max_iters=2', '--eval_show=0']
    small = ['--n_layer=2', '--n_head=2', '--n_embd=16', '--device=cpu', '--precision=fp32', f'--out_dir={out}']
    done = run(tmp_path, *arguments, *small, *short)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr
    monkeypatch.chdir(tmp_path)
    made(out, 'new')
    if own == 'export':
        same_files('safe/export', 'new')
        return
    assert files('new') == [own] and filecmp.cmp(f'{out}/{own}', f'new/{own}', shallow=False)
    asked = ['--text=the cat'] + ['--mask_ratio=0.5'] * (out == 'fill')
    for name in (f'new/{own}', f'{out}/ckpt.pt'):
        told = run(tmp_path, f'--checkpoint={name}', *asked, script='sample.py')
        assert told.returncode == 0 and ('reward' if out == 'fill' else '(greedy)') in told.stderr, told.stderr
    if out == 'nla':
        assert load_checkpoint('new/nla.pt', 'nla')['quality'].keys() == {'fve', 'fve_greedy'}


class Hub:
    """A stand-in for huggingface_hub.HfApi."""
    calls = []

    def create_repo(self, name, private, exist_ok):
        self.calls.append((name, private))
        return types.SimpleNamespace(repo_id=f'me/{name}')

    def upload_folder(self, repo_id, folder_path):
        self.calls.append((repo_id, sorted(os.listdir(folder_path))))


def test_the_hub(sums, tmp_path, monkeypatch, capsys):
    """Private unless told otherwise; without the package, or the hub, the folder is there and one line says so."""
    monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(HfApi=Hub))
    made('out', tmp_path / 'a', hub='mine')
    assert Hub.calls == [('mine', True), ('me/mine', sorted(os.listdir(tmp_path / 'a')))]
    assert 'huggingface.co/me/mine' in capsys.readouterr().out
    monkeypatch.setattr(Hub, 'create_repo', lambda *_, **__: 1 / 0)
    with pytest.raises(ConnectionError, match="hub did not take 'mine': division by zero"):
        made('out', tmp_path / 'b', hub='mine')
    assert os.path.exists(tmp_path / 'b' / 'model.safetensors')
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError, match='pip install huggingface_hub'):
        made('out', tmp_path / 'c', hub='mine')
