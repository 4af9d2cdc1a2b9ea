"""
The mathematics in a statement, cut out whole, and when two pieces say the same: numbers and lists
here, all else by math-verify.
"""
import re
import warnings
from fractions import Fraction
from typing import NamedTuple

from rewards.bounded import equal_in_latex
from rewards.numerals import (
    ANY_UNIT,
    BRACKETS,
    END,
    FACTORS,
    FRACTIONS,
    OPERATORS,
    PRODUCTS,
    Reader,
    Unreadable,
    tokenize,
    without_units,
)

SEPARATORS = (',', ';', 'and', 'or', '\\cup')
NAME = re.compile(r"(?:\\?[A-Za-z]+)'?(?:_(?:\w|\{\w+\}))?(?:\([\w,]*\))?|\((?:[A-Za-z],)+[A-Za-z]\)")


def any_of(*patterns):
    return f"(?:{'|'.join(patterns)})"


# What holds digits and is no number: B12, GPT-4, x2, 2.0.1, 3D, 1010_2, 0.333..., 1960s.
OTHER = any_of(r'(?<![A-Za-z])(?:[A-Za-z]{2,}-?\d[\w-]*|[a-z]\d+)', r'[A-Z]-?\d[\d_]*(?![\d^])',
               r'\d+(?:\.\d+){2,}(?!\d)(?<!\.\d{3})', r'\d+[A-Z][A-Za-z]*\b', r'\d+_(?:\d+|\{\d+\})',
               r'\d+/\d+/\d+', r'\d*\.\d+\.{3}', r'\d{4}s\b', r'\d+ century')
NUMERAL = any_of(r'\d+\.\d*(?:\\(?:overline|dot)\s*\{\d+\}|\(\d+\))', r'(?<!\.)\.\d+',
                 r"\d+(?:[.,'’]\d+|[ _]\d{3}(?!\d))*(?:[eE][+-]?\d+(?!\w))?")
# A letter is calculated with where an operator, a digit or a bracket is at its side. a and I may be words.
LETTER = any_of(r"(?<![a-z]{2}/)(?<=[-+*/^=<>_(\[{,\d})'])[A-Za-z]{1,3}", r'(?<=[-+*/^=<>_,×·] )[B-HJ-Zb-z]',
                r"(?<=\\[lg]eq )[a-z]", r"(?<![A-Za-z]{2})[A-Za-z](?='?\s?[=^_+*/<>!×·]|\()",
                r'(?<![A-Za-z]{2})[B-HJ-Zb-z](?=\s?\\[a-z])',
                r'(?<![A-Za-z])[A-Za-z](?=\s?-\s?(?:[\d\\(]|[A-Za-z]\b))',
                r'[A-Za-z]{2,3}(?=[\^_])') + '(?![A-Za-z])'
FIRST = any_of(r'§[\d-]+', NUMERAL, r'\\(?:begin|end)\{\w+\}',
               r'\\(?:[A-Za-z]+|.)', r'[-+=≈|(\[{¢€£]', LETTER)
# Commas and words join what more mathematics follows.
NEXT = r'(?=\s{0,3}(?:[-+\\(\[{\d€£]|\.\d|[A-Za-z]\s?[=<>]|[a-zA-Z]\b(?! [a-z])))'
PIECE = any_of(rf"(?:{ANY_UNIT}|{'|'.join(FACTORS)})(?![A-Za-z])", FIRST, r"[*/^_<>)\]}!%&'·×÷⋅°]",
               rf'[,;]{NEXT}', rf'[,;]?\s{{0,3}}(?:and|or){NEXT}', r'\s?:\s?(?=\d)', r'(?:/|per)\s?[a-z]+')
MATHEMATICS = re.compile(rf'(?P<other>{OTHER})|{FIRST}(?:\s*{PIECE})*')
DANGLING = re.compile(r'(?:[\s,;:=*/^_<>≈&(\[{-]|\s\+|\s(?:and|or))+$|^[\s,;:=≈]+')


class Value(NamedTuple):
    source: str                         # LaTeX
    number: Fraction | None = None
    units: tuple = ()
    percent: bool = False
    items: tuple = ()                   # the Values of a list without brackets
    equation: bool = False              # of more than a name: 2x + y = 3
    undone: bool = False                # a calculation without its result: 16 + 16


# ---- cutting out

def spans(text):
    """[(start, end)] of the pieces of a text that are mathematics. (n, n): something else with digits."""
    found = []
    for match in MATHEMATICS.finditer(text):
        if match['other']:
            found.append((match.start(), match.start()))
            continue
        shown, depth = match[0], 0
        for at, mark in enumerate(shown):      # to the bracket that closes nothing
            depth += BRACKETS.get(mark, 0)
            if depth < 0:
                shown = shown[:at]
                break
        shown = DANGLING.sub('', shown)
        if re.search(r'[\w\\∞]', shown):
            start = text.index(shown, match.start())
            found.append((start, start + len(shown)))
    return found


def values_in(text):
    """The Values in a text, in order."""
    return [value_of(tokenize(text[start:end])) for start, end in spans(text) if end > start]


def latex(tokens):
    return ''.join((' ' if token.space else '') + token.text for token in tokens).strip()


def split(tokens, marks):
    """The parts between marks that stand in no brackets, and between two amounts: 3 feet 6 inches."""
    parts, depth, part = [], 0, []
    for token in tokens:
        depth += BRACKETS.get(token.text, 0)
        second = token.kind == 'number' and part[-1:] and part[-1].kind == 'word'
        if depth == 0 and (token.text in marks or second and ',' in marks):
            parts.append(part)
            part = []
        if depth or token.text not in marks:
            part.append(token)
    return [part for part in [*parts, part] if part]


