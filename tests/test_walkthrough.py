"""docs/walkthrough.md is what docs/walkthrough.py writes today; the script itself stops where a worked number is not the code's."""
import math
import os
import re
import subprocess
from pathlib import Path

import pytest

from warm import PYTHON

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r'[-+]?\d(?:[\d,]*\d)?(?:\.\d+)?(?:e[-+]?\d+)?')


def as_lines(text):
    """[(words, numbers)] of each line; a line of a table of tensors is all words: names, shapes, types and meanings are exact."""
    return [(line, []) if line.startswith('| `') else (NUMBER.sub('#', line), NUMBER.findall(line)) for line in text.splitlines()]


def differences(old, new):
    """
    The lines in which two pages differ. Whole numbers are to be equal, others to 1 %, or to what their last digit says: other processors
    round otherwise.
    """

    def near(a, b):
        x, y = (float(n.replace(',', '')) for n in (a, b))
        last_digit = 10.0 ** (int((a.partition('e')[2]) or 0) - len(a.partition('e')[0].partition('.')[2]))
        return a == b if a.lstrip('+-').replace(',', '').isdigit() else math.isclose(x, y, rel_tol=0.01, abs_tol=1.5 * last_digit)

    old, new = as_lines(old), as_lines(new)
    found = [(a, b) for a, b in zip(old, new, strict=False) if a[0] != b[0] or not all(map(near, a[1], b[1]))]
    return found + [('a page is longer', len(old), len(new))] * (len(old) != len(new))


def test_the_page_is_what_the_code_does(tmp_path):
    done = subprocess.run(
        [PYTHON, str(ROOT / 'docs' / 'walkthrough.py'), str(tmp_path / 'page.md')],
        cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (ROOT / 'docs' / 'walkthrough.md').read_text()
    assert not (found := differences(page, (tmp_path / 'page.md').read_text())), (
        f"run python docs/walkthrough.py, and read what has become of it: {found[:3]}"
    )
    assert page.count('\n| `') >= 19 and {'(256, 8, 4)', '(256, 8)', '(1, 8, 4, 64)'} <= set(
        re.findall(r'\([\d, ]+\)', page)
    )  # all the tensors are there


@pytest.mark.parametrize(
    'old, new, same',
    [
        ('| `x` | (2, 3) | (P, G) |', '| `x` | (2, 4) | (P, G) |', False),
        ('| `x` | (2, 3) | float32 | rewards |', '| `x` | (2, 3) | float32 | prizes |', False),
        ('7,088 tokens', '7,089 tokens', False),
        ('7,088 tokens', '7,088 tokens', True),
        ('ids [1, 2]', 'ids [1, 3]', False),
        ('loss -0.0002285', 'loss -0.0002284', True),
        ('loss -0.0002285', 'loss -0.0002385', False),
        ('ratio 0.993', 'ratio 0.994', True),
        ('ratio 0.993', 'ratio 1.093', False),
        ('6.366e-05', '6.367e-05', True),
        ('6.366e-05', '6.366e-04', False),
        ('+0.018', '-0.018', False),
        ('a\nb', 'a', False),
    ],
)
def test_what_counts_as_a_difference(old, new, same):
    assert (not differences(old, new)) == same
