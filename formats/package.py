"""A tokenizer.json as the package `tokenizers` reads it, and checks of the files beside it."""
import tokenizers

from formats.text_files import first_line

LARGEST_ID = 1 << 24  # no released vocabulary comes near; a file that says more is broken


def read_package(text, where):
    """The tokenizers.Tokenizer of a tokenizer.json. Raises ValueError naming the file."""
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


def added_token(entry, special=False):
    """The AddedToken of a text, or of an object with 'content' and flags; special=True overrules its flag."""
    if isinstance(entry, str):
        entry = {'content': entry}
    flags = {key: bool(entry.get(key)) for key in ('single_word', 'lstrip', 'rstrip')}
    special = special or bool(entry.get('special'))
    normalized = bool(entry.get('normalized', not special))
    return tokenizers.AddedToken(entry['content'], special=special, normalized=normalized, **flags)


def around(package):
    """The ids that the post-processor puts (before, after) a text in transformers: a BOS, an EOS, a [CLS]."""
    for text in ('a', *package.get_vocab()):  # the first that has a token
        try:
            encoding = package.encode(text)
        except Exception:  # the package's: no [UNK] for an unknown word
            continue
        own = [i for i, added in enumerate(encoding.special_tokens_mask) if not added]
        if own:
            return tuple(encoding.ids[:own[0]]), tuple(encoding.ids[own[-1] + 1:])
    return (), ()


def check_config(config, eos, path):
    """Raises ValueError unless what is read of tokenizer_config.json, and the eos ids, have their types."""
    added, template = config.get('added_tokens_decoder', {}), config.get('chat_template')
    more = [config.get(key) for key in ('additional_special_tokens', 'extra_special_tokens')]
    fits = {
        'added_tokens_decoder': isinstance(added, dict) and all(
            i.isdecimal() and len(i) < 10 and is_named(token, 'content') for i, token in added.items()),
        'chat_template': isinstance(template, (str, type(None))) or isinstance(template, list) and all(
            is_named(entry, 'name', 'template') for entry in template),
        'extra_special_tokens': all(isinstance(tokens, (list, dict, type(None))) for tokens in more),
        'eos_token_id': all(type(i) is int for i in eos)}
    wrong = [key for key, right in fits.items() if not right]
    if wrong:
        raise ValueError(f"{path}: the {wrong[0]} of its tokenizer is not as transformers writes it")
