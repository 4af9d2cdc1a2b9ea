"""config/sources: the settings of five other programs, each run at toy size; what they set is what their documents say."""
import json
import os
import subprocess
from pathlib import Path

import pytest

from test_config import same_excepthook, train_grpo  # noqa: F401
from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
TINY = ('--n_layer=1 --n_head=2 --n_embd=16 --pretrain_iters=3 --batch_size=2 --group_size=2 --max_iters=1 --eval_prompts_n=4 '
        '--eval_show=0 --quiet').split()
SOURCES = {
    'nla': ['--activations_n=40', '--warm_start_iters=2', '--critic_start_iters=2', '--block_size=48', '--max_new_tokens=8'],
    'relax': ['--block_size=16', '--max_new_tokens=4', '--minibatch_size=1'],
    'alignment': ['--score_iters=3', '--max_new_tokens=4', '--kl_beta=0.15', '--seed=3'],
    'fill_in': ['--judge_iters=3', '--block_size=16'],
    'neural_mirror': ['--block_size=32', '--max_prompt_length=16', '--max_new_tokens=4'],
}
def config_of(name):
    return str(ROOT / 'config' / 'sources' / f'{name}.py')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('sources')


@pytest.mark.parametrize('name', SOURCES)
def test_it_runs(name, folder):
    done = subprocess.run([PYTHON, str(ROOT / 'train_grpo.py'), config_of(name), *TINY, *SOURCES[name]], cwd=folder,
                          env=os.environ | {'OMP_NUM_THREADS': '1'}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    if name == 'alignment':
        made = 'out-source-alignment/beta0.15_seed3_unified'
        assert json.loads((folder / made / 'config.json').read_text())['out_dir'] == made


@pytest.mark.parametrize('name, settings', [
    ('nla', dict(group_size=4, advantage='grpo', critic_learning_rate=5e-5, critic_train_epochs=1, gamma=1.0, injection_token='<INJECT>',
                 injection_mode='replace', injection_layers=(0,), batch_size=64)),
    ('relax', dict(batch_size=256, group_size=4, max_new_tokens=512, temperature=0.8, max_iters=1000, num_epochs_per_rollout=2,
                   minibatch_size=64, kl_beta=0.1, learning_rate=1e-5, grad_clip=1.0, reference_mode='static', ema_alpha=0.99,
                   reference_update_freq=500)),
    ('alignment', dict(group_size=30, max_iters=500, lambda_cost=1.0, lambda_adapt=True, cost_threshold_d=0.0, lambda_lr=0.005,
                       lambda_min=1e-4, lambda_max=5.0, jc_ema_beta=0.9, lambda_positive_only=True)),
    ('fill_in', dict(group_size=8, kl_beta=0.1, learning_rate=1e-5, temperature=0.8, top_p=0.95, wandb_project='grpo', out_dir='out-grpo',
                     generator_checkpoint='out-char-diffusion/checkpoint.pt', judge_checkpoint='out-char-diffusion/judge.pt')),
    ('neural_mirror', dict(divergence='neural_mirror', mirror_coefficient=1e-4, mirror_init_scale=0.01, mirror_seed=42, group_size=32,
                           max_iters=1600, max_prompt_length=768, max_new_tokens=256, temperature=0.8, top_p=0.9, lora_r=64,
                           lora_alpha=64.0, lora_dropout=0.05, warmup_iters=10, weight_decay=0.0, grad_clip=1.0, learning_rate=1e-5,
                           train_prompts_n=1000))])
def test_its_numbers(name, settings):
    """What the document of that source names as its defaults."""
    cfg = vars(train_grpo(config_of(name)))
    assert {key: cfg[key] for key in settings} == settings


def test_the_four_betas():
    names = {}
    exec((ROOT / 'config' / 'sources' / 'betas.py').read_text(), names)
    assert list(names['arms'].values()) == [['--kl_beta=0.01'], ['--kl_beta=0.05'], ['--kl_beta=0.1'], ['--kl_beta=0.15']]
    assert (ROOT / names['base']).is_file()
