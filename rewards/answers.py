r"""
Right or wrong: is the answer the record's? A text is cleaned of thoughts and markup, its final statement is
found, and what that says is compared with the reference, which goes the same way.

    cleaned(text)              without thoughts, later turns, code; in plainer characters
    final_statement(text)      where the answer stands: a box, ####, 'the answer is', bold, the last sentence
    says(statement, wanted)    is it the reference: a choice, a value (rewards/values.py), or words?
"""
import functools
import json
import re
import unicodedata

from rewards.bounded import equal_in_latex
from rewards.notation import COMMANDS, RELATIONS, reading_at
from rewards.numerals import NUMBER_WORDS, UNITS, tokenize
from rewards.parsing import answer_part, plain_text
from rewards.reward import optional, reward
from rewards.values import Group, Unreadable, exact, same_reading

LONGEST_TEXT = 50_000       # characters, from the end
LONGEST_STATEMENT = 2_000
LONGEST_EXPRESSION = 300
LONGEST_WALK = 300          # sentences from the end in which a value is looked for

# ---- 1. the text without thoughts, later turns and code, in plainer characters

THOUGHTS_END = re.compile(r'</think(?:ing)?>|\[/THINK\]|<\|channel\|>final(?:<\|message\|>)?'
                          r'|◁/think▷', re.IGNORECASE)
THOUGHTS = re.compile(r'<think(?:ing)?>|\[THINK\]|<\|channel\|>analysis|◁think▷', re.IGNORECASE)
NEXT_TURN = re.compile(r'<\|\w+\|>|</s>|<end_of_turn>|\[/?INST\]|'
                       r'^[ \t]*(?:Q|Question|Problem|Human|User|Exercise'
                       r'|Next question)[ \t]*\d*[ \t]*[:.]', re.MULTILINE)
FENCE = re.compile(r'\s*(?:`{3,}|~{3,})\s*(\w*)')
PROGRAMS = {'python', 'py', 'python3', 'tool_code', 'javascript', 'js', 'bash', 'sh', 'c', 'cpp', 'java',
            'asy'}
MARKUP = re.compile(r'</?(?:b|i|u|em|strong|sub|p|br|span|center|code)\s*/?>|~~[^~\n]*~~|\[\d+\](?!\S)'
                    r'|[✅\u200b-\u200d\ufeff\u00ad]',
                    re.IGNORECASE)
RAISED = re.compile('[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+')
VULGAR = re.compile('[¼½¾⅐-⅞]')
DIGIT = re.compile(r'[^\W\D0-9]|[\uff01-\uff5e]')       # digits of other scripts, wide letters
DOLLARS = re.compile(r'\$(?=-?[\d.])')      # with one dollar sign in a line it is money
SINGLE_BACKSLASH = re.compile(r'(?<!\\)\\(?![\\])')
TEXT_COMMAND = re.compile(r'\\(?:(?:text)?color\s*\{\w+\}|text[a-z]*|math(?:rm|bf|it|sf|tt)|[mh]box'
                          r'|operatorname|underline'
                          r'|emph|bf|rm)\s*\{([^{}]*)\}')
NOISE = re.compile(r'\\(?:left|right|displaystyle|[bB]igg?[lr]?|limits|q?quad|mathstrut)(?![A-Za-z])'
                   r'|\\(?:begin|end)\{(?:align|equation|gather|aligned|split)\*?\}|\\\\(?=\s*&?\s*=)'
                   r'|(?<!\\)\\[,;: ()\[\]]|~|&(?=\s*=)')
PLAINER = (('−', '-'), ('–', '-'), ('—', ' - '), ('‐', '-'), ('‑', '-'), ('$-$', '-'), ('\\$', '＄'),
           ('\\%', '%'), ('\\ldots', '...'), ('\\dots', '...'), ('\\cdots', '...'), ('\u00a0', ' '),
           ('\u202f', ' '),
           ('\u2009', ' '), ('，', ', '), ('。', '. '), ('：', ': '))


