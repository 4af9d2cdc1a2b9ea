"""tools/bench.py: its command line. Its gates against TRL are in test_trl.py."""
import subprocess
import sys
from pathlib import Path

import torch

from tools import bench


def test_unknown_names_print_the_usage():
    root = Path(bench.__file__).parent.parent
    done = subprocess.run([sys.executable, '-m', 'tools.bench', 'nothing'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and 'sample' in done.stderr


def test_without_a_gpu_it_says_what_it_would_do(monkeypatch, capsys, tmp_path):
    """A line for each part; nothing is written."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    bench.gpu(tmp_path / 'gpu.md')
    first, *parts = capsys.readouterr().out.splitlines()
    assert 'none' in first and [line.strip() for line in parts] == [part.__doc__ for part in (bench.correct, bench.head, bench.jobs)]
    assert not (tmp_path / 'gpu.md').exists()


def test_what_is_measured_becomes_the_page_s_last_part(monkeypatch, tmp_path):
    """On a CPU at a toy size: the head's two ways, their memory, and what was there before."""
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a card')
    monkeypatch.setattr(bench, 'TOLD', [])
    page = tmp_path / 'gpu.md'
    page.write_text('# On a GPU\n\n## measured\n\nNothing yet.\n')

    def head(device):
        """the head"""
        bench.head(device, [(64, 8, 97), (32, 8, 33)])

    bench.gpu(page, 'cpu', [head])
    kept, _, measured = page.read_text().partition('## measured\n')
    assert kept == '# On a GPU\n\n' and 'Nothing yet' not in measured
    card, what, *lines = measured.strip().strip('`').strip().splitlines()
    assert card.startswith('a card, torch') and what == 'the head'
    assert len(lines) == 6 and 'peak' in lines[0] and 'N 64, D 8, V 97: ours' in lines[1] and 'times torch' in lines[2]
