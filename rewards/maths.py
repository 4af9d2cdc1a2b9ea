"""Is the answer the reference's, and do the equations on the way hold? All numbers are exact."""
from fractions import Fraction
from itertools import pairwise

from rewards.answers import is_right, plainer
from rewards.numerals import tokenize
from rewards.reward import reward
from rewards.values import SEPARATORS, latex, number_or_expression, spans, split


@reward(binary=True)
def math_correctness(text, *, reference):
    """1 when the text's answer is the reference's, which may be a solution that ends in one (`#### 42`)."""
    right = is_right(text, reference)
    return None if right is None else float(right)


def equations_in(text):
    """[(equation, is it true, perhaps rounded)] of each `a + b = c` and the like that is about numbers."""
    equations = []
    for line in filter(lambda line: '=' in line, text.split('\n')):
        line = plainer(line)
        pieces = [tokenize(line[start:end]) for start, end in spans(line)]
        for part in [part for piece in pieces for part in split(piece, SEPARATORS)]:
            sides, calculated = split(part, ('=',)), False
            for left, right in pairwise(sides):
                calculated |= sum(token.kind == 'number' for token in left) > 1
                values = [number_or_expression(side).number for side in (left, right)]
                if calculated and None not in values and ':' not in latex(left):      # it is no time of day
                    shown = latex(right)
                    equations.append((f'{latex(left)}={shown}', is_near(*values, shown)))
    return equations


def is_near(value, rounded, shown):
    """Is it the number shown, or that rounded to its decimals?"""
    _, point, decimals = shown.partition('.')
    error = abs(value - rounded)
    return error <= (Fraction(1, 2 * 10 ** len(decimals)) if point and decimals.isdecimal() else 0)


@reward()
def math_reasoning(text, *, reference):
    """0.7 for the right answer (math_correctness), 0.3 for the share of different equations that are true."""
    right = math_correctness(text, reference=reference)
    if right is None:
        return None
    steps = dict(equations_in(text)).values()
    return 0.7 * right + (0.3 * sum(steps) / len(steps) if steps else 0.0)