def cleaned(text):
    text = text[-LONGEST_TEXT:].replace('\r\n', '\n')
    *_, text = THOUGHTS_END.split(text)
    text = THOUGHTS.split(text, maxsplit=1)[0].strip()
    for turn in NEXT_TURN.finditer(text):
        if turn.start() > 0 and text[:turn.start()].strip():
            text = text[:turn.start()]
            break
    return without_programs(MARKUP.sub('', text)).strip()


def without_programs(text):
    """The text without fenced programs; what they print, in fences of its own, stays."""
    kept, inside = [], None
    for line in text.split('\n'):
        fence = FENCE.match(line)
        if fence and inside is None:
            inside = fence[1].lower()
        elif fence:
            inside = None
        elif inside not in PROGRAMS:
            kept.append(line)
    return '\n'.join(kept)


NEGATIVE_WORD = re.compile(rf'\b(?:minus|negative)\s+(?=[\d.]|(?:{"|".join(NUMBER_WORDS)})\b)', re.IGNORECASE)
CLOCK = re.compile(r"\b(?:(\d{1,2})(?::(\d\d))?\s?(?:([ap])\.?m\b\.?|o['’]clock)|(noon|midnight)\b)",
                   re.IGNORECASE)
MONTHS = 'jan feb mar apr may jun jul aug sep oct nov dec'.split()
MONTH = '(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\\.?'
DATE = re.compile(rf'\b(?:{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?\b(?:,? (\d{{4}}))?|(\d{{1,2}})(?:st|nd|rd'
                  rf'|th)? (?:of )?{MONTH},? (\d{{4}})'
                  r'|(\d{4})-(\d\d)-(\d\d)|(\d{1,2})/(\d{1,2})/(\d{4}))\b', re.IGNORECASE)


def clock(match):
    """A time of day as 15:30."""
    hours, minutes, half, name = match.groups()
    if name:
        return '12:00' if name.lower() == 'noon' else '0:00'
    hours = int(hours) % 12 + 12 * (half.lower() == 'p') if half else int(hours)
    return f'{hours}:{minutes or "00"}'


def date(match):
    """A date as one word, D1776_07_04."""
    month, day, year, day2, month2, year2, *numbers = match.groups()
    if numbers[0]:
        return 'D' + '_'.join(numbers[:3])
    if numbers[3]:
        return f'D{numbers[5]}_{int(numbers[3]):02}_{int(numbers[4]):02}'
    month = MONTHS.index((month or month2).lower()) + 1
    return f'D{year or year2 or 0}_{month:02}_{int(day or day2):02}'


def plainer(text):
    if '\\\\' in text and not SINGLE_BACKSLASH.search(text):      # escaped twice
        text = text.replace('\\\\', '\\')
    text = RAISED.sub(lambda m: '^{' + unicodedata.normalize('NFKC', m[0]).replace('−', '-') + '}', text)
    text = VULGAR.sub(lambda m: ' ' + unicodedata.normalize('NFKC', m[0]).replace('⁄', '/'), text)
    text = DIGIT.sub(lambda m: str(unicodedata.digit(m[0], unicodedata.normalize('NFKC', m[0]))), text)
    text = re.sub(r'\\!\s*', '', text)
    text = re.sub(r'(?<=\d)\s?\{\s?,\s?\}\s?(?=\d{3}(?!\d))', '', text)
    text = re.sub(r'\{\s?,\s?\}', ',', text)
    text = re.sub(r'(?<=\d)\s?x\s?(?=[$＄]?\d)', '×', text)
    text = re.sub(r'\\([dtc]?frac)\s*(\d)\s*(\d)', r'\\\1{\2}{\3}', text)
    text = NEGATIVE_WORD.sub('-', text)
    text = CLOCK.sub(clock, text)
    text = DATE.sub(date, text)
    for seen, plain in PLAINER:
        text = text.replace(seen, plain)
    text = '\n'.join(DOLLARS.sub('＄', line) if line.count('$') % 2 else line for line in text.split('\n'))
    for _ in range(2):       # one in another
        text = TEXT_COMMAND.sub(r' \1 ', text)
    return NOISE.sub(' ', text)


