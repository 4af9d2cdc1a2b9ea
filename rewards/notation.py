r"""
Mathematics as it is written, LaTeX and plain in one grammar: lists of relations of sums of products.
What is read has a value at once, see rewards/values.py; nothing of it is run.
"""
import math
import operator
import re
from fractions import Fraction

from rewards.numerals import PARTS, SCALES, UNITS
from rewards.values import (
    FUNCTIONS,
    POINTS,
    Group,
    Reading,
    Unreadable,
    apply,
    binomial,
    calculate,
    exact,
    factorial,
    logarithm,
    negative,
    power,
    related,
    value_of_letter,
    whole,
)

DEEPEST = 40            # brackets within brackets
SPELLINGS = {'=': '= := \\equiv', '~': '≈ \\approx', '<': '< \\lt', '>': '> \\gt', 'in': '\\in ∈',
             '!=': '!= ≠ \\ne \\neq',
             '<=': '<= ≤ \\le \\leq \\leqslant', '>=': '>= ≥ \\ge \\geq \\geqslant'}
RELATIONS = {text: sign for sign, texts in SPELLINGS.items() for text in texts.split()}
JOINTS = (',', ';', 'and', 'or', '\\cup', '∪', '\\lor', '\\land')
SIGNS = {'+': 1, '-': -1, '\\pm': 0, '±': 0}
TIMES = ('*', '\\cdot', '\\times', '×', '·', '⋅', '∙')
OVER = ('/', '÷', '\\div', '⁄')
FRACTIONS = ('\\frac', '\\dfrac', '\\tfrac', '\\cfrac', '\\binom')
ROOTS = ('\\sqrt', 'sqrt', '√')
CONSTANTS = {'\\pi': math.pi, 'π': math.pi, 'pi': math.pi, 'e': math.e, 'i': 1j, '\\infty': math.inf,
             '∞': math.inf,
             '\\emptyset': Group('list', ()), '\\varnothing': Group('list', ()), '∅': Group('list', ())}
GREEK = {f'\\{name}' for name in 'alpha beta gamma delta theta lambda mu phi omega sigma rho tau'.split()}
NAME = re.compile(r"(?:\\[A-Za-z]+|[A-Za-z]+)['′]?(?:_(?:\w|\{\w+\}))?(?:\([\w,]*\))?"
                  r"|\((?:[A-Za-z],)+[A-Za-z]\)")
MATRICES = ('array', 'matrix', 'pmatrix', 'bmatrix', 'vmatrix', 'Bmatrix', 'smallmatrix')
COMMANDS = {*RELATIONS, *JOINTS, *SIGNS, *TIMES, *OVER, *FRACTIONS, *ROOTS, *CONSTANTS, *GREEK,
            *(f'\\{name}' for name in FUNCTIONS),
            '\\over', '\\overline', '\\dot', '\\circ', '\\degree'}


def reading_at(tokens, at):
    """The Reading of the longest mathematics that starts there. Raises Unreadable with the place reached."""
    reader = Reader(tokens, at)
    try:
        values = [in_dollars(reader.listing(), reader.units)]
        points = range(1, POINTS) if reader.letters else ()
        values += [Reader(tokens, at, point).listing() for point in points]
    except (Unreadable, RecursionError, ArithmeticError, TypeError):
        raise Unreadable(reader.at) from None
    values = tuple(values) if reader.letters else tuple(values * POINTS)
    return Reading(values, tuple(reader.units), reader.percent, reader.letters, reader.at)


def in_dollars(value, units):
    """$5 and 25 cents as one amount."""
    if units == ['＄', '¢'] and isinstance(value, Group) and len(value.items) == 2:
        units.pop()
        return value.items[0] + value.items[1] / 100
    return value


