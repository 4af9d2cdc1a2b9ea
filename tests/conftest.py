import os
import sys
import tempfile

os.environ.setdefault('OMP_NUM_THREADS', '1')  # two test processes share the cores, and each starts more

import pytest
import torch

import warm

if not torch.cuda.is_available():
    os.environ.setdefault('TRITON_INTERPRET', '1')  # before any kernel is defined: they run on the CPU then


def pytest_configure(config):
    """Each test process has its server of warm Pythons."""
    if sys.platform == 'linux' and (hasattr(config, 'workerinput') or not config.getoption('numprocesses', None)):
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        warm.start(folder.name)


# The files whose tests start processes, the longest first.
INTEGRATION = ['test_faults', 'test_train_grpo', 'test_ranks', 'test_nla', 'test_alignment', 'test_readme', 'test_sandbox', 'test_es',
               'test_config', 'test_hacking', 'test_report', 'test_fuzz', 'test_console', 'test_data', 'test_trackers', 'test_walkthrough',
               'test_gpu_path']


def pytest_collection_modifyitems(items):
    """Every test is integration or unit. The long ones come first, so that no core is idle in the end."""
    for item in items:
        item.add_marker('integration' if item.path.stem in INTEGRATION else 'unit')
        if item.get_closest_marker('gpu') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='no GPU'))
    places = {name: place for place, name in enumerate(INTEGRATION)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture
def file(tmp_path):
    """file(name, text or bytes) writes a file and gives its path."""
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)
    return write


@pytest.fixture(scope='session')
def tiny_qwen(tmp_path_factory):
    """A Hugging Face folder of Qwen2's shape, with random weights, bytes as tokens and a chat template."""
    tokenizers, transformers = (pytest.importorskip(name, reason='requirements-dev.txt has it') for name in ('tokenizers', 'transformers'))
    folder = tmp_path_factory.mktemp('tiny') / 'qwen'
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer, bpe.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=['<|im_start|>', '<|im_end|>'], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(['Ann has 3 apples and buys 4 more. How many has she?', '3 + 4 = <<3+4=7>>7\n#### 7'], trainer)
    template = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|"
               ">\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token='<|im_end|>', chat_template=template).save_pretrained(folder)
    config = transformers.Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def pytest_terminal_summary(terminalreporter):
    """What tests/test_faults.py tried and survived."""
    survived = [
        value
        for report in terminalreporter.stats.get('passed', [])
        if report.when == 'call'
        for name, value in report.user_properties
        if name == 'survived'
    ]
    if survived:
        terminalreporter.section('tried and survived')
        for line in survived:
            terminalreporter.write_line('  ' + line)