# ---- 2. where the answer stands

WORDS_FOR_ANSWER = (r'answer|antwort|lösung|respuesta|réponse|risposta|resposta|ответ|答案|答え|解答'
                    r'|correct (?:choice|option)')
SAID = re.compile(rf'(?:\b|(?<=[^\x00-\x7f]))(?:{WORDS_FOR_ANSWER})(?:[^\n.:=,]{{0,40}}?(?:\b(?:is|ist|est'
                  rf'|es)\b|[:=是は为])'
                  r'(?:\s*(?:therefore|thus|then|:|\*\*))*|[ \t*_#]*\n|\s*-\s|(?=\s*[\\$(]))|^A:\s|故选'
                  r'|应选', re.IGNORECASE | re.MULTILINE)
BOX = re.compile(r'(\\(?:boxed|fbox|framebox)\s*)?(\{|\})|\\boxed\s*(\w+)')
MORE = re.compile(r'\s*\S')
HASHES = re.compile(r'(?<!#)####(?!#)[ \t]*([^\n]*)')
TAG = re.compile(r'<answer>(.*?)(?:</answer>|\Z)', re.DOTALL | re.IGNORECASE)
BOLD = re.compile(r'\*\*([^*\n]+)\*\*|__([^_\n]+)__')
BOLD_MARKS = re.compile(r'\*\*(?!\d)|(?<!\d)\*\*|`')
HEADING = re.compile(r'^[ \t]*(?:#{1,6}[ \t].*|[-*_]{3,}[ \t]*)$', re.MULTILINE)
SENTENCE_END = re.compile(r'(?<=[.!?])["”*)$]*(?:\s+(?![a-z0-9])|\n)|\n+')
CORRECTION = re.compile(r'\b(?:wait|actually|correction|corrected|oops|scratch that|i (?:forgot|made'
                        r'|mis\w+)|my mistake|sorry'
                        r'|hmm|revised)\b|^no[,.]', re.IGNORECASE)
EXPLANATION = re.compile(r'^\W*(?:note|notice|explanation|details?|check|to (?:verify|check)|we check'
                         r'|for example|a common mistake|this is because'
                         r'|with \d|if (?:it|there|you)|(?:i )?hope|let me know|feel free|i(?: am'
                         r'|.m) confident|thank|is there anything)\b', re.IGNORECASE)
BETWEEN_BOXES = re.compile(r'(?:[\s$.,;*]|\\quad){0,20}(?:and|or|\\text\{ ?(?:and|or) ?\})?'
                           r'(?:[\s$*]|\\quad){0,20}(?:\(?[a-h1-9]\)[\s$*]{0,9})?|\\\][^a-z]{0,20}')


JSON_END = re.compile(r'",\s*"|"\s*\}$')
OPENINGS = ('\\[', '\\(', '\\"')


def boxes(text):
    """[(start, content, end)] of the boxes without boxes in them; the content is None where it breaks off."""
    found, openings = [], []
    for brace in BOX.finditer(text):
        if brace[3]:
            found.append((brace.start(), brace[3], brace.end()))
        elif brace[2] == '{':
            openings.append(brace)
        elif openings:
            opening = openings.pop()
            if opening[1] and not (found and found[-1][0] > opening.start()):
                found.append((opening.start(), text[opening.end():brace.start()], brace.end()))
    broken = [opening for opening in openings if opening[1]]
    if broken:
        found.append((broken[-1].start(), None, len(text)))
    return [box for box in found if box[1] is None or box[1].strip(' .\\_?') not in ('', 'answer',
                                                                                     'your answer')]