class Reader:
    """Reads tokens from a place on, at one point. Each method passes what it reads and returns its value."""

    def __init__(self, tokens, at, point=0):
        self.tokens, self.at, self.point, self.depth = tokens, at, point, 0
        self.units, self.percent, self.letters = [], False, False

    def peek(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at].text if 0 <= at < len(self.tokens) else ''

    def kind(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at].kind if at < len(self.tokens) else ''

    def spaced(self, ahead=0):
        at = self.at + ahead
        return at >= len(self.tokens) or self.tokens[at].space

    def next(self):
        self.at += 1
        return self.tokens[self.at - 1] if self.at <= len(self.tokens) else self.expect('more')

    def take(self, *texts):
        """Pass the next token, if it is one of the texts."""
        found = self.at < len(self.tokens) and self.peek() in texts
        self.at += found
        return found

    def expect(self, text):
        if not self.take(text):
            raise Unreadable

    # ---- lists, relations, spans

    def listing(self):
        """Items joined by commas, 'and', 'or'; one item stands for itself."""
        items = [self.relation()]
        while self.peek() in JOINTS and self.peek():
            before = self.at
            while self.take(*JOINTS):       # ', and'
                pass
            try:
                items.append(self.relation())
            except Unreadable:
                if self.depth:
                    raise
                self.at = before
                break
        return Group('list', tuple(items)) if len(items) > 1 else items[0]

    def relation(self):
        """A chain of relations, or one side of it: '= 18' is 18."""
        self.take('=', '≈', '\\approx')
        sides, signs, names = [], [], []
        while True:
            start = self.at
            sides.append(self.span())
            names.append(bool(NAME.fullmatch(self.shown(start))))
            if self.peek() not in RELATIONS:
                break
            signs.append(RELATIONS[self.next().text])
        return related(sides, signs, names)

    def shown(self, start):
        return ''.join(token.text for token in self.tokens[start:self.at])

    def span(self):
        """A ratio 3:2, a time 3:05, a span 3 to 5, else a sum."""
        items = [self.sum()]
        while self.peek() == ':' and (not self.spaced() or self.spaced(1) and self.kind(1) == 'number'):
            self.next()
            items.append(self.sum())
        if len(items) > 1:
            minutes = self.peek(-1)
            return Group('time' if len(minutes) == 2 and minutes.isdecimal() else ':', tuple(items))
        if self.peek() == 'to' and self.kind(1) == 'number':
            self.next()
            return Group('-', (items[0], self.sum()))
        return items[0]

    # ---- sums, products, powers

    def sum(self):
        total = None
        while total is None or self.peek() in SIGNS and self.peek(1):
            before, sign = self.at, SIGNS[self.next().text] if self.peek() in SIGNS else 1
            if total is not None and sign < 0 and self.is_dash():
                return Group('-', (total, self.product()))
            try:
                term = self.sum_of_signs() if self.peek() in SIGNS else self.product()
            except Unreadable:
                if total is None or self.depth or sign >= 0:
                    raise
                self.at = before     # a dash behind the value
                break
            total = added(total, sign, term)
        return total

    def sum_of_signs(self):
        sign = SIGNS[self.next().text]
        return added(None, sign, self.sum_of_signs() if self.peek() in SIGNS else self.product())

    def is_dash(self):
        """Is the minus just passed the dash of a span 10-15, two whole numbers without space and all else?"""
        free = self.spaced(-2) and self.peek(-3) not in (*RELATIONS, *TIMES, *OVER)
        lone = self.at < 3 or self.kind(-3) in ('word', 'name') or free
        touching = not self.spaced(-1) and not self.spaced()
        whole_numbers = touching and self.peek(-2).isdecimal() and self.peek().isdecimal()
        return lone and whole_numbers and self.peek(1) not in (*RELATIONS, *SIGNS, *TIMES, *OVER, '^')

    def product(self):
        value = self.factor()
        while True:
            if self.take(*TIMES):
                value = calculate(operator.mul, value, self.factor())
            elif self.take(*OVER):
                value = calculate(operator.truediv, value, self.factor())
            elif self.unit():
                if self.kind() == 'number' and len(self.peek()) < 4:       # 3 feet 6 inches
                    smaller = self.factor()
                    return Group('list', (value, smaller)) if self.unit() else unreadable()
            elif self.juxtaposed():
                value = calculate(operator.mul, value, self.factor())
            else:
                return value

    def juxtaposed(self):
        """Does a factor follow without a sign? A letter, a function, a bracket; no number, no word."""
        text, kind = self.peek(), self.kind()
        if kind == 'word' and text not in (*FUNCTIONS, *ROOTS, 'pi', 'π'):
            short = len(text) == 1 and text not in 'aI' or len(text) < 4 and not self.spaced()
            return short and text.isascii() and text not in ('or', 'to', 'is')
        if kind == 'command':
            return text[1:] in FUNCTIONS or text in (*FRACTIONS, *ROOTS, *CONSTANTS, *GREEK)
        return text in ('(', 'π', 'pi', '√',
                        '∞') or text in FUNCTIONS or text == '{' and self.kind(1) == 'number'

    def mixed(self, value):
        r"""A whole number with a fraction below 1 behind it: 2 1/2, 2\frac{1}{2}, 2 and 3/4."""
        if self.kind(-1) != 'number' or not exact(value) or value.denominator != 1:
            return value
        before, joined = self.at, self.take('and')
        if joined and self.take('a') and self.kind() != 'number' and self.peek() in PARTS:
            return value + Fraction(1, PARTS[self.next().text])
        of_digits = self.kind() == 'number' and self.peek(1) in OVER and self.kind(2) == 'number'
        of_words = joined and self.kind() == 'number' and self.tokens[self.at].value == Fraction(1, 2)
        if of_digits or of_words or self.peek() in FRACTIONS and not joined:
            part = self.base()
            if of_digits:
                self.next()
                part = calculate(operator.truediv, part, self.base())
            if exact(part) and 0 < part < 1:
                return value + part
            if not joined:
                raise Unreadable
        self.at = before
        return value

    def factor(self):
        """A base and what stands behind it: powers, factorials, percent, scales."""
        if self.peek() in ('+', '-'):
            return added(None, SIGNS[self.next().text], self.factor())
        value = self.mixed(self.base())
        while self.at < len(self.tokens):
            text, before = self.peek(), self.at
            if self.take('^', '**'):
                if self.degree():
                    continue
                value = power(value, self.exponent())
            elif self.take('!'):
                value = factorial(value)
            elif text in ('%', '‰') or text.lower() in ('percent', 'pct', 'percentage'):
                self.percent |= text != '‰'
                per = Fraction(1000 if self.next().text == '‰' else 100)
                value = calculate(operator.truediv, value, per)
            elif text in SCALES and exact(value) and not (len(text) == 1 and self.spaced()):
                value *= SCALES[self.next().text]
            elif text in PARTS and self.kind(-1) == 'number' and exact(value):
                value /= PARTS[self.next().text]
            elif self.kind(-1) == 'number' and self.is_share():
                value = calculate(operator.truediv, value, self.base())
            elif not self.degree() and self.at == before:
                break
        return value

    def is_share(self):
        """Pass the words in 5 out of 6, 2 of 5."""
        n_words = 1 + (self.peek() == 'out')
        of_number = self.peek(n_words - 1) == 'of' and self.kind(n_words) == 'number'
        found = of_number and self.peek(-2) not in OVER
        self.at += n_words * found
        return found

    def degree(self):
        r"""Pass a degree sign: °C, \circ, {\circ}."""
        before = self.at
        braced = self.take('{')
        if not self.take('°', '\\circ', '\\degree'):
            self.at = before
            return False
        if braced:
            self.expect('}')
        self.units.append('°' + (self.next().text if self.peek() in ('C', 'F') else ''))
        return True

    def exponent(self):
        """A power in an exponent goes first."""
        value = self.argument()
        return power(value, self.exponent()) if self.take('^', '**') else value

    def argument(self):
        r"""Behind ^, \frac, \sqrt: all in braces, else one digit or symbol."""
        if self.take('{'):
            return self.inside('}')
        if self.peek() in ('+', '-'):
            return added(None, SIGNS[self.next().text], self.argument())
        return self.base()

    def inside(self, *closings):
        """A listing in brackets whose opening was passed."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        value = self.listing()
        if self.take('\\over'):
            value = calculate(operator.truediv, value, self.listing())
        self.depth -= 1
        if not self.take(*closings):
            raise Unreadable
        return value

    # ---- what has a value by itself

    def base(self):
        token = self.next()
        text, word = token.text, token.text.lstrip('\\')
        if token.kind == 'number':
            return self.number(token)
        if text in ('(', '[', '{', '\\{'):
            return self.brackets(text)
        if text == '|':
            return abs(calculate(operator.add, self.inside('|'), Fraction(0)))
        if text in UNITS and token.kind == 'mark':      # $5
            self.units.append(text)
            return self.factor()
        if text in FRACTIONS:
            top, bottom = self.argument(), self.argument()
            return binomial(top, bottom) if text == '\\binom' else calculate(operator.truediv, top, bottom)
        if text in ROOTS:
            degree = whole(self.inside(']'), 1, 60) if self.take('[') else 2
            return power(self.argument(), Fraction(1, degree))
        if word in FUNCTIONS:
            return self.function(word)
        return self.matrix() if text == '\\begin' else self.symbol(token)

    def number(self, token):
        if self.peek() == '_' and (self.kind(1) == 'number' or self.peek(1) == '{'):
            self.next()
            self.units.append(f'base {self.argument()}')
        elif not self.spaced() and self.peek().lower() in ('st', 'nd', 'rd', 'th'):
            self.next()
            if self.peek() == 'century':
                raise Unreadable
        elif not self.spaced() and self.peek() == 's' and len(token.text) == 4:      # the 1960s
            raise Unreadable
        return token.value

    def function(self, name):
        base = self.argument() if self.take('_') else None
        exponent = self.argument() if self.take('^') else Fraction(1)
        if self.take('('):
            argument = self.inside(')')
        else:
            argument = self.factor()
            while self.juxtaposed() and self.peek().lstrip('\\') not in FUNCTIONS:
                argument = calculate(operator.mul, argument, self.factor())
        if base is not None:
            return logarithm(argument, base)
        return power(apply(FUNCTIONS[name], argument), exponent)

    def brackets(self, opening):
        """(a) is a; of (a, b), [a, b) and {a, b} a Group."""
        if opening == '\\{' and self.take('\\}'):
            return Group('list', ())
        start = self.at
        value = self.inside(*(('}', '\\}') if '{' in opening else (')', ']')))
        closing = self.peek(-1)
        several = isinstance(value, Group) and value.kind == 'list'
        if several and opening in '([' and ',' in self.shown(start):
            return Group(opening + closing, value.items)
        if opening + closing in ('(]', '[)'):
            raise Unreadable
        if opening == '\\{' and not several:
            return Group('list', (value,))
        return Group('[]', (value,)) if opening == '[' and not isinstance(value, Group) else value

    def matrix(self):
        self.expect('{')
        name = self.next().text
        self.expect('}')
        if name not in MATRICES:
            raise Unreadable
        if name == 'array' and self.take('{'):
            while not self.take('}'):
                self.next()
        rows, row = [], []
        while True:
            row.append(self.sum())
            if self.take('&'):
                continue
            rows.append(Group('[]', tuple(row)))
            row = []
            self.take('\\\\')
            if self.take('\\end'):
                break
        for text in ('{', name, '}'):
            self.expect(text)
        return Group('[]', tuple(rows))

    def symbol(self, token):
        """A constant or letter; a short word that touches mathematics is a product of letters."""
        text = token.text
        if text in CONSTANTS and not (text in ('e', 'i') and self.peek() == '_'):
            return CONSTANTS[text]
        touches = not token.space or self.peek() in tuple('^_+*/=(')
        letters = token.kind == 'word' and text.isascii() and (len(text) == 1 or len(text) < 4 and touches)
        if not letters and text not in GREEK:
            raise Unreadable
        self.letters = True
        *names, last = [text] if text in GREEK else text
        if self.take('_'):
            start = self.at
            if self.take('{'):
                while not self.take('}'):
                    self.next()
            else:
                self.next()
            last += self.shown(start)
        if self.take("'", '′'):
            last += "'"
        if last[0] in 'fghFpP' and self.peek() == '(' and not self.spaced():      # f(2) is one letter
            self.next()
            last += str(self.inside(')'))
        value = Fraction(1)
        for name in (*names, last):
            value = calculate(operator.mul, value, CONSTANTS.get(name) or value_of_letter(name, self.point))
        return value

    # ---- units

    def unit(self):
        """Pass a known unit behind a number, with its exponent and what it is per. Was there one?"""
        text = self.peek()
        if self.kind() not in ('word', 'mark') or not (text in UNITS or text.lower() in UNITS):
            return False
        letter = len(text) == 1 and self.kind() == 'word'
        if letter and (self.peek(1) in tuple('+-*=(') or self.peek(1) == '/' and self.kind(2) != 'word'):
            return False
        self.next()
        unit = UNITS.get(text) or UNITS[text.lower()]
        if self.take('^'):
            unit += f'^{self.argument()}'
        while self.peek() in ('/', 'per') and self.kind(1) == 'word':
            self.next()
            word = self.next().text
            unit += '/' + UNITS.get(word, word)
            if self.take('^'):
                unit += f'^{self.argument()}'
        self.units.append(unit)
        return True


def unreadable():
    raise Unreadable


def added(total, sign, term):
    """total + term, - term, or for the sign 0 both."""
    if sign == 0:
        return Group('list', (added(total, 1, term), added(total, -1, term)))
    term = term if sign > 0 else negative(term)
    return term if total is None else calculate(operator.add, total, term)
