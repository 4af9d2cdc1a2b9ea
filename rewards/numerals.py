r"""Numbers as they are written, exactly: 1,234.5, 4,2, 1e-05, 0.(3), 2 1/2, \frac{-3}{4}, 6!, 25%, 5 km."""
import json
import math
import operator
import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

LONGEST_NUMBER = 1000   # digits
LARGEST_BITS = 40_000   # of a calculated number
DEEPEST = 350           # values within values

# words, and regular expressions of phrases
ENGLISH = json.loads(Path(__file__).with_name('english.json').read_text(encoding='utf-8'))
# Spellings of one unit are joined by |; a plural's s may be there.
UNITS = {word: names.partition('|')[0] for names in ENGLISH['units'] for word in names.split('|')}
UNITS |= {word + 's': unit for word, unit in UNITS.items() if len(word) > 1}
# What a number is multiplied by that stands before them: 28%, 3 dozen, two thirds.
FACTORS = ENGLISH['scales'] | {word: Fraction(1, n) for word, n in ENGLISH['parts'].items()}
FACTORS |= {'%': Fraction(1, 100), '‰': Fraction(1, 1000)}

# ---- tokens

# In brackets a comma separates; elsewhere it groups three digits, or is the decimal comma of a lone number.
PLAIN = r'\d+(?:\.\d+)?(?!\d|\.\d)|\.\d+'
GROUPED = (r"[1-9]\d{0,2}(?P<by>[,\ '’_])\d{3}(?:(?P=by)\d{3})*(?![\d,])(?:\.\d+)?"
           r"|\d{1,3}(?:\.\d{3}){2,}(?![.\d])|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)")
COMMA = r'\d{1,3}(?:\.\d{3})+,\d+(?!\d)|(?<![\d,]\ )(?<![\d,])\d+,\d+(?![\d,])(?!,\ ?\d)'
OTHERS = r'(?P<command>\\(?:[A-Za-z]+|.))|(?P<word>[A-Za-z]+)|(?P<mark>°[CF]\b|\*\*|<=|>=|!=|\.{3}|\S)'
OUTSIDE = re.compile(rf'(?P<space>\s*)(?:(?P<grouped>{GROUPED})|(?P<comma>{COMMA})|(?P<number>{PLAIN})'
                     rf'|{OTHERS})', re.VERBOSE)
INSIDE = re.compile(rf'(?P<space>\s*)(?:(?P<number>{PLAIN})|{OTHERS})', re.VERBOSE)
BRACKETS = {'(': 1, '[': 1, '{': 1, '\\{': 1, ')': -1, ']': -1, '}': -1, '\\}': -1}
REPEATED = re.compile(r'\.?(?:\\(?:overline|dot)\s*\{(\d+)\}|\((\d+)\))')
EXPONENT = re.compile(r'[eE]([+-]?\d{1,4})(?![\w.])')


class Token(NamedTuple):
    kind: str                       # number, command, word or mark; '' for a number that is too long
    text: str
    space: bool                     # stands a space in front?
    value: Fraction | None = None   # of a number


def tokenize(text):
    """The Tokens of a text."""
    tokens, position, depth = [], 0, 0
    while match := (INSIDE if depth > 0 else OUTSIDE).match(text, position):
        kind, start, position, value = match.lastgroup, match.end('space'), match.end(), None
        if kind in ('number', 'grouped', 'comma'):
            value, position = number_at(text, start, position, kind == 'comma')
            kind = '' if value is None else 'number'
        shown = text[start:position]
        depth = max(0, depth + BRACKETS.get(shown, 0))
        tokens.append(Token(kind, shown, bool(match['space']) or not tokens, value))
    return tokens


def number_at(text, start, end, comma):
    """(value, end) of the number whose digits are text[start:end], with what belongs to it behind them."""
    digits = text[start:end]
    if len(digits) > LONGEST_NUMBER:
        return None, end
    if comma:
        digits = digits.replace('.', '').replace(',', '.')
    elif digits.count('.') > 1:
        digits = digits.replace('.', '')
    digits = re.sub(r"[, '’_]", '', digits)
    repeated, exponent = REPEATED.match(text, end), EXPONENT.match(text, end)
    if repeated and ('.' in digits or repeated[0][:2] in ('.\\', '.(')):
        return repeating(digits, repeated[1] or repeated[2]), repeated.end()
    if exponent:
        return Fraction(digits) * Fraction(10) ** int(exponent[1]), exponent.end()
    return Fraction(digits), end


def repeating(digits, period):
    """0.1(6) and the like."""
    whole, _, digits = digits.partition('.')
    tail = Fraction(int(period), 10 ** len(digits) * (10 ** len(period) - 1))
    return Fraction(f'{whole}.{digits or 0}') + tail


