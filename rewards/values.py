r"""
What a short piece of text is, read as mathematics: an exact number, an expression, a list, a point, an interval,
an equation. LaTeX and plain notation are one grammar. Letters stand for numbers drawn once for each of POINTS, so
that two expressions are compared by their values there. Nothing that is read is run, and sizes are bounded.
"""
import cmath
import math
import operator
import random
import re
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from rewards.numerals import PARTS, SCALES, UNITS, tokenize

POINTS = 3            # places at which expressions are compared; the last one is negative
LARGEST_BITS = 40_000   # of an exact number; what has more is compared as text
DEEPEST = 40            # brackets within brackets


class Unreadable(ValueError):
    """This is no mathematics, or more than is read here."""


# ---- values: a Fraction, float or complex; or a Group of them

class Group(NamedTuple):
    """Several values. kind: '()' and other brackets in order, 'list' without order, ':' a ratio, '-' a span."""
    kind: str
    items: tuple


def exact(value):
    return isinstance(value, Fraction)


def plain(value):
    """The number that a value is; raises Unreadable for groups."""
    if isinstance(value, Group):
        raise Unreadable
    return value


def bounded(value):
    size = value.numerator.bit_length() + value.denominator.bit_length() if exact(value) else 0
    if size > LARGEST_BITS:
        raise Unreadable
    return value


def calculate(operation, a, b):
    """a operation b, exact where both are. Raises Unreadable for what has no value or too long a one."""
    a, b = plain(a), plain(b)
    if not (exact(a) and exact(b)):
        a, b = (float(x) if exact(x) else x for x in (a, b))
    try:
        return bounded(operation(a, b))
    except (ArithmeticError, ValueError):
        raise Unreadable from None


def root(value, n):
    """The exact n-th root of a Fraction, or None."""
    parts = []
    for part in (abs(value.numerator), value.denominator):
        try:
            near = math.isqrt(part) if n == 2 else round(part ** (1 / n))
        except OverflowError:
            return None
        if near ** n != part:
            return None
        parts.append(near)
    return Fraction(*parts) if value >= 0 else None if n % 2 == 0 else -Fraction(*parts)


def power(a, b):
    a, b = plain(a), plain(b)
    if exact(a) and exact(b):
        if b.denominator == 1:
            size = max(a.numerator.bit_length(), a.denominator.bit_length())
            if size * abs(b) > LARGEST_BITS and abs(a) not in (0, 1):
                raise Unreadable
            return bounded(a ** b.numerator) if a or b >= 0 else unreadable()
        if b.denominator <= 12 and abs(b) < 100 and (whole := root(a, b.denominator)) is not None:
            return power(whole, Fraction(b.numerator))
    return calculate(operator.pow, a, b)


def unreadable():
    raise Unreadable


def factorial(n):
    if not exact(n) or n.denominator != 1 or not 0 <= n <= 4000:
        raise Unreadable
    return bounded(Fraction(math.factorial(int(n))))


def of_one(function, inverse=None):
    """A function of a number, by floats; exact at 0."""
    def apply(x):
        x = plain(x)
        try:
            return function(complex(x) if isinstance(x, complex) or x < 0 else float(x))
        except (ArithmeticError, ValueError):
            raise Unreadable from None
    return apply


FUNCTIONS = {name: of_one(getattr(cmath, name)) for name in 'sin cos tan sinh cosh tanh exp'.split()}
FUNCTIONS |= {name: of_one(function) for name, function in {
    'ln': cmath.log, 'log': cmath.log10, 'lg': cmath.log10, 'arcsin': cmath.asin, 'arccos': cmath.acos,
    'arctan': cmath.atan, 'sec': lambda x: 1 / cmath.cos(x), 'csc': lambda x: 1 / cmath.sin(x),
    'cot': lambda x: 1 / cmath.tan(x)}.items()}
CONSTANTS = {'\\pi': math.pi, 'π': math.pi, 'pi': math.pi, 'e': math.e, 'i': 1j, '\\infty': math.inf, '∞': math.inf,
             'infinity': math.inf, '\\emptyset': Group('list', ()), '\\varnothing': Group('list', ()), '∅': Group('list', ())}
