"""Chat templates, read as `transformers` does, and what keeps a message from writing special tokens."""
import functools
import json
import re
from datetime import datetime

from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from formats.kept import Kept

REASONING = ('reasoning_content', 'thinking', 'reasoning')  # what data sets call it; the first is templates'
# {% generation %} marks the assistant's words and changes nothing, as {% with %} does
GENERATION = re.compile(r'(\{%[-+]?\s*)(end)?generation(?=\s*[-+]?%})')


@functools.cache
def template_environment():
    """jinja2's sandbox, set up as transformers does."""
    def raise_exception(message):
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=['jinja2.ext.loopcontrols'])
    environment.filters['tojson'] = functools.partial(json.dumps, ensure_ascii=False)  # jinja2's escapes HTML
    environment.globals['raise_exception'] = raise_exception
    environment.globals['strftime_now'] = lambda form: datetime.now().strftime(form)
    return environment


@functools.cache
def compile_template(source):
    return template_environment().from_string(GENERATION.sub(r'\1\2with', source))


RENDERER = Kept('from formats.chat import render as answer', seconds=10, memory=1 << 30)


def render(source, messages, variables):
    """The text that a chat template makes: in a process of its own, for a stranger's may never end."""
    return compile_template(source).render(messages=messages, **variables)


def variables_read(source):
    """The names of what a chat template reads."""
    environment = template_environment()
    source = GENERATION.sub(r'\1\2with', source)
    return meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)


def as_template_reads(message):
    """A chat message less its entries that are None, its reasoning under the names that templates know."""
    message = {key: value for key, value in message.items() if value is not None}
    for name in REASONING:
        if name in message:
            return {'thinking': message[name]} | message | {'reasoning_content': message[name]}
    return message


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
