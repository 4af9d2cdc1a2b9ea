"""A tokenizer.json as the package `tokenizers` reads it, and checks of the files beside it."""
import tokenizers

from formats.text_files import first_line, parse_object

LARGEST_ID = 1 << 24  # no released vocabulary comes near; a file that says more is broken


def read_package(text, where):
    """The tokenizers.Tokenizer of a tokenizer.json. Raises ValueError naming the file."""
    model = parse_object(text, where).get('model')
    if not isinstance(model, dict) or 'vocab' not in model:
        raise ValueError(f"{where}: it has no model with a vocab: it is no Hugging Face tokenizer")
    try:
        package = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the package raises bare Exceptions
        raise ValueError(f"{where}: the package tokenizers cannot read it: {first_line(e)}") from None
    package.no_truncation()
    package.no_padding()
    largest = max(package.get_vocab().values(), default=-1)
    if largest > LARGEST_ID:
        raise ValueError(f"{where}: a token has the id {largest}; ids go up to {LARGEST_ID}")
    return package


def is_named(value, *keys):
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in keys)


def check_config(config, eos, path):
    """Raises ValueError unless what is read of tokenizer_config.json, and the eos ids, have their types."""
    where = f'{path}: tokenizer_config.json'
    added, template = config.get('added_tokens_decoder') or {}, config.get('chat_template')
    if not isinstance(added, dict) or not all(is_named(token, 'content') for token in added.values()):
        raise ValueError(f"{where}: added_tokens_decoder must give each id an object with 'content'")
    listed = isinstance(template, list) and all(is_named(t, 'name', 'template') for t in template)
    if not listed and not isinstance(template, (str, type(None))):
        raise ValueError(f"{where}: chat_template must be a text or a list of objects with name and template")
    for key, value in config.items():
        if key.endswith('_token') and isinstance(value, dict) and value and not is_named(value, 'content'):
            raise ValueError(f"{where}: {key} is {value!r}; it must be a text or an object with 'content'")
    if not all(type(i) is int for i in eos):
        raise ValueError(f"{path}: eos_token_id is {eos!r}; it must be an id or a list of ids")
