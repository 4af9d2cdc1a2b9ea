"""
The values that answers have, and when two are the same: exact numbers (Fraction), numbers with roots or pi in
them (float, complex), Groups, Relations. Letters stand for numbers, so expressions are compared by their
values at a few points. Sizes are bounded: what is too large raises Unreadable.
"""
import cmath
import math
import operator
import random
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

POINTS = 3              # where expressions are compared; at the last one letters are negative
LARGEST_BITS = 40_000   # of an exact number


class Unreadable(ValueError):
    """This is no mathematics, or more than is read here."""


class Group(NamedTuple):
    """Several values. kind: brackets, as '(]', in order; 'list' without; ':' a ratio, '-' a span."""
    kind: str
    items: tuple


class Relation(NamedTuple):
    """a = b or a < b: its sign, the larger side less the smaller, what it says of a name (x = 4: 4)."""
    sign: str
    difference: object
    last: object
    named: bool


class Reading(NamedTuple):
    """The value of a text at each of POINTS, the units and signs in it, and where its tokens end."""
    values: tuple
    units: tuple
    percent: bool
    letters: bool
    end: int


@lru_cache(maxsize=4096)
def value_of_letter(name, point):
    value = Fraction(random.Random(f'{name} {point}').randint(1009, 9973), 4001)
    return -value if point == POINTS - 1 else value


# ---- arithmetic

def exact(value):
    return isinstance(value, Fraction)


def calculate(operation, a, b):
    """Exact where both are. Raises Unreadable for what is no number, has no value or too long a one."""
    if not (isinstance(a, (Fraction, float, complex)) and isinstance(b, (Fraction, float, complex))):
        raise Unreadable
    if not (exact(a) and exact(b)):
        a, b = (float(x) if exact(x) else x for x in (a, b))
    try:
        return bounded(operation(a, b))
    except (ArithmeticError, ValueError):
        raise Unreadable from None


def bounded(value):
    if exact(value) and value.numerator.bit_length() + value.denominator.bit_length() > LARGEST_BITS:
        raise Unreadable
    return value


def whole(value, low, high):
    """An exact whole number within limits, as an int. Raises Unreadable."""
    if not exact(value) or value.denominator != 1 or not low <= value <= high:
        raise Unreadable
    return int(value)


def power(a, b):
    """a to the b. Roots of exact numbers are exact where they can be."""
    if not (exact(a) and exact(b)):
        return calculate(operator.pow, a, b)
    if b.denominator == 1:
        bits = max(a.numerator.bit_length(), a.denominator.bit_length())
        if bits * abs(b) > LARGEST_BITS and abs(a) > 1 or a == 0 and b < 0:
            raise Unreadable
        return a ** int(b) if abs(b) < LARGEST_BITS else calculate(operator.pow, float(a), b)
    base = exact_root(a, b.denominator)
    return calculate(operator.pow, a, b) if base is None else power(base, Fraction(b.numerator))


def exact_root(value, n):
    """The n-th root where it is a fraction, else None."""
    if value < 0 and n % 2 == 0 or n > 60:
        return None
    roots = []
    for part in (abs(value.numerator), value.denominator):
        near = math.isqrt(part) if n == 2 else round(2 ** (math.log2(part or 1) / n)) * bool(part)
        if near ** n != part:
            return None
        roots.append(near)
    return Fraction(*roots) * (-1 if value < 0 else 1)


def factorial(n):
    return bounded(Fraction(math.factorial(whole(n, 0, 4000))))


def binomial(n, k):
    n = whole(n, 0, 2000)
    return Fraction(math.comb(n, whole(k, 0, n)))


def negative(value):
    if isinstance(value, Group):
        return Group(value.kind, tuple(map(negative, value.items)))
    return calculate(operator.mul, Fraction(-1), value)


def logarithm(value, base):
    result = calculate(operator.truediv, apply(cmath.log, value), apply(cmath.log, base))
    near = Fraction(round(result.real)) if abs(result) < 1000 else None
    if near is not None and exact(base) and exact(value) and power(base, near) == value:
        return near
    return result


def apply(function, value):
    """A function of complex numbers."""
    try:
        result = function(complex(calculate(operator.add, value, 0.0)))
        return result if result.imag else result.real
    except (ArithmeticError, ValueError):
        raise Unreadable from None


FUNCTIONS = {name: getattr(cmath, name) for name in 'sin cos tan sinh cosh tanh exp'.split()}
FUNCTIONS |= {'ln': cmath.log, 'log': cmath.log10, 'lg': cmath.log10, 'arcsin': cmath.asin,
              'arccos': cmath.acos, 'arctan': cmath.atan,
              'sec': lambda x: 1 / cmath.cos(x), 'csc': lambda x: 1 / cmath.sin(x),
              'cot': lambda x: 1 / cmath.tan(x)}


# ---- relations

MIRRORED = {'<': '>', '>': '<', '<=': '>=', '>=': '<='}
INTERVALS = {'<': '()', '>': '()', '<=': '(]', '>=': '[)'}