RELATIONS = {'=': '=', ':=': '=', '\\equiv': '=', '≈': '~', '\\approx': '~', '≃': '~', '<': '<', '>': '>', '\\lt': '<', '\\gt': '>',
             '<=': '<=', '>=': '>=', '≤': '<=', '≥': '>=', '\\le': '<=', '\\ge': '>=', '\\leq': '<=',
             '\\geq': '>=', '\\leqslant': '<=', '\\geqslant': '>=', '!=': '!=', '≠': '!=', '\\ne': '!=', '\\neq': '!=',
             '\\in': 'in', '∈': 'in'}
JOINTS = {',', ';', 'and', 'or', '\\cup', '∪', '\\lor', '\\land', '&'}
MIRRORED = {'<': '>', '>': '<', '<=': '>=', '>=': '<='}
TIMES = {'*', '\\cdot', '\\times', '×', '·', '⋅', '∙'}
OVER = {'/', '÷', '\\div', '⁄'}
CURRENCIES = tuple('＄€£¥₹')
CLOSES = {'(': ')', '[': ']', '\\{': '\\}', '{': '}', '|': '|'}
NAMED = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]+)['′]?(?:_(?:\w|\{\w+\}))?(?:\([\w,]*\))?|\((?:[A-Za-z],)+[A-Za-z]\)")


@lru_cache(maxsize=4096)
def value_of_letter(name, point):
    value = Fraction(random.Random(f'{name} {point}').randint(1009, 9973), 4001)
    return -value if point == POINTS - 1 else value


# ---- reading

class Reader:
    """Reads tokens from a place on, at one point: a list of relations of sums of products of powers."""

    def __init__(self, tokens, at=0, point=0):
        self.tokens, self.at, self.point, self.depth = tokens, at, point, 0
        self.units, self.percent, self.letters = [], False, False

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at].text if at < len(self.tokens) else ''

    def kind(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at].kind if at < len(self.tokens) else ''

    def take(self, *wanted):
        """Is the next token one of these? Then it is passed."""
        found = self.peek() in wanted and self.at < len(self.tokens)
        self.at += found
        return found

    def expect(self, text):
        if not self.take(text):
            raise Unreadable

    # ---- lists and relations

    def listing(self):
        """Items joined by commas, 'and', 'or': a Group, or the only item."""
        items = [self.relation()]
        while self.peek() in JOINTS:
            start = self.at
            while self.take(*JOINTS):   # ', and'
                pass
            try:
                items.append(self.relation())
            except Unreadable:
                if self.depth:
                    raise
                self.at = start
                break
        if len(items) == 1:
            return items[0]
        return Group('list', tuple(items))

    def relation(self):
        """A sum, or what a chain of relations says: x = 4 is 4, x < 3 the interval (-inf, 3)."""
        start = self.at
        if self.peek() in RELATIONS and RELATIONS[self.peek()] in '=~':     # "= 18"
            self.at += 1
            start = self.at
        sides, signs, names = [self.span()], [], [self.name(start)]
        while self.peek() in RELATIONS:
            signs.append(RELATIONS[self.peek()])
            self.at, start = self.at + 1, self.at + 1
            sides.append(self.span())
            names.append(self.name(start))
        if not signs:
            return sides[0]
        return related(sides, signs, names)

    def name(self, start):
        return bool(NAMED.fullmatch(''.join(token.text for token in self.tokens[start:self.at])))

    def span(self):
        """A sum, a ratio 3:2, or a span 3-5, 3 to 5."""
        first = self.sum()
        items = [first]
        while self.peek() == ':' and self.kind(1) in ('number', 'command', 'word') and not self.tokens[self.at].space:
            self.at += 1
            items.append(self.sum())
        if len(items) > 1:
            shown = self.tokens[self.at - 1].text
            timely = len(shown) == 2 and shown.isdecimal() and len(items) < 4
            return Group('time' if timely else ':', tuple(map(plain, items)))
        if self.peek() == 'to' and self.kind(1) == 'number':
            self.at += 1
            return Group('-', (first, self.sum()))
        return first

    # ---- sums and products

    def sum(self):
        both = False
        sign = 1
        while self.peek() in ('+', '-', '\\pm', '±'):
            both |= self.peek() in ('\\pm', '±')
            sign = -sign if self.peek() == '-' else sign
            self.at += 1
        total = self.product()
        if sign < 0:
            total = negative(total)
        if both:
            total = Group('list', (total, negative(total)))
        while self.peek() in ('+', '-', '\\pm', '±') and self.peek(1):
            sign, start = self.peek(), self.at
            if sign == '-' and self.is_span():
                self.at += 1
                return Group('-', (total, self.product()))
            self.at += 1
            try:
                term = self.product()
            except Unreadable:
                if self.depth or sign != '-':
                    raise
                self.at = start    # a dash
                break
            if sign in ('\\pm', '±'):
                total = Group('list', (calculate(operator.add, total, term), calculate(operator.sub, total, term)))
            else:
                total = calculate(operator.add if sign == '+' else operator.sub, total, term)
        return total

    def is_span(self):
        """Is the minus in 10-15 a dash? Between two bare whole numbers, without space, where nothing else is."""
        before, after = self.tokens[self.at - 1], self.tokens[self.at + 1]
        further = self.peek(2)
        lone = self.at < 2 or self.tokens[self.at - 2].kind in ('word', 'name') or self.tokens[self.at - 2].space
        whole = before.text.isdecimal() and after.text.isdecimal() and not after.space and not self.tokens[self.at].space
        return whole and lone and not (further in RELATIONS or further in TIMES or further in OVER or further in ('+', '-', '^'))

    def product(self):
        value = self.mixed(self.factor())
        while True:
            if self.take(*TIMES):
                value = calculate(operator.mul, value, self.factor())
            elif self.take(*OVER):
                value = calculate(operator.truediv, value, self.factor())
            elif self.unit():
                if self.kind() == 'number' and self.units[-1] and len(self.tokens[self.at].text) < 4:
                    more = self.product()      # 3 feet 6 inches
                    return Group('list', (value, *(more.items if isinstance(more, Group) else (more,))))
            elif self.juxtaposed():
                value = calculate(operator.mul, value, self.factor())
            else:
                return value

    def juxtaposed(self):
        """Does a factor follow without a sign? Never a number behind a number, nor a word."""
        text, kind = self.peek(), self.kind()
        if kind == 'word':
            near = not self.tokens[self.at].space
            letters = text.isascii() and (len(text) == 1 and text not in 'aI' or len(text) < 4 and near)
            return letters and text.lower() not in ('or', 'to', 'is') or text in FUNCTIONS or text in ('sqrt', 'pi')
        if kind == 'command':
            return text[1:] in FUNCTIONS or text in STARTS or text in CONSTANTS
        return text in ('(', 'π', '√', '∞') or text == '{' and self.kind(1) == 'number'

    def mixed(self, value):
        """A whole number with a fraction below 1 behind it: 2 1/2, 2\\frac{1}{2}, 2 and 3/4."""
        before = self.tokens[self.at - 1]
        if before.kind != 'number' or not exact(value) or value.denominator != 1:
            return value
        start = self.at
        joined = self.take('and')
        if joined and self.peek() in ('a', 'half'):
            self.take('a')
            if self.peek() in PARTS:
                self.at += 1
                return value + Fraction(1, PARTS[self.tokens[self.at - 1].text])
            if self.kind() == 'number' and self.tokens[self.at].value == Fraction(1, 2):
                self.at += 1
                return value + Fraction(1, 2)
        elif self.kind() == 'number' and self.peek(1) in OVER and self.kind(2) == 'number':
            top, bottom = self.tokens[self.at].value, self.tokens[self.at + 2].value
            if top < bottom and not top % 1:
                self.at += 3
                return value + top / bottom
            if not joined:
                raise Unreadable
        elif self.peek() in FRACTIONS and not joined:
            part = self.factor()
            if exact(part) and 0 < part < 1:
                return value + part
            raise Unreadable
        self.at = start
        return value

    def factor(self):
        """A base with what stands behind it: powers, factorials, percent."""
        if self.peek() in ('+', '-'):
            return self.factor() if self.take('+') else negative(self.take('-') and self.factor())
        value = self.base()
        while True:
            if self.take('^', '**'):
                if self.take('\\circ', '°', '{\\circ}'):
                    self.units.append('°')
                    continue
                if self.tokens[self.at:self.at + 3] and ''.join(t.text for t in self.tokens[self.at:self.at + 3]) == '{\\circ}':
                    self.at += 3
                    self.degree()
                    continue
                value = power(value, self.argument())
            elif self.take('!'):
                value = factorial(value)
            elif self.take('%', '\\%') or self.peek().lower() in ('percent', 'pct', 'percentage') and self.skip():
                self.percent = True
                value = calculate(operator.truediv, value, Fraction(100))
            elif self.take('‰'):
                value = calculate(operator.truediv, value, Fraction(1000))
            elif self.peek() in SCALES and (len(self.peek()) > 1 or not self.tokens[self.at].space) and exact(value):
                value *= SCALES[self.peek()]
                self.at += 1
            elif self.peek() == 'out' and self.peek(1) == 'of' and self.kind(2) == 'number':
                self.at += 2
                value = calculate(operator.truediv, value, self.base())
            elif self.peek() in PARTS and self.tokens[self.at - 1].kind == 'number' and exact(value):
                value /= PARTS[self.peek()]
                self.at += 1
            elif self.take('°', '\\degree', '\\circ'):
                self.degree()
            else:
                return value

    def degree(self):
        scale = self.peek() if self.peek() in ('C', 'F') else ''
        self.at += bool(scale)
        self.units.append('°' + scale)

    def skip(self):
        self.at += 1
        return True

    def argument(self):
        """What stands behind ^, \\frac or \\sqrt without braces is one digit or symbol, with braces all within."""
        if self.take('{'):
            return self.inside('}')
        if self.peek() in ('+', '-'):
            return negative(self.argument()) if self.take('-') else self.take('+') and self.argument()
        token = self.tokens[self.at] if self.at < len(self.tokens) else unreadable()
        if token.kind == 'number' and self.peek(-1)[:1] == '\\' and len(token.text) > 1 and token.text.isdecimal():
            first, rest = token.text[0], token.text[1:]      # \frac34
            self.tokens = [*self.tokens[:self.at], token._replace(text=first, value=Fraction(first)),
                           token._replace(text=rest, value=Fraction(rest), space=False), *self.tokens[self.at + 1:]]
        return self.base()

    def inside(self, closing):
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        value = self.listing()
        if self.take('\\over'):
            value = calculate(operator.truediv, value, self.listing())
        self.expect(closing)
        self.depth -= 1
        return value

    def base(self):
        """A number, a letter, brackets, or a command with its arguments."""
        if self.at >= len(self.tokens):
            raise Unreadable
        token = self.tokens[self.at]
        self.at += 1
        text, kind = token.text, token.kind
        if kind == 'number':
            return self.number(token)
        if text in CLOSES:
            return self.brackets(text)
        if text in CURRENCIES:
            self.units.append(text)
            return self.factor()
        if text in FRACTIONS:
            top, bottom = self.argument(), self.argument()
            if text == '\\binom':
                return binomial(top, bottom)
            return calculate(operator.truediv, top, bottom)
        if text in ('\\sqrt', 'sqrt', '√'):
            return self.root()
        if text.lstrip('\\') in FUNCTIONS and (kind in ('command', 'word')):
            return self.function(text.lstrip('\\'))
        if text == '\\begin':
            return self.matrix()
        return self.symbol(token)

    def number(self, token):
        if self.peek() == '_' and self.kind(1) == 'number' or self.peek() == '_' and self.peek(1) == '{':
            self.at += 1
            self.units.append(f'base {self.argument()}')
        elif self.peek().lower() in ('st', 'nd', 'rd', 'th') and not self.tokens[self.at].space:
            self.at += 1
            if self.peek() == 'century':
                raise Unreadable
        elif self.peek() == 's' and not self.tokens[self.at].space and len(token.text) == 4:    # the 1960s
            raise Unreadable
        return token.value

    def root(self):
        degree = Fraction(2)
        if self.take('['):
            degree = self.inside(']')
        value = plain(self.argument())
        if not exact(degree) or degree.denominator != 1 or not 1 <= degree < 100:
            raise Unreadable
        if exact(value) and (whole := root(value, int(degree))) is not None:
            return whole
        return power(value, 1 / degree)

    def function(self, name):
        exponent, base = Fraction(1), None
        if self.take('_'):
            base = self.argument()
        if self.take('^'):
            exponent = self.argument()
        if self.take('('):
            argument = self.inside(')')
        else:
            argument = self.factor()
            while self.juxtaposed() and self.peek().lstrip('\\') not in FUNCTIONS:
                argument = calculate(operator.mul, argument, self.factor())
        if name == 'log' and base is not None:
            return logarithm(plain(argument), plain(base))
        return power(FUNCTIONS[name](argument), exponent)

    def brackets(self, opening):
        """(a) is a; (a, b), [a, b) and {a, b} are Groups."""
        if opening == '|':
            self.depth += 1
            value = abs(plain(self.sum()))
            self.expect('|')
            self.depth -= 1
            return value
        start = self.at
        if opening == '\\{' and self.take('\\}'):
            return Group('list', ())
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        value = self.listing()
        if self.take('\\over'):
            value = calculate(operator.truediv, value, self.listing())
        self.depth -= 1
        closing = self.peek()
        self.at += 1
        if closing not in (')', ']', '\\}', '}') or opening in ('{', '\\{') and closing != CLOSES[opening]:
            raise Unreadable
        if isinstance(value, Group) and value.kind == 'list' and opening in '([' and ',' in self.joined(start):
            return Group(opening + closing, value.items)
        if opening == '\\{' and not isinstance(value, Group):
            return Group('list', (value,))
        if opening + closing in ('()', '{}', '\\{\\}') or isinstance(value, Group) and opening + closing == '[]':
            return value
        if opening == '[':
            return Group('[]', (value,))
        raise Unreadable

    def joined(self, start):
        return ''.join(token.text for token in self.tokens[start:self.at])

    def matrix(self):
        self.expect('{')
        name = self.peek()
        self.at += 1
        self.expect('}')
        if name == 'array' and self.take('{'):
            while self.peek() and not self.take('}'):
                self.at += 1
        if name not in ('array', 'pmatrix', 'bmatrix', 'matrix', 'vmatrix', 'smallmatrix', 'Bmatrix'):
            raise Unreadable
        rows, row = [], []
        self.depth += 1
        while True:
            row.append(self.sum())
            if self.take('&'):
                continue
            rows.append(Group('[]', tuple(row)))
            row = []
            self.take('\\\\')
            if self.take('\\end'):
                break
        self.depth -= 1
        for wanted in ('{', name, '}'):
            self.expect(wanted)
        return Group('[]', tuple(rows))

    def symbol(self, token):
        """A letter or constant. Words of several letters are products of letters where they touch a number."""
        text = token.text
        if text in ('\\left', '\\right', '\\end') or token.kind == 'name':
            raise Unreadable
        if text in CONSTANTS and not (text in 'ei' and self.peek() == '_'):
            return CONSTANTS[text]
        if token.kind == 'command' and text not in STARTS or token.kind == 'mark':
            raise Unreadable
        if token.kind == 'word' and len(text) > 1 and (len(text) > 3 or token.space and self.peek() not in tuple('^_+*/=(')):
            raise Unreadable
        self.letters = True
        names = [text] if token.kind == 'command' else list(text)
        if self.take('_'):
            names[-1] += str(self.subscript())
        if self.take("'", '′'):
            names[-1] += "'"
        if names[-1][0] in 'fghPpF' and self.peek() == '(' and not self.tokens[self.at].space:
            self.at += 1
            argument = self.inside(')')
            return value_of_letter(f'{names[-1]}({argument})', self.point)
        value = Fraction(1)
        for name in names:
            value = calculate(operator.mul, value, CONSTANTS.get(name, value_of_letter(name, self.point)))
        return value

    def subscript(self):
        start = self.at
        if self.take('{'):
            while self.peek() and not self.take('}'):
                self.at += 1
        else:
            self.at += 1
        return self.joined(start)

    # ---- units

    def unit(self):
        """Pass the words behind a number; a known unit is kept."""
        start, word = self.at, self.peek()
        if self.kind() == 'word' and (word in UNITS or word.lower() in UNITS):
            if len(word) == 1 and (self.peek(1) in ('+', '-', '*', '=', '(') or self.peek(1) == '/' and self.kind(2) != 'word'):
                return False
            self.at += 1
            self.units.append(UNITS.get(word) or UNITS[word.lower()])
            while self.per():
                pass
        elif self.kind() == 'mark' and word in UNITS:
            self.at += 1
            self.units.append(UNITS[word])
        return self.at > start

    def per(self):
        """The rest of a unit: ^2, /h, s^{-1}."""
        start = self.at
        if self.take('^'):
            try:
                self.units[-1:] = [f'{self.units[-1]}^{self.argument()}'] if self.units else []
            except Unreadable:
                self.at = start
        elif self.peek() in ('/', 'per') and self.kind(1) == 'word':
            if self.units:
                self.units[-1] += '/' + UNITS.get(self.peek(1), self.peek(1))
            self.at += 2
        return self.at > start


