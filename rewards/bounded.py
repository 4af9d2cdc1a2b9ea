"""Expressions compared by math-verify, in a process that is kept: see formats/kept.py."""
import functools
import re

from formats.kept import Kept
from formats.optional import optional
from rewards.reward import shorten

# It reads LaTeX alone: math-verify runs plain expressions.
SETUP = '''
from math_verify import LatexExtractionConfig, parse, verify
from sympy import I

def read(text):
    if '\\\\pm' in text:  # both of them
        text = ', '.join(text.rpartition('=')[2].replace('\\\\pm', sign) for sign in '+-')
    found = parse(f'${text}$', [LatexExtractionConfig()], extraction_mode='first_match', parsing_timeout=None)
    for x in found:
        names = getattr(x, 'free_symbols', ())
        yield x.subs({name: I for name in names if name.name == 'i'}) if names else x

def answer(*texts):
    wanted, got = (list(read(text)) for text in texts)
    options = dict(float_rounding=12, allow_set_relation_comp=True, timeout_seconds=None)
    return bool(wanted and got and verify(wanted, got, **options))
'''
CHILD = Kept(SETUP, seconds=2, memory=4 << 30)
# Powers of powers, exponents and factorials of many digits do not end, and no answer is written so.
ENDLESS = re.compile(r'\^\s*\{[^{}]*\^|\^\s*\w\s*\^|\^\s*\{?\s*-?[0-9]{4,}|[0-9]{3,}\s*!|!\s*\)\s*!')


@functools.lru_cache(maxsize=65536)
def equal_in_latex(wanted, got):
    """Do they mean the same? False where that cannot be said in time. Raises ImportError."""
    if not 0 < len(got) <= 300 or ENDLESS.search(got):
        return False
    optional('math_verify', f"to compare {shorten(wanted)} takes the package: pip install math-verify")
    try:
        return CHILD.ask(wanted, got)
    except (ValueError, TimeoutError):
        return False
