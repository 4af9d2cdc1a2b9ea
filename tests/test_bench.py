"""tools/bench.py times two ways only after their gradients agree; here the gate, at toy size."""
import subprocess
import sys
from pathlib import Path

from tools import bench


def test_fill_in_runs_and_its_gate_holds(monkeypatch, capsys):
    monkeypatch.setattr(bench, 'ROUNDS', 1)
    bench.fill_in(P=2, T=16)
    printed = capsys.readouterr().out
    assert printed.count('times straightforward') == 2 and printed.count('gradients equal to') == 2


def test_unknown_names_print_the_usage():
    root = Path(bench.__file__).parent.parent
    done = subprocess.run([sys.executable, '-m', 'tools.bench', 'nothing'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and 'fill_in' in done.stderr