FRACTIONS = ('\\frac', '\\dfrac', '\\tfrac', '\\cfrac', '\\binom')
STARTS = (*FRACTIONS, '\\sqrt', *(f'\\{name}' for name in '''alpha beta gamma delta theta lambda mu phi omega
sigma rho epsilon tau'''.split()))


READ_COMMANDS = {text for names in (FRACTIONS, STARTS, RELATIONS, TIMES, OVER, CONSTANTS, JOINTS) for text in names if text[0] == '\\'}
READ_COMMANDS |= {f'\\{name}' for name in FUNCTIONS} | {'\\pm', '\\over', '\\overline', '\\dot', '\\circ', '\\degree'}


def negative(value):
    if isinstance(value, Group):
        if value.kind != 'list':
            raise Unreadable
        return Group('list', tuple(map(negative, value.items)))
    return -value


def binomial(n, k):
    whole = exact(n) and exact(k) and n.denominator == k.denominator == 1
    if not whole or not 0 <= k <= n <= 2000:
        raise Unreadable
    return Fraction(math.comb(int(n), int(k)))


def logarithm(value, base):
    result = calculate(operator.truediv, FUNCTIONS['ln'](value), FUNCTIONS['ln'](base))
    near = Fraction(round(result.real)) if abs(result) < 1000 else None
    if near is not None and exact(base) and exact(value) and power(base, near) == value:
        return near
    return result