def marked(text):
    """[(start, content, end)] of all that is marked as an answer, by where it ends."""
    found = boxes(text)
    for match in HASHES.finditer(text):
        content, follows = match[1].strip(), MORE.match(text, match.end())
        if content and not (follows and re.match(r'[^\W\d_]{2}', content)):    # else it is a heading
            found.append((match.start(), content, match.end()))
    found += [(m.start(), m[1], m.end()) for m in TAG.finditer(text)]
    for match in reversed(list(SAID.finditer(text))):
        start = match.end()
        while start < len(text) and (text[start] in ' \n*_$`:"#>' or text[start:start + 2] in OPENINGS):
            start += 2 if text[start] == '\\' else 1
        end = SENTENCE_END.search(text, start)
        end = end.start() if end else len(text)
        if text[start:end].strip():      # the last is enough
            found.append((match.start(), JSON_END.split(text[start:end])[0].rstrip('!'), end))
            break
    return sorted((mark for mark in found if mark[1] is None or mark[1].strip()), key=lambda mark: mark[2])


def final_statement(text):
    """What a cleaned text ends up with, '' for nothing. Without a mark: the last sentences, one a line."""
    marks = marked(text)
    if not marks:
        return last_statement(text)
    start, content, end = marks[-1]
    if content is None:
        return ''
    own = boxes(content)
    if own:
        return final_statement(content)
    for before in reversed(marks[:-1]):         # \boxed{3} and \boxed{5}
        both = text.startswith('\\', before[0]) and text.startswith('\\', start)
        if not both or not BETWEEN_BOXES.fullmatch(text[before[2]:start]):
            break
        content, start = f'{before[1]} and {content}', before[0]
    tail = text[end:]
    unit = re.match(r'[\s$\\)]*(%|[A-Za-z]+)', tail)
    if unit and (unit[1] in UNITS or unit[1] in ('%', 'percent', 'pct')):
        content += ' ' + unit[1]
    parts = sentences(tail)
    for i, sentence in enumerate(parts):
        if CORRECTION.search(sentence):
            return last_statement('\n'.join(parts[i:]))
    return unmarked(content)


def unmarked(statement):
    """Without the markup and the stop around a statement, of a sentence."""
    dollar = '' if statement.count('$') % 2 else '$'      # one alone is money
    statement = BOLD_MARKS.sub('', statement).lstrip(' \n*_`"' + dollar).rstrip(' \n*_`"$\\')
    return re.sub(r'(?<!\.)[.。]$', '', statement)


def sentences(text):
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip(' \n.*$')]


def last_statement(text):
    """Without marks: what is bold, else the last sentence that is no note."""
    bold = [(m[1] or m[2]).strip() for m in BOLD.finditer(text)]
    bold = [b for b in bold if not b.endswith(':') and re.search(r'\d', b)]
    if text.endswith('|'):      # the last cell of a table
        return unmarked(text.strip(' |').rpartition('|')[2])
    if bold:
        return unmarked(bold[-1])
    parts = sentences(HEADING.sub('', text)) or sentences(text)
    while len(parts) > 1 and (EXPLANATION.search(parts[-1]) or ASIDE.fullmatch(' ' + parts[-1].rstrip('.'))):
        parts.pop()
    return '\n'.join(unmarked(part).rstrip('!') for part in parts[-LONGEST_WALK:])


# ---- 3. what a statement says

CHOICE = re.compile(r'\(?([A-Z])\)?')
CHOICES = re.compile(r'[A-Z]\)?(?:(?:,\s*|\s+and\s+)\(?[A-Z]\)?)+')
CONTRAST = re.compile(r'(?:\b(?:instead of|rather than|and not|not counting|, and no)|, not'
                      r'|(?<=[a-z] )out of|(?<=[a-z] )up to)\b[^,;.]*', re.IGNORECASE)
CHANGE = re.compile(r'\b((?:fall|rise|drop|increase|decrease|change|go|grow)(?:s'
                    r'|es)?) from \S+(?: \w+)? (?=to )', re.IGNORECASE)
ASIDE = re.compile(r'(?:(?<=\S)\s*|\s)\((?=[^()\\]*[^\W\d_]{2})[^()]*\)')
NOT_BUT = re.compile(r"\b(?:is |was |are )?not [^,;.]{0,60}? (?:but|which is|it's) (?:rather )?",
                     re.IGNORECASE)
