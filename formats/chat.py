"""Chat templates, compiled as `transformers` does, and what keeps a message from writing special tokens."""
import functools
import json
import re
from datetime import datetime

from jinja2.sandbox import ImmutableSandboxedEnvironment


@functools.cache
def compile_template(source):
    """A chat template in jinja2's sandbox, set up as transformers does."""
    def raise_exception(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=['jinja2.ext.loopcontrols'])
    environment.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)  # jinja2's escapes HTML
    environment.globals['raise_exception'] = raise_exception
    environment.globals['strftime_now'] = lambda form: datetime.now().strftime(form)
    # {% generation %} only marks the assistant's words
    for tag, plain in (('generation', 'if true'), ('endgeneration', 'endif')):
        source = re.sub(rf'(\{{%[-+]?\s*){tag}(\s*[-+]?%\}})', rf'\1{plain}\2', source)
    return environment.from_string(source)


def mark_specials(value, special, mark):
    """A copy of value with `mark` after each character of every special token in its strings."""
    if isinstance(value, str):
        return special.sub(lambda match: ''.join(c + mark for c in match.group()), value)
    if isinstance(value, dict):
        return {key: mark_specials(v, special, mark) for key, v in value.items()}
    return [mark_specials(v, special, mark) for v in value] if isinstance(value, (list, tuple)) else value


def matcher(tokens, spaces=False):
    """A pattern of one group for any of the AddedTokens; with spaces, also for the space they swallow."""
    def pattern(token):
        before, after = (r'\s*' * (spaces and strips) for strips in (token.lstrip, token.rstrip))
        return before + re.escape(token.content) + after

    longest_first = sorted(tokens, key=lambda token: len(token.content), reverse=True)
    return re.compile(f"({'|'.join(map(pattern, longest_first)) or '(?!)'})")