class Relation(NamedTuple):
    """a = b or a < b: the sign, the larger side less the other, what it says (x = 4: 4), is it said of a name."""
    sign: str
    difference: object
    last: object
    named: bool


def related(sides, signs, names):
    """The value of a chain of relations."""
    first = signs.index('~') if '~' in signs else len(signs)
    if 0 < first < len(signs) or first == 0 and not names[0]:     # exact = approximation
        sides, signs, names = sides[:first + 1], signs[:first], names[:first + 1]
        if not signs:
            return sides[0]
    if set(signs) <= {'=', '~', 'in'}:
        if signs[-1] == 'in' or isinstance(sides[0], Group) or isinstance(sides[-1], Group):
            return sides[-1]
        return Relation('=', calculate(operator.sub, sides[0], sides[-1]), sides[-1], names[0])
    if len(sides) == 3 and signs[0] == signs[1] and signs[0] in '<=>=' and names[1]:
        low, high = (sides[0], sides[2]) if signs[0][0] == '<' else (sides[2], sides[0])
        return Group('[]' if '=' in signs[0] else '()', (low, high))
    if len(sides) == 3 and {sign[0] for sign in signs} == {'<'} and names[1]:
        return Group(('[' if '=' in signs[0] else '(') + (']' if '=' in signs[1] else ')'), (sides[0], sides[2]))
    if len(sides) != 2:
        return Group(''.join(signs), tuple(sides))
    if names[1] and not names[0] and signs[0] in MIRRORED:
        return related(sides[::-1], [MIRRORED[signs[0]]], names[::-1])
    if signs[0] == '!=':
        return Group('!=', (sides[1] if names[0] else calculate(operator.sub, *sides),))
    lower, upper = sides if signs[0][0] == '<' else sides[::-1]
    interval = Group('()', (-math.inf, sides[1])) if signs[0][0] == '<' else Group('()', (sides[1], math.inf))
    closed = {'<=': '(]', '>=': '[)'}.get(signs[0], '()')
    return Relation('<' + signs[0][1:], calculate(operator.sub, upper, lower), interval._replace(kind=closed), names[0])


