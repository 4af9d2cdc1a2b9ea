"""A field as text, and the part of a text that a run's settings name."""


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