# ---- arithmetic

class Unreadable(ValueError):
    """This is no exact number, or too long a one."""


def power(a, b):
    bits = max(a.numerator.bit_length(), a.denominator.bit_length())
    if b.denominator > 1 or bits * abs(b) > LARGEST_BITS or a == 0 and b < 0:
        raise Unreadable
    return a ** int(b)


def factorial(n):
    if n.denominator > 1 or not 0 <= n <= 4000:
        raise Unreadable
    return Fraction(math.factorial(int(n)))


POWER, SIGN, PRODUCT = 4, 3, 2      # how strongly operators bind
OPERATORS = {'+': (1, operator.add), '-': (1, operator.sub)}
PRODUCTS = '*', '\\cdot', '\\times', '×', '·', '⋅', '∙'
OPERATORS |= dict.fromkeys(PRODUCTS, (PRODUCT, operator.mul))
OPERATORS |= dict.fromkeys(('/', '÷', '\\div', ':'), (PRODUCT, operator.truediv))
OPERATORS |= dict.fromkeys(('^', '**'), (POWER, power))
FRACTIONS = ('\\frac', '\\dfrac', '\\tfrac', '\\cfrac')
CLOSINGS = {'(': ')', '{': '}'}
END = Token('', '', True)


class Reader:
    """Reads the exact number that tokens write, each step bounded. Whatever else they write is Unreadable."""

    def __init__(self, tokens):
        self.tokens, self.at, self.depth = tokens, 0, 0

    def next(self, ahead=0):
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else END

    def number(self):
        """All of the tokens as a Fraction."""
        try:
            value = self.value(0)
        except (ZeroDivisionError, RecursionError):
            raise Unreadable from None
        if self.at < len(self.tokens):
            raise Unreadable
        return value

    def value(self, strength):
        """What stands there, as far as its operators bind more strongly than this."""
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable
        value = self.base()
        while True:
            text = self.next().text
            binds, operation = OPERATORS.get(text, (0, None))
            if binds > strength:
                self.at += 1
                value = operation(value, self.value(SIGN if binds == POWER else binds))
            elif text in ('(', *FRACTIONS) and strength < PRODUCT:
                value *= self.value(PRODUCT)
            elif text == '!' or text in FACTORS:
                self.at += 1
                value = factorial(value) if text == '!' else value * FACTORS[text]
            else:
                self.depth -= 1
                return value
            if value.numerator.bit_length() + value.denominator.bit_length() > LARGEST_BITS:
                raise Unreadable

    def base(self):
        """A number with its sign, a fraction, or a value in brackets."""
        token = self.next()
        self.at += 1
        if token.kind == 'number':
            return self.mixed(token.value)
        if token.text in ('+', '-'):
            return self.value(SIGN) * (1 if token.text == '+' else -1)
        if token.text in FRACTIONS:
            top = self.base()
            return top / self.base()
        if token.text not in CLOSINGS:
            raise Unreadable
        value = self.value(0)
        if self.next().text != CLOSINGS[token.text]:
            raise Unreadable
        self.at += 1
        return value

    def mixed(self, value):
        r"""A whole number with a fraction below 1 behind it: 2 1/2, 2\frac{1}{2}."""
        of_digits = self.next().kind == self.next(2).kind == 'number' and self.next(1).text == '/'
        if value.denominator > 1 or not (of_digits or self.next().text in FRACTIONS):
            return value
        part = self.base()
        if of_digits:
            self.at += 1
            part /= self.base()
        if not 0 < part < 1:
            raise Unreadable
        return value + part


# ---- units

ANY_UNIT = '|'.join(re.escape(unit) for unit in sorted(UNITS, key=len, reverse=True))
# A lone letter that an operator follows is calculated with.
UNIT = re.compile(rf'(?:[¢€£]|(?:/|per)\s?[A-Za-z]+|(?<![A-Za-z\\])(?:{ANY_UNIT})'
                  r'(?:(?<=[a-z]{2})|(?!\s?[-+*=(]))|(?<=\s)[a-z]{2,}(?=\^))(?![A-Za-z])'
                  r'(?:\s?\^\{?-?\d+\}?)?', re.IGNORECASE)


def without_units(text):
    """(text, units): 5 m/s^2 without m/s^2."""
    units = [unit.replace('per ', '/').translate(BRACES) for unit in UNIT.findall(text)]
    return UNIT.sub(' ', text), [UNITS.get(unit) or UNITS.get(unit.lower(), unit) for unit in units]


BRACES = str.maketrans('', '', '{}')
