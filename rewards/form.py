"""The form of a text: tags, JSON, XML, length."""
import json
import re
from xml.parsers import expat

from rewards.parsing import plain_text
from rewards.reward import reward


@reward(hackable=True, binary=True)
def format_tag(text, *, prompt=None, prompt_read=None, tags=('think', 'answer')):
    """
    1 for <tag>...</tag> with each of tags in order, once, not empty, and nothing between them; else 0. The
    first may be open at the end of the prompt, or of prompt_read, what a template makes of it.
    """
    tags = (tags,) if isinstance(tags, str) else tags
    named = tags and all(re.fullmatch(r'[A-Za-z_][\w-]*', tag) for tag in tags)
    if not named or len(set(tags)) < len(tags):
        raise ValueError(f"tags is {tags!r}: it must be different names like 'think'")
    marks = '|'.join(f'</?{tag}>' for tag in tags)
    parts = [rf'<{tag}>((?:(?!{marks}).)*)</{tag}>' for tag in tags]
    if any(plain_text(asked).rstrip().endswith(f'<{tags[0]}>') for asked in (prompt_read, prompt)):
        text = f'<{tags[0]}>{text}'
    match = re.fullmatch(r'\s*'.join(parts), text.strip(), re.DOTALL)
    return float(match is not None and all(inside.strip() for inside in match.groups()))


def unfenced(text, language):
    """The content of the only fenced block (```json or bare ```), or all of a text with none or several."""
    fence = rf'^```[ \t]*(?:{language})?[ \t]*\n(.*?)^```[ \t]*$'
    blocks = re.findall(fence, text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    return blocks[0] if len(blocks) == 1 and text.count('```') == 2 else text


def refuse(*seen):
    raise ValueError(seen)


@reward(hackable=True, binary=True)
def format_json(text, *, keys=None):
    """1 for a JSON object or array, perhaps in a fenced block; with keys, for an object that has them."""
    if isinstance(keys, str):
        raise ValueError(f"keys is {keys!r}: it must be a list of names")
    try:
        value = json.loads(unfenced(text, 'json'), parse_constant=refuse)  # NaN and Infinity are not JSON
    except (ValueError, RecursionError):
        return 0.0
    if keys is None:
        return float(isinstance(value, (dict, list)))
    return float(isinstance(value, dict) and set(keys) <= set(value))


@reward(hackable=True, binary=True)
def format_xml(text):
    """1 for well-formed XML, perhaps in a fenced block; 0 for any DTD, where XML bombs hide."""
    parser = expat.ParserCreate(encoding='utf-8')
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(unfenced(text, 'xml').strip().encode(), True)
    except (expat.ExpatError, ValueError):
        return 0.0
    return 1.0


@reward(hackable=True)
def length(text, *, min_length=10, max_length=500, target_length=None, ramp=0):
    """
    1 with min_length to max_length words, falling to 0 over `ramp` words outside; or 1 at target_length
    words, falling to 0 at none and at twice as many.
    """
    words = len(text.split())
    if target_length is not None:
        if target_length < 1:
            raise ValueError(f"target_length is {target_length}: it must be at least 1")
        return max(0.0, 1 - abs(words - target_length) / target_length)
    if not 0 <= min_length <= max_length or ramp < 0:
        seen = f"min_length is {min_length}, max_length {max_length}, ramp {ramp}"
        raise ValueError(f"{seen}: it takes 0 <= min_length <= max_length and 0 <= ramp")
    outside = max(min_length - words, words - max_length, 0)
    return max(0.0, 1 - outside / ramp) if ramp else float(outside == 0)