# ---- reading

def value_of(tokens):
    """The Value of one piece of mathematics."""
    source = latex(tokens)
    parts = split(tokens, SEPARATORS)
    if len(parts) > 1:
        source = re.sub(r',?\s*\b(?:and|or)\b', ', ', source)
        items = tuple(map(value_of, parts))
        return Value(source, items=items, undone=all(item.undone for item in items))
    first, *others = split(tokens, ('≈',)) or [tokens]
    if others and not (len(others) == 1 and is_name(first)):      # an exact value and its approximation
        return value_of(first)
    sides = split(tokens, ('=', '≈'))
    if len(sides) > 1:
        value = value_of(sides[-1])
        named = not any(token.kind == 'word' for token in sides[0])
        named |= any(is_name(side) or value_of(side).number is not None for side in sides[:-1])
        shown = value.source if value.units and value.number is None else source      # 38 / 7 = 5 R 3
        return value._replace(source=shown, equation=not named)
    if sides and len(sides[0]) < len(tokens):
        return value_of(sides[0])      # = 18
    if re.fullmatch(r'[1-9]\d*(?: ?: ?\d+){2,}', source):      # 2:4:6 is 1:2:3
        first, *others = map(Fraction, source.split(':'))
        source = '§' + ':'.join(str(part / first) for part in others)
    named = re.match(r'§.*|[\d.]+-[\d.]+(?!\S)(?= *[a-z]*$)', source)      # a date, 10-15 days
    if named:
        return Value(named[0], units=(named[0],))
    return number_or_expression(tokens)


def is_name(tokens):
    return NAME.fullmatch(latex(tokens).replace(' ', '')) is not None


def number_or_expression(tokens):
    source = latex(tokens)
    bare, units = without_units(source)
    terms = tokenize(bare)
    try:
        number = Reader(terms).number()
    except Unreadable:
        return Value(source, undone=is_undone(terms, None))
    return Value(source, number, tuple(sorted(set(units))), '%' in bare, undone=is_undone(terms, number))


DIVISIONS = {'/', ':', *FRACTIONS}


def is_undone(tokens, number):
    """Is a calculation written, and not what it comes to? 16 + 16, (84 / 7); not 3/4, -5, 1.5 × 10^3."""
    ahead, texts = [*tokens[1:], END, END, END], [token.text for token in tokens]
    if number is not None and number.denominator == 1 and not DIVISIONS.isdisjoint(texts):
        return True
    for i, (token, after) in enumerate(zip(tokens, ahead, strict=False)):
        is_operand = token.kind in ('number', 'word', 'command') and token.text not in OPERATORS
        if not is_operand and token.text not in (')', '}', ']', '!', '%'):
            continue
        of_ten = ahead[i + 1].value == 10 and ahead[i + 2].text in ('^', '**')
        if after.text in ('+', '-', '÷', '\\div') or after.text in PRODUCTS and not of_ten:
            return True
        if token.kind in ('word', 'command'):
            continue
        if after.text == '(' or after.kind == 'number' and number is None and '_' not in texts:
            return True      # 16(2), and 30 17, which math-verify adds
    return False


# ---- comparing

def same(wanted, got):
    """Does the answer's Value mean the reference's? Raises ImportError where that takes math-verify."""
    if wanted.number is not None and got.number is not None and not wanted.equation:
        return not got.equation and same_number(wanted, got)
    if wanted.number is not None and is_chain(got.items):
        return same(wanted, got.items[-1])
    if wanted.number is not None and got.items:      # 1/2, that is 0.5
        return all(same(wanted, item) for item in got.items) or is_pair(wanted.source, got)
    items = [*wanted.items, *got.items]
    if wanted.items and got.items and all(item.number is not None for item in items):
        named = '=' in wanted.source and '=' in got.source
        return numbers_of(wanted, named) == numbers_of(got, named)
    if squeezed(wanted.source) == squeezed(got.source):
        return True
    one_equation = wanted.equation != got.equation and not ('=' in wanted.source and '=' in got.source)
    if one_equation or any(value.units and value.number is None for value in (wanted, got)):
        return False
    try:
        return equal_in_latex(wanted.source, got.source)
    except ImportError as error:
        if wanted.number is None:
            raise
        warnings.warn(f"an answer that is an expression counts as wrong: {error}", stacklevel=2)
        return False


def is_chain(items):
    """16 - 7 = 9, 9 * 2 = 18: each step goes on from the one before."""
    steps = [re.findall(r'\d+(?:\.\d+)?', item.source) for item in items if '=' in item.source]
    goes_on = (str(one.number) in step[:-1] for one, step in zip(items, steps[1:], strict=False))
    return len(steps) == len(items) > 1 and all(goes_on)


def is_pair(source, got):
    """Whether 2,1, which may also be 2.1, is the list that was got."""
    pair = re.fullmatch(r'(-?\d+),(-?\d+)', source)
    return pair is not None and set(map(Fraction, pair.groups())) == {item.number for item in got.items}


def numbers_of(value, named):
    return {(item.source.partition('=')[0].strip() if named else '', item.number) for item in value.items}


def squeezed(text):
    """Without the space that says nothing, and in lower case."""
    return re.sub(r'(?<!\w)\s+|\s+(?!\w)', '', text.replace('$', '')).casefold()


def same_number(wanted, got):
    """Exactly, in the same unit if both name one. A percent sign may be the unit that the question names."""
    if wanted.units and got.units and wanted.units != got.units:
        return False
    if wanted.number == got.number:
        return True
    a, b = (100 * x.number if x.percent else x.number for x in (wanted, got))
    return wanted.percent != got.percent and not got.units and a == b and abs(a) >= 1