class Reading(NamedTuple):
    """A value at each of POINTS, the units in it, and where its tokens end."""
    values: tuple
    units: tuple
    percent: bool
    letters: bool
    end: int


def in_dollars(value, units):
    """$5 and 25 cents as one amount."""
    if units != ['＄', '¢'] or not isinstance(value, Group) or len(value.items) != 2:
        return value
    units[:] = ['＄']
    return value.items[0] + value.items[1] / 100


def reading_at(tokens, at):
    """The Reading of the longest mathematics that starts there. Raises Unreadable."""
    reader = Reader(tokens, at)
    try:
        values = [in_dollars(reader.listing(), reader.units)]
        if reader.letters:
            values += [Reader(tokens, at, point).listing() for point in range(1, POINTS)]
    except (RecursionError, OverflowError, TypeError, IndexError):
        raise Unreadable from None
    return Reading(tuple(values) if len(values) > 1 else tuple(values * POINTS), tuple(u for u in reader.units if u),
                   reader.percent, reader.letters, reader.at)


# ---- comparing

def same_number(a, b, letters):
    if exact(a) and exact(b):
        return a == b
    for x in (a, b):     # a decimal of many digits is not what it comes near to
        if exact(x) and not letters and x.denominator > 1000:
            return False
    if a == b or math.inf in (abs(a), abs(b)):
        return a == b
    try:
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b))
    except OverflowError:
        return False


