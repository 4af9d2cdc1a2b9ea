"""The tokens of a text: numbers (1,234.5, 4,2, 1e-05, 0.333..., forty-two), names, words, marks."""
import re
from fractions import Fraction
from typing import NamedTuple

LONGEST_NUMBER = 1000   # digits

# Spellings of one unit are joined by |; a plural's s may be there.
SPELLINGS = '''km|kilometer|kilometre m|meter|metre cm|centimeter|centimetre mm|millimeter|millimetre mi|mile
ft|foot|feet inch|inches yd|yard kg|kilogram g|gram mg|milligram lb|pound oz|ounce s|sec|second min|minute
h|hr|hour day week month year L|l|liter|litre mL|ml mph ＄|dollar|usd|buck ¢|cent €|euro|eur £|gbp ¥|yen
₹|rupee °C|celsius °F|fahrenheit °|degree|deg rad|radian N|newton J|joule W|watt V|volt'''
UNITS = {word: names.partition('|')[0] for names in SPELLINGS.split() for word in names.split('|')}
UNITS |= {word + 's': unit for word, unit in UNITS.items() if len(word) > 1}

SCALES = {'hundred': 100, 'thousand': 1000, 'million': 10 ** 6, 'billion': 10 ** 9, 'trillion': 10 ** 12,
          'dozen': 12,
          'k': 1000, 'M': 10 ** 6}
SMALL = '''zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen seventeen eighteen nineteen'''.split()
TENS = 'twenty thirty forty fifty sixty seventy eighty ninety'.split()
NUMBER_WORDS = {word: n for n, word in enumerate(SMALL)} | {word: 10 * n for n, word in enumerate(TENS, 2)}
NUMBER_WORDS |= {'half': Fraction(1, 2)}
PARTS = {'half': 2, 'third': 3, 'quarter': 4, 'fourth': 4, 'fifth': 5, 'sixth': 6, 'eighth': 8, 'tenth': 10}
PARTS |= {word + 's': n for word, n in PARTS.items()} | {'halves': 2}

# In brackets a comma separates; elsewhere it groups three digits, or is the decimal comma of a lone number.
PLAIN = r'\d+(?:\.\d+)?(?!\d|\.\d)|\.\d+'
GROUPED = (r"[1-9]\d{0,2}(?P<by>[,\ '’_])\d{3}(?:(?P=by)\d{3})*(?![\d,])(?:\.\d+)?"
           r"|\d{1,3}(?:\.\d{3}){2,}(?![.\d])|\d{1,2}(?:,\d\d)+,\d{3}(?!\d)")
COMMA = r'\d{1,3}(?:\.\d{3})+,\d+(?!\d)|(?<![\d,]\ )(?<![\d,])\d+,\d+(?![\d,])(?!,\ ?\d)'
# A name holds digits that are no numbers: B12, GPT-4, 2.0.1, 3D.
OTHERS = r'''(?P<name>[A-Za-z]{2,}-?\d[\w-]*|[A-Z]-?\d[\d_]*(?![\d^])|[a-z]\d+|\d+(?:\.\d+){2,}
 |\d+[A-Z][A-Za-z]*\b)
 |(?P<command>\\(?:[A-Za-z]+|.))|(?P<word>[^\W\d_]+(?:['’][^\W\d_]+)*)
 |(?P<mark>\*\*|<=|>=|!=|\.{3}|…|\S)'''
OUTSIDE = re.compile(rf'(?P<space>\s*)(?:(?P<grouped>{GROUPED})|(?P<comma>{COMMA})|(?P<number>{PLAIN})'
                     rf'|{OTHERS})', re.VERBOSE)
INSIDE = re.compile(rf'(?P<space>\s*)(?:(?P<number>{PLAIN})|{OTHERS})', re.VERBOSE)
BRACKETS = {'(': 1, '[': 1, '{': 1, '\\{': 1, ')': -1, ']': -1, '}': -1, '\\}': -1}
REPEATED = re.compile(r'\.?(?:\\(?:overline|dot)\s*\{(\d+)\}|\((\d+)\))|\.\.\.|…')
EXPONENT = re.compile(r'[eE]([+-]?\d{1,4})(?![\w.])')


class Token(NamedTuple):
    kind: str                       # number, name, command, word or mark
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
            kind = 'name' if value is None else 'number'
        shown = text[start:position]
        depth = max(0, depth + BRACKETS.get(shown, 0))
        tokens.append(Token(kind, shown, bool(match['space']) or not tokens, value))
    return with_number_words(tokens)


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
    """0.1(6) and the like. Without a period the last digits that stand twice repeat: 0.333..."""
    whole, _, digits = digits.partition('.')
    if period is None:
        sizes = range(1, len(digits) // 2 + 1)
        size = next((n for n in sizes if digits[-n:] == digits[-2 * n:-n]), 0)
        if not size:
            return None
        digits, period = digits[:-size], digits[-size:]
    tail = Fraction(int(period), 10 ** len(digits) * (10 ** len(period) - 1))
    return Fraction(f'{whole or 0}.{digits or 0}') + tail


def with_number_words(tokens):
    """The tokens with runs of number words as one number: one hundred and five."""
    result, at = [], 0
    while at < len(tokens):
        if tokens[at].kind == 'word' and tokens[at].text.lower() in (*NUMBER_WORDS, 'hundred'):
            value, end = spoken_number([token.text.lower() for token in tokens[at:at + 20]])
            result.append(tokens[at]._replace(kind='number', value=Fraction(value)))
            at += end
        else:
            result.append(tokens[at])
            at += 1
    return result


def spoken_number(words):
    """(value, count of words) of the number that the words begin with."""
    total = current = at = 0
    while at < len(words):
        word, following = words[at], words[at + 1] if at + 1 < len(words) else ''
        if word in NUMBER_WORDS:
            current += NUMBER_WORDS[word]
        elif word == 'hundred':
            current = (current or 1) * 100
        elif word in SCALES and len(word) > 1:
            total, current = total + (current or 1) * SCALES[word], 0
        elif word == 'point' and following in NUMBER_WORDS:
            digits = []
            while at + 1 < len(words) and words[at + 1] in SMALL[:10]:
                digits.append(str(SMALL.index(words[at + 1])))
                at += 1
            current += Fraction('0.' + ''.join(digits))
        elif not (word == '-' or word == 'and' and words[at - 1] in SCALES) or following not in NUMBER_WORDS:
            break
        at += 1
    return total + current, at