REASON = re.compile(r"[,;]?\s\b(?:because|since|as|who|where|which(?! (?:gives|makes|leaves|equals|comes"
                    r"|means)\b| is\b[^,.]{0,4}(?:\d|[A-Z]\b)))\b.*", re.DOTALL)
CIRCUMSTANCE = re.compile(r'[,;]?\s\b(?:for which|so that|when|if|after|before|depending'
                          r'|without)\b.*', re.DOTALL)
SO = re.compile(r'\b(?:so|thus|hence|therefore|i\.e|that is|but|leaves|then)\b', re.IGNORECASE)
SAYS = re.compile(r'\b(?:is|are|was|were|be|equals?|gives?|giving|makes?|making|yields?|leaves?|leaving'
                  r'|costs?|totals?|returns?|prints?|shows?'
                  r'|becomes?|takes?|needs?|said|got|get)\b|(?<!\s):\s|≈')
PLACE = re.compile(r'\b(?:in|at|on|to|from|with|for|of|after|per|than)\b', re.IGNORECASE)
ATTAINED = re.compile(r'\b\w+(?:ed|en) (?:at|in|by|for|on|when)\b')
BOUND = re.compile(r'(?:(?:more|less|fewer|greater|larger|smaller) than|at (?:least|most)|under|over'
                   r'|between|up to|from)'
                   rf'\s(?=\W{{0,3}}(?:\d|(?:{"|".join(NUMBER_WORDS)})\b))', re.IGNORECASE)
UNSAID = re.compile(r"\b(?:won't|cannot|can't|could not|don't|doesn't|isn't|not|never|neither|nor|either"
                    r"|whether)\b", re.IGNORECASE)


def asides_removed(statement):
    """Without brackets that hold words: 18 (9 eggs at 2 dollars)."""
    return ASIDE.sub('', statement)


def wanted_of(reference):
    """A reference's statement: it may be a worked solution, a boxed answer, or the answer alone."""
    text = cleaned(reference)
    return plainer(final_statement(text) if marked(text) else text).strip()


@functools.lru_cache(maxsize=4096)
def reading_of(statement):
    """The Reading of a statement that is a value as a whole, perhaps with words behind; None for others."""
    tokens = tokenize(statement.replace('$', ''))
    try:
        reading = reading_at(tokens, 0)
    except Unreadable:
        return None
    rest = tokens[reading.end:]
    if any(token.kind not in ('word',
                              'mark') or token.text in RELATIONS or token.text in '+*/^_(' for token in rest):
        return None
    return reading


def readings_in(statement):
    """The Readings in a statement, in order. What cannot be read is passed over as a whole."""
    tokens, found, at = tokenize(statement.replace('$', '')), [], 0
    while at < len(tokens):
        token = tokens[at]
        if token.kind == 'word' and not starts_value(tokens,
                                                     at) or token.text in ').,;:!?"\'-' and token.text != '-':
            at += 1
            continue
        try:
            reading = reading_at(tokens, at)
            found.append(reading)
            at = max(reading.end, at + 1)
        except Unreadable as error:
            at = past(tokens, at, error.args[0])
    return found


def past(tokens, at, reached):
    """Where to go on behind mathematics that could not be read: a part of it says nothing."""
    if reached <= at + 1 and tokens[at].kind != 'command':
        return at + 1
    for place in range(at, len(tokens)):
        token = tokens[place]
        if token.kind == 'word' and token.space and len(token.text) > 1:
            return place
    return len(tokens)


def starts_value(tokens, at):
    text, following = tokens[at].text, tokens[at + 1].text if at + 1 < len(tokens) else ''
    if len(text) > 1:
        return following == '(' and text in ('sqrt', 'sin', 'cos', 'log', 'ln') or text == 'pi'
    return following in ('=', '+', '-', '*', '/', '^', '<', '>', '_', '(') or following in RELATIONS