def same_value(a, b, letters=False):
    """Are two values equal at one point?"""
    a, b = (x.last if isinstance(x, Relation) else x for x in (a, b))
    if not (isinstance(a, Group) or isinstance(b, Group)):
        return same_number(a, b, letters)
    if not (isinstance(a, Group) and isinstance(b, Group)):
        group, number = (a, b) if isinstance(a, Group) else (b, a)
        if group.kind == ':' and len(group.items) == 2 and exact(number):
            return group.items[1] != 0 and calculate(operator.truediv, *group.items) == number
        if group.kind in ('list', '[]') and group.items:       # one value in several forms, {5}
            return all(same_value(x, number, letters) for x in group.items)
        return False
    kinds = {a.kind, b.kind}
    if kinds <= {':', '-', 'time'} and ':' in kinds:
        return len(a.items) == len(b.items) and all(x * b.items[0] == y * a.items[0] for x, y in zip(a.items, b.items, strict=True))
    if kinds == {'list'}:
        return same_items(distinct(a.items, letters), distinct(b.items, letters), letters)
    alike = a.kind == b.kind or kinds <= {'list', '()', '[]'} and 'list' in kinds
    return alike and len(a.items) == len(b.items) and all(same_value(x, y, letters) for x, y in zip(a.items, b.items, strict=True))


