"""IFEval's instructions (arXiv 2311.07911), with its strict verdicts and names of arguments."""
import functools
import json
import re

from rewards.reward import hint

NO_END = re.compile(r'(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|[A-Z]|e\.g|i\.e)|^\s*[0-9]+)\.$', re.MULTILINE)


def n_sentences(text):
    parts = [part for part in re.split(r"""(?<=[.!?])["'”’)\]*]*\s+""", text.strip()) if part]
    return len(parts) - sum(bool(NO_END.search(part)) for part in parts[:-1])


def found(pattern, text):
    return len(re.findall(pattern, text, re.IGNORECASE | re.MULTILINE))


def n_of(text, word):
    return found(re.escape(word.strip()), text)


def n_placeholders(text):
    return sum('[' in part for line in text.splitlines() for part in line.split(']')[:-1])


def n_capitals(text):
    return sum(word.isupper() for word in re.findall(r'\w[\w./-]*', text))


def n_filled(text, mark):
    """How many parts the marks separate; -1 where one between two marks is empty."""
    parts = [part.strip() for part in text.split(mark)]
    return sum(map(bool, parts)) if all(parts[1:-1]) else -1


def n_paragraphs(text):
    return sum(bool(part.strip()) for part in text.split('\n\n'))


def word_at(text, nth):
    spoken = (text.split('\n\n')[nth - 1:] or [''])[0].split() or ['']
    return re.match(r"""[^.,?!'"]*""", spoken[0].lstrip("'").lstrip('"'))[0].lower()


def has_postscript(text, postscript_marker):
    marks = {'P.P.S': r'p\.\s?p\.\s?s', 'P.S.': r'p\.\s?s\.'}
    return found(marks.get(postscript_marker, re.escape(postscript_marker.strip())), text) > 0


def is_json(text):
    text = re.sub(r'^```(?:json|Json|JSON)?', '', text.strip())
    try:
        json.loads(text.removesuffix('```').strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text):
    spans = [(line, line.find('<<'), line.rfind('>>')) for line in text.split('\n')]
    return any(0 <= i < j - 2 and line[i:j].strip('<> \t') for line, i, j in spans)


def compare(count, relation, n):
    return count < n if relation == 'less than' else count >= n


CHECKS = {
    'keywords:existence': lambda t, keywords: all(n_of(t, word) for word in keywords),
    'keywords:frequency': lambda t, keyword, frequency, relation: compare(
        n_of(t, keyword), relation, frequency),
    'keywords:forbidden_words': lambda t, forbidden_words: not any(
        found(rf'\b{re.escape(word)}\b', t) for word in forbidden_words),
    'keywords:letter_frequency': lambda t, letter, let_frequency, let_relation: compare(
        n_of(t, letter), let_relation, let_frequency),
    'length_constraints:number_sentences': lambda t, num_sentences, relation: compare(
        n_sentences(t), relation, num_sentences),
    'length_constraints:number_paragraphs': lambda t, num_paragraphs: n_filled(t, '***') == num_paragraphs,
    'length_constraints:number_words': lambda t, num_words, relation: compare(
        found(r'\w+', t), relation, num_words),
    'length_constraints:nth_paragraph_first_word': lambda t, num_paragraphs, nth_paragraph, first_word: (
        n_paragraphs(t) == num_paragraphs >= nth_paragraph
        and word_at(t, nth_paragraph) == first_word.lower()),
    'detectable_content:number_placeholders': lambda t, num_placeholders: (
        n_placeholders(t) >= num_placeholders),
    'detectable_content:postscript': has_postscript,
    'detectable_format:number_bullet_lists': lambda t, num_bullets: (
        found(r'^[^\S\n]*(?:\*[^*]|-).*', t) == num_bullets),
    'detectable_format:constrained_response': lambda t: (
        re.search(r'My answer is (?:yes|no|maybe)\.', t) is not None),
    'detectable_format:number_highlighted_sections': lambda t, num_highlights: num_highlights <= sum(
        bool(part.strip('* ')) for part in re.findall(r'\*[^\n*]*\*', t) + re.findall(r'\*\*[^\n*]*\*\*', t)),
    'detectable_format:multiple_sections': lambda t, section_spliter, num_sections: num_sections <= len(
        re.findall(re.escape(section_spliter.strip()) + r'\s?\d+', t)),
    'detectable_format:json_format': is_json,
    'detectable_format:title': has_title,
    'combination:two_responses': lambda t: (
        n_filled(t, '******') == 2 == len({part.strip() for part in t.split('******')} - {''})),
    'combination:repeat_prompt': lambda t, prompt_to_repeat: t.strip().lower().startswith(
        prompt_to_repeat.strip().lower()),
    'startend:end_checker': lambda t, end_phrase: t.strip().strip('"').lower().endswith(
        end_phrase.strip().lower()),
    'startend:quotation': lambda t: len(t.strip()) > 1 and t.strip()[0] == t.strip()[-1] == '"',
    'change_case:capital_word_frequency': lambda t, capital_frequency, capital_relation: compare(
        n_capitals(t), capital_relation, capital_frequency),
    'change_case:english_capital': str.isupper,
    'change_case:english_lowercase': str.islower,
    'punctuation:no_comma': lambda t: ',' not in t}


def recorded(names, kwargs):
    """The checks that a record names; none with one for a language, it takes a model. Raises ValueError."""
    if 'language:response_language' in names:
        return []
    if unknown := [name for name in names if name not in CHECKS]:
        raise ValueError(f"there is no instruction {unknown[0]!r}; {hint(unknown[0], CHECKS)}")
    checks = []
    for name, row in zip(names, kwargs, strict=True):
        given = {key: value for key, value in (row or {}).items() if value is not None}
        checks.append(functools.partial(CHECKS[name], **given))
    return checks
