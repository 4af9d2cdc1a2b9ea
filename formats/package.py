"""A tokenizer.json as the package `tokenizers` reads it."""
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