def distinct(items, letters):
    flat = []
    for item in items:
        flat += item.items if isinstance(item, Group) and item.kind == 'list' else [item]
    kept = []
    for item in flat[:100]:
        if not any(same_value(item, other, letters) for other in kept):
            kept.append(item)
    return kept


def same_items(a, b, letters):
    return len(a) == len(b) and all(any(same_value(x, y, letters) for y in b) for x in a)


def same_units(wanted, got):
    """Either side may leave its units out, except for a base that the reference does not name."""
    if any(unit.startswith('base') for unit in got) and wanted != got:
        return False
    return not wanted or not got or set(wanted) == set(got) or bool({'°'} & {*wanted, *got})


def same_reading(wanted, got):
    """Does the answer's Reading mean the reference's?"""
    letters = wanted.letters or got.letters
    if not same_units(wanted.units, got.units):
        return False
    a, b = wanted.values, got.values
    if isinstance(a[0], Relation) and isinstance(b[0], Relation) and proportional(a, b):
        return True
    if isinstance(a[0], Relation) and not a[0].named or isinstance(b[0], Relation) and b[0].sign != '=' and not b[0].named:
        return False
    if all(same_value(x, y, letters) for x, y in zip(a, b, strict=True) if not (letters and complex in (type(x), type(y)))):
        return True
    if wanted.percent != got.percent and exact(a[0]) and exact(b[0]):   # the question may name the unit
        x, y = a[0] * (100 if wanted.percent else 1), b[0] * (100 if got.percent else 1)
        return x == y and abs(x) >= 1
    return False


def proportional(a, b):
    """Are two relations the same, up to a factor?"""
    differences = [x.difference for x in (*a, *b)]
    if a[0].sign != b[0].sign or any(isinstance(x, Group) for x in differences) or 0 in differences:
        return False
    ratios = [calculate(operator.truediv, x.difference, y.difference) for x, y in zip(a, b, strict=True)]
    return all(same_number(x, y, True) for x, y in pairwise(ratios)) and (a[0].sign == '=' or not ratios[0].real < 0)