def related(sides, signs, names):
    """The value of a chain of relations. names: which sides are names (x, f(x))."""
    if '~' in signs and not (signs[0] == '~' and names[0]):     # an exact value and its approximation
        first = signs.index('~')
        sides, signs = sides[:first + 1], signs[:first]
    if not signs:
        return sides[0]
    if set(signs) <= {'=', '~', 'in'}:
        if signs[-1] == 'in' or isinstance(sides[0], Group) or isinstance(sides[-1], Group):
            return sides[-1]
        return Relation('=', calculate(operator.sub, sides[0], sides[-1]), sides[-1], names[0])
    if len(sides) == 2 and names[1] and not names[0] and signs[0] in MIRRORED:
        return related(sides[::-1], [MIRRORED[signs[0]]], names[::-1])
    if len(sides) == 2 and signs[0] == '!=':
        return Group('!=', (sides[1] if names[0] else calculate(operator.sub, *sides),))
    if len(sides) == 2:
        lower, upper = sides if signs[0][0] == '<' else sides[::-1]
        ends = (-math.inf, sides[1]) if signs[0][0] == '<' else (sides[1], math.inf)
        interval = Group(INTERVALS[signs[0]], ends)
        return Relation('<' + signs[0][1:], calculate(operator.sub, upper, lower), interval, names[0])
    if names[1] and len(sides) == 3 and {sign[0] for sign in signs} == {'>'}:
        sides, signs = sides[::-1], [MIRRORED[sign] for sign in signs[::-1]]
    if names[1] and len(sides) == 3 and {sign[0] for sign in signs} == {'<'}:
        return Group('([' [signs[0] == '<='] + ')]' [signs[1] == '<='], (sides[0], sides[2]))
    return Group(' '.join(signs), tuple(sides))


# ---- comparing

def same_reading(wanted, got):
    """Does the answer's Reading mean the reference's?"""
    a, b, letters = wanted.values, got.values, wanted.letters or got.letters
    if not same_units(wanted.units, got.units):
        return False
    if isinstance(a[0], Relation) and isinstance(b[0], Relation) and proportional(a, b):
        return True
    if unnamed(a[0]) or unnamed(b[0]) and b[0].sign != '=':
        return False
    where = POINTS - 1 if letters and complex in (type(a[-1]),
                                                  type(b[-1])) else POINTS     # roots of negative letters
    if all(same_value(x, y, letters) for x, y in zip(a[:where], b[:where], strict=True)):
        return True
    one_percent = wanted.percent != got.percent and not got.units      # the question may name the unit
    if one_percent and exact(a[0]) and exact(b[0]):
        x, y = a[0] * (100 if wanted.percent else 1), b[0] * (100 if got.percent else 1)
        return x == y and abs(x) >= 1
    return False


def unnamed(value):
    return isinstance(value, Relation) and not value.named


def same_units(wanted, got):
    """Either may leave its units out; but a number's base may only the answer."""
    if any(unit.startswith('base') for unit in got) and wanted != got:
        return False
    return not wanted or not got or set(wanted) == set(got) or '°' in {*wanted, *got}


def proportional(a, b):
    """Are two relations, each at all points, one but for a factor?"""
    differences = [x.difference for x in (*a, *b)]
    if a[0].sign != b[0].sign or any(isinstance(x, Group) for x in differences) or 0 in differences:
        return False
    ratios = [calculate(operator.truediv, x.difference, y.difference) for x, y in zip(a, b, strict=True)]
    return all(same_number(x, y, True) for x,
               y in pairwise(ratios)) and (a[0].sign == '=' or ratios[0].real > 0)


def same_value(a, b, letters=False):
    a, b = (x.last if isinstance(x, Relation) else x for x in (a, b))
    if isinstance(a, Group) and isinstance(b, Group):
        return same_group(a, b, letters)
    if not isinstance(a, Group) and not isinstance(b, Group):
        return same_number(a, b, letters)
    group, number = (a, b) if isinstance(a, Group) else (b, a)
    if group.kind == ':' and len(group.items) == 2:
        return calculate(operator.truediv, *group.items) == number
    several_forms = group.kind in ('list', '[]') and group.items      # 1/2, that is 0.5
    return bool(several_forms) and all(same_value(x, number, letters) for x in group.items)


def same_number(a, b, letters):
    """Exactly; or nearly, where a root or pi is in one of them and no decimals stand in the other."""
    if exact(a) and exact(b) or math.inf in (abs(a), abs(b)):
        return a == b
    if not letters and any(exact(x) and x.denominator > 1000 for x in (a, b)):
        return False
    return abs(calculate(operator.sub, a, b)) <= 1e-9 * max(abs(a), abs(b))


def same_group(a, b, letters):
    kinds = {a.kind, b.kind}
    if kinds == {'list'}:
        a, b = distinct(a.items, letters), distinct(b.items, letters)
        return len(a) == len(b) and all(among(x, b, letters) for x in a)
    if len(a.items) != len(b.items):
        return False
    pairs = list(zip(a.items, b.items, strict=True))
    if ':' in kinds and kinds <= {':', '-', 'time'}:
        return all(x * b.items[0] == y * a.items[0] for x, y in pairs)
    alike = len(kinds) == 1 or 'list' in kinds and kinds <= {'list', '()', '[]'}
    return alike and all(same_value(x, y, letters) for x, y in pairs)


def among(value, items, letters):
    return any(same_value(value, item, letters) for item in items)


def distinct(items, letters):
    """The different items of a list and of lists in it."""
    flat, kept = [], []
    for item in items:
        flat += item.items if isinstance(item, Group) and item.kind == 'list' else [item]
    for item in flat[:50]:
        if not among(item, kept, letters):
            kept.append(item)
    return kept
