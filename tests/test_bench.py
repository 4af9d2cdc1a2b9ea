"""tools/bench.py: its command line. Its gates against TRL are in test_trl.py."""
import subprocess
import sys
from pathlib import Path

from tools import bench


def test_unknown_names_print_the_usage():
    root = Path(bench.__file__).parent.parent
    done = subprocess.run([sys.executable, '-m', 'tools.bench', 'nothing'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1 and 'sample' in done.stderr
