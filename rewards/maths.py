"""Is the answer the reference's, and do the equations on the way hold? All numbers are exact."""
import re
from fractions import Fraction

from rewards.answers import is_right, past, plainer
from rewards.notation import Reader
from rewards.numerals import tokenize
from rewards.reward import reward
from rewards.values import Unreadable, exact


@reward(binary=True)
def math_correctness(text, *, reference):
    """1 when the text's answer is the reference's, which may be a solution that ends in one (`#### 42`)."""
    right = is_right(text, reference)
    return None if right is None else float(right)


# ---- equations

EQUAL = re.compile('=')


def equations_in(text):
    """[(equation, is it true, perhaps rounded)] of each `a + b = c` and the like that is about numbers."""
    equations = []
    for line in filter(EQUAL.search, text.split('\n')):
        tokens, at, left = tokenize(plainer(line).replace('$', '')), 0, None
        while at < len(tokens):
            reader = Reader(tokens, at)
            try:
                value = reader.span()
            except (Unreadable, RecursionError):
                at, left = past(tokens, at, reader.at), None
                continue
            shown, number = reader.shown(at), exact(value) and not reader.letters
            if left and number:
                equations.append((f'{left[1]}={shown}', is_near(left[0], value, shown)))
            calculated = number and sum(token.kind == 'number' for token in tokens[at:reader.at]) > 1
            at = reader.at
            left = (value, shown) if reader.take('=') and (calculated or left) else None
            at = max(reader.at, at + 1)
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
