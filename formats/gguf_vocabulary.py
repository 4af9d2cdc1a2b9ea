"""The tokenizer inside a .gguf file, byte-level BPE, as the files of a Hugging Face folder."""
import json

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

from formats.text_files import first_line
from formats.weights import open_gguf, values_under


def split_by(expression):
    return [Split(Regex(expression), 'isolated'), ByteLevel(add_prefix_space=False, use_regex=False)]


# tokenizer.ggml.pre -> how the model's tokenizer.json cuts a text into pieces
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
GPT2 = ByteLevel(add_prefix_space=False)
CUTS = {'gpt-2': [GPT2], 'smollm': [Digits(individual_digits=True), GPT2], 'llama-bpe': split_by(LLAMA3),
        'qwen2': split_by(LLAMA3.replace(r'\p{N}{1,3}', r'\p{N}'))}

CONTROL, USER_DEFINED, UNUSED = 3, 4, 5  # tokenizer.ggml.token_type
ROLES = {'bos_token': 'ggml.bos_token_id', 'eos_token': 'ggml.eos_token_id',
         'pad_token': 'ggml.padding_token_id', 'unk_token': 'ggml.unknown_token_id'}
ENDS = ('ggml.eos_token_id', 'ggml.eot_token_id', 'ggml.eom_token_id')  # of a text, a turn, a message


def read_vocabulary(path):
    """{file name: text} of the file's tokenizer. Raises ValueError, ImportError without gguf."""
    told = values_under(open_gguf(path), 'tokenizer.', path)
    kind, pre = told.get('ggml.model'), told.get('ggml.pre')
    if kind != 'gpt2' or pre not in list(CUTS):
        raise ValueError(f"{path} has a tokenizer {kind!r} with the pieces {pre!r}, not gpt2 with "
                         f"{', '.join(CUTS)}: take the model's Hugging Face folder")
    try:
        texts = dict(enumerate(told['ggml.tokens']))
        roles = {role: texts[told[key]] for role, key in ROLES.items() if key in told}
        package = make_package(told, pre, texts, roles)
    except Exception as e:  # values of other types, and bare Exceptions of the package
        raise ValueError(f"{path}: its tokenizer is broken ({type(e).__name__}: {first_line(e)})") from None
    config = {'tokenizer_class': 'PreTrainedTokenizerFast', 'clean_up_tokenization_spaces': False, **roles}
    if 'chat_template' in told:
        config['chat_template'] = told['chat_template']
    ends = {'eos_token_id': [told[key] for key in ENDS if key in told]}
    return {'tokenizer.json': package.to_str(), 'tokenizer_config.json': json.dumps(config),
            'generation_config.json': json.dumps(ends)}


def make_package(told, pre, texts, roles):
    """The tokenizers.Tokenizer of what the file says; texts {id: token}, roles {role: token}."""
    kinds = dict(zip(texts, told.get('ggml.token_type', [1] * len(texts)), strict=True))
    vocab = {text: i for i, text in texts.items() if kinds[i] != UNUSED}
    merges = [tuple(merge.split(' ')) for merge in told['ggml.merges']]
    package = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=pre == 'llama-bpe'))
    package.pre_tokenizer, package.decoder = Sequence(CUTS[pre]), decoders.ByteLevel()
    if pre == 'qwen2':
        package.normalizer = normalizers.NFC()
    package.add_tokens([AddedToken(text, special=kinds[i] == CONTROL, normalized=False)
                        for i, text in texts.items() if kinds[i] in (CONTROL, USER_DEFINED)])
    # llama-bpe begins a prompt with a token unless the file says no
    begins, ends = told.get('ggml.add_bos_token', pre == 'llama-bpe'), told.get('ggml.add_eos_token', False)
    before = [roles['bos_token']] if begins and 'bos_token' in roles else []
    after = [roles['eos_token']] if ends and 'eos_token' in roles else []
    if before or after:
        special_tokens = [(text, vocab[text]) for text in before + after]
        package.post_processor = processors.TemplateProcessing(
            [*before, '$A', *after], [*before, '$A', '$B', *after], special_tokens)
    return package