def last_with_value(statements):
    """Of lines the last that has a value, else the last."""
    lines = statements.split('\n')
    return next((line for line in reversed(lines) if re.search(r'[\d\\=]', line) or readings_in(line)),
                lines[-1])


ADDED = re.compile(r'^([^,]*), and \S+ (?:are|is|was|were|has|have)\b.*', re.DOTALL)


def value_said(statement):
    """The Reading that a statement gives, or None."""
    statement = CHANGE.sub(r'\1 ', NOT_BUT.sub(' ', statement[-LONGEST_STATEMENT:])).strip(' *_`"$\n')
    statement = LABEL.sub('', ADDED.sub(r'\1', statement))
    for form in (asides_removed(statement), statement):
        whole = reading_of(form)
        if whole is not None:
            return whole
    short = cut(REASON, CONTRAST.sub('', asides_removed(statement)))
    if re.match(r'(?:yes|no|true|false)\b\W*(?:because|since|as)\b', statement, re.IGNORECASE):
        return None
    clause = cut(CIRCUMSTANCE, last_clause(short))
    if UNSAID.search(clause) or BOUND.search(clause) and '=' not in clause:
        return None
    return value_in(clause)


def cut(ending, statement):
    """The statement without an ending, where a value is left."""
    short = ending.sub('', statement)
    return short if readings_in(short) else statement


def last_clause(statement):
    """What stands behind the last 'so' that has a value or says another thing: so the output is empty."""
    parts = SO.split(statement)
    while len(parts) > 1 and not readings_in(parts[-1]) and not SAYS.search(parts[-1]):
        parts.pop()
    before, *after = re.split(r'(?<!\s): ', parts[-1], maxsplit=1)
    if after and len(readings_in(before)) == 1 and ',' in after[0]:      # a total, and what it is made of
        return before
    return parts[-1]


def value_in(clause):
    """The first value behind the last 'is' that has one behind it, else the last."""
    first, *others = SAYS.split(clause)
    for part in reversed(others):
        if found := readings_in(ATTAINED.split(part)[0] if readings_in(first) else part):
            return found[0]
    if PLACE.match(first) and ', ' in first:      # of 100 people, 20% said yes
        first = first.partition(', ')[2]
    for part in PLACE.split(first):
        if found := readings_in(part):
            return found[-1]
    return None


def choices_said(statement):
    """The set of the letters that a statement chooses."""
    statement = CONTRAST.sub('', RULED_OUT.sub('', REASON.sub('', NOT_BUT.sub(' ', statement))))
    letters = re.findall(r"(?<![\w'])([B-HJ-Z]|A(?!\s+(?!and\b|or\b|is\b)[a-z])|I(?=[).]))(?![\w']"
                         r"|\s?[=^+*/_<>])", statement)
    lead = re.match(r'[\s*(\["\'`{]*([A-Za-z])[\s*)\]"\'`}]*(?:[.:,)\-]|\s[A-Z(]|$)', statement)
    if lead and not re.search(r'\b(?:or|and)\b(?: maybe| perhaps)? \(?[A-Z]\b', statement):
        return {lead[1].upper()} if not CHOICES.match(statement) else set(letters)
    return set(letters)


RULED_OUT = re.compile(r'[^,;.]*\b(?:ruled out|ignores?|fails?|too (?:small|large|big)|a trap|wrong'
                       r'|tempting|except|other than)\b[^,;.]*', re.IGNORECASE)
LABEL = re.compile(r'^\(?[A-J](?:\)\s*|[.:]\s+| - )(?=\S)')
TRAILING = re.compile(r'\s(?:then|now|today|too|to \w+|from the .*|does|do|did|\d+ times)$')


def bare(text):
    """Words to compare: lower case, without articles, quotes, hyphens and stops."""
    text = re.sub(r'["“”\'’`*_$\\{}!?-]', '', text.lower()).strip(' .,;:()[]')
    return ' '.join(re.sub(r'\b(?:the|a|an)\s+', '', text).split())


