"""The answer that a text gives, and its numbers."""
import re
from fractions import Fraction


def plain_text(value):
    """A field as one text: of chat messages the last one's content, of a list all items."""
    if not isinstance(value, (list, tuple)):
        return '' if value is None else str(value)
    if value and isinstance(value[-1], dict):
        return str(value[-1].get('content', ''))
    return '\n'.join(map(str, value))


def answer_part(text, after=None, tag=None):
    """The part behind the last `after` and inside the last <tag>...</tag>. None where a mark is missing."""
    if after is not None:
        _, mark, text = text.rpartition(after)
        if not mark:
            return None
    if tag is not None:
        text, _, _ = text.rpartition(f'</{tag}>')
        _, opened, text = text.rpartition(f'<{tag}>')
        if not opened:
            return None
    return text.strip()


# ---- numbers

# A number stands alone: with letters at its side it is a word (x2, 3rd, 1e5), with more dots or slashes a
# version or a date. Commas that group thousands belong to it (1,234), others separate (3,4). A minus is a
# sign, but not right behind what it can subtract from (10-5). 25% is 25, $5 is 5, 2 1/2 is 5/2.
DECIMAL = r'(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.])\.[0-9]+)'
SIGN = r'(?P<sign>(?<![^\W_])(?<![)\]}−-])[-+−])?[$€£¥₹]?(?P<sign2>(?<=[$€£¥₹])[-−])?'
INTEGER = r'(?<![^\W_])(?<![0-9][./])(?:(?P<integer>[0-9]{1,9}) (?=[0-9]+/[0-9]+(?![0-9/]|\.[0-9])))?'
FRACTION = rf'(?P<top>{DECIMAL})(?:/(?P<bottom>{DECIMAL}))?(?![^\W_]|\.[0-9]|/[0-9])'
NUMBER = re.compile(SIGN + INTEGER + FRACTION)
LATEX_FRACTION = re.compile(r'([0-9]?)\\[dt]?frac\s*\{\s*([0-9.]+)\s*\}\s*\{\s*([0-9.]+)\s*\}')
LONGEST_NUMBER = 1000  # characters; Python refuses to read integers of more than 4,300 digits
UNIT = re.compile(r'[\s$€£¥₹%.,°]*(?:[A-Za-z]{2,}[\s.,]*)*')


def plain_numbers(text):
    """The text without LaTeX in its numbers."""
    for latex, plain in (('{,}', ','), ('\\,', ''), ('\\!', ''), ('\\$', '$'), ('\\%', '%')):
        text = text.replace(latex, plain)
    return LATEX_FRACTION.sub(lambda m: f'{m[1]}{" " if m[1] else ""}{m[2]}/{m[3]}', text)


def numbers_in(text):
    """All numbers of a text in order, exact, as Fractions."""
    numbers = []
    for match in NUMBER.finditer(plain_numbers(text)):
        top, bottom = match['top'].replace(',', ''), (match['bottom'] or '1').replace(',', '')
        if max(len(top), len(bottom)) <= LONGEST_NUMBER and Fraction(bottom) != 0:  # 1/0 is no number
            sign = (match['sign'] or '') + (match['sign2'] or '')
            size = int(match['integer'] or 0) + Fraction(top) / Fraction(bottom)
            numbers.append(-size if sign in ('-', '−') else size)
    return numbers


def number_alone(text):
    """The number that a text is, perhaps with a unit (18 eggs); None for all else."""
    numbers = numbers_in(text)
    alone = len(numbers) == 1 and UNIT.fullmatch(NUMBER.sub('', plain_numbers(text)))
    return numbers[0] if alone else None


def last_box(text):
    r"""The content of the \boxed{...} that closes last, or None."""
    box, openings = None, []
    for brace in re.finditer(r'(\\boxed\s*)?\{|\}', text):
        if brace[0] != '}':
            openings.append(brace)
        elif openings:
            opening = openings.pop()
            if opening[1]:
                box = text[opening.end():brace.start()]
    return box


def final_number(text):
    r"""
    The number that a text answers with, a Fraction, or None: the first on the line behind the last '####' (as
    GSM8K is scored; without one it is a heading), else the last in the last \boxed{}, else the last.
    """
    _, mark, rest = text.rpartition('####')
    if mark and (marked := numbers_in(rest.strip(' ').partition('\n')[0])):
        return marked[0]
    box = last_box(text)
    numbers = numbers_in(text if box is None else box)
    return numbers[-1] if numbers else None