def words_said(statement):
    """What a statement may name, bare: itself, or what stands behind 'is', 'in', 'prints', or in quotes."""
    statement = asides_removed(NOT_BUT.sub(' ', statement)).strip()
    if answer := re.match(r'(yes|no|true|false)\b(?! (?:and|or)\b)', statement, re.IGNORECASE):
        return {answer[1].lower()}
    clause = SO.split(REASON.sub('', statement))[-1].strip(' ,')
    clause = CLAUSE.split(clause)[0] if ';' not in clause else clause.rpartition(';')[2]
    forms = [statement, clause, LABEL.sub('', statement), re.sub(r'\s*\([^()]*\)$', '', statement)]
    after = NAMES.split(clause)
    if not UNSAID.search(clause):
        forms += [after[-1], BY.split(after[-1])[-1]]
        if len(after) == 2 and after[1].startswith(('the ', 'a ')):      # Canberra is the capital
            forms.append(after[0])
    elif len(after) > 1:
        forms.append(after[-1])
    quoted = re.findall(r'[`"“\']([^`"”\']+)[`"”\']', statement)
    forms += quoted if len(quoted) == 1 else []
    forms += [SUBJECT.sub('', form) for form in forms]
    forms += [TRAILING.sub('', form) for form in forms]
    return {bare(form) for form in forms}


CLAUSE = re.compile(r', (?=[a-z])(?!and |or )|; ')
NAMES = re.compile(r"\b(?:is|are|was|were|be|it's|named|called|returns?|raises?|reads?|prints?|say)\s|[:=] ?")
SUBJECT = re.compile(r'^(?:it|this|that|there)\s(?:(?:is|are)\s)?', re.IGNORECASE)
BY = re.compile(r'\b(?:in|at|on|to|by|from|with)\b')


NOTHING_LEFT = re.compile(r'^none\b|\bno \w+ (?:are |is )?(?:left|remain)', re.IGNORECASE)


LEADING_WORDS = re.compile(r'^(?:[A-Za-z]{2,}[\s,:$]+)+')


def needs_algebra(statement):
    """Has it commands that are not read here, as integrals? What is too large to be read here has none."""
    commands = set(re.findall(r'\\[A-Za-z]+', statement[:LONGEST_EXPRESSION + 1])) - {'\\boxed'}
    return len(statement) <= LONGEST_EXPRESSION and any(command not in COMMANDS for command in commands)


def says(statements, wanted):
    """Does the last of the statements, or for a value the last that has one, give what is wanted?"""
    statement = plainer(statements.rpartition('\n')[2][-LONGEST_STATEMENT:]).strip()
    if squeezed(statement) == squeezed(wanted) and wanted:
        return True
    if CHOICE.fullmatch(wanted):
        return choices_said(statement) == {CHOICE.fullmatch(wanted)[1]}
    if CHOICES.fullmatch(wanted):
        return choices_said(statement) == set(re.findall('[A-Z]', wanted))
    value = reading_of(wanted.strip('$ '))
    if value is not None:
        statement = plainer(last_with_value(statements)[-LONGEST_STATEMENT:]).strip()
        got = value_said(statement)
        if got is not None and same_reading(value, got):
            return True
        if got is not None or not needs_algebra(statement):
            return NOTHING_LEFT.search(statement) is not None and value.values[0] == 0
    if bare(wanted) in words_said(statement):
        return True
    shown = LEADING_WORDS.sub('', statement)
    return (needs_algebra(wanted) or needs_algebra(statement)) and equal_in_latex(wanted, shown)


def squeezed(text):
    """Without the space that says nothing, and in lower case."""
    return re.sub(r'(?<!\w)\s+|\s+(?!\w)', '', text.replace('$', '')).casefold()


@functools.lru_cache(maxsize=4096)
def wanted_values(reference):
    return wanted_of(reference)


def is_right(text, reference):
    """Is the text's answer the reference, or any of a list? None where the reference is empty."""
    wanted = [wanted_values(str(one)) for one in references_of(reference)]
    if not all(wanted):
        return None
    statement = final_statement(cleaned(text))
    return any(says(statement, one) for one in wanted)


def references_of(reference):
    """A list as the reference means any of them; chat messages are one text."""
    if isinstance(reference, (list, tuple)) and reference and not isinstance(reference[-1], dict):
        return [plain_text(one) for one in reference]
    return ['' if reference != reference else plain_text(reference)]      # not a number is no answer


def numbers_in(text):
    """All exact numbers of a text, in order."""
    found = []
    for line in plainer(text).split('\n'):
        for reading in readings_in(line):
            value = reading.values[0]
            value = getattr(value, 'last', value)
            found += value.items if isinstance(value, Group) else [value]
    return [number for number in found if exact(number)]


@functools.lru_cache(maxsize=1024)
def final_number(text):
    """The number that a text answers with, a Fraction, or None."""
    got = value_said(plainer(last_with_value(final_statement(cleaned(text)))).strip())
    value = got.values[0] if got else None
    value = getattr(value, 'last', value)
    if not exact(value) or got.letters and not got.percent and any(getattr(v, 'last',
                                                                           v) != value for v in got.values):
        return None
    return value * 100 if got.percent else value


# ---- the rewards

@reward(binary=True)
def exact_answer(text, *, reference, case_sensitive=True, after=None, tag=None):
    """1 for the reference, but for space around it. after, tag: where the answer is, see answer_part."""
    wanted, got = [one.strip() for one in references_of(reference)], answer_part(text, after, tag)
    if not all(wanted):
        return None
    if got is not None and not case_sensitive:
        wanted, got = [one.casefold() for one in wanted], got.casefold()
    return float(got in wanted)


@reward(binary=True)
def number_answer(text, *, reference, after=None, tag=None):
    """1 when the final number is the reference's, which may be a solution that ends in `#### 42`."""
    if any(final_number(str(one)) is None for one in references_of(reference)):
        return None
    part = answer_part(text, after, tag)
    return float(part is not None and is_right(part, reference))


# ---- reasoning-gym

# Tasks whose own scoring evaluates the completion: __import__('os').system(...) in it is run. Each task of
# reasoning-gym 0.1.25 was tried.
EXECUTES_COMPLETIONS = ('binary_matrix', 'intermediate_integration', 'n_queens', 'polynomial_multiplication',
                        'simple_integration', 'spiral_matrix', 'string_insertion')
# These do so too, but their answers are digits and operators, and anything else is refused.
ARITHMETIC_TASKS = ('countdown', 'puzzle24')
ARITHMETIC = re.compile(r'(?!.*\*\s*\*)[0-9+\-*/() ]{1,200}')  # no powers: 9**9**9 does not end


@functools.cache
def reasoning_gym_task(task, options):
    package = optional('reasoning_gym', "it needs the package: pip install reasoning-gym")
    return package.create_dataset(task, size=1, seed=0, **json.loads(options))


@reward(cheap=False)
def reasoning_gym(text, *, context, partial=False, after=None, tag=None):
    """1 for full marks by the task's own scoring. partial: its marks; many tasks give junk a few."""
    if not isinstance(context, dict) or not {'task', 'options', 'entry'} <= set(context):
        return None
    task, entry = context['task'], context['entry']
    if task in EXECUTES_COMPLETIONS:
        raise ValueError(f"the task {task!r} runs the model's answer as Python code: not safe")
    answer = answer_part(text, after, tag)
    if answer is None or (task in ARITHMETIC_TASKS and not ARITHMETIC.fullmatch(answer)):
        return 0.0
    scorer = reasoning_gym_task(task, json.dumps(context['options'], sort_keys=True))
    try:
        value = float(scorer.score_answer(answer, entry))
    except Exception:  # an answer that it cannot read is wrong, unless it cannot read its own either
        scorer.score_answer(entry['answer'], entry)
        value = 0.0
    return value if partial else float(value >= 1)
