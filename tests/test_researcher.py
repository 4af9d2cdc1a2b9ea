"""
A researcher's path: a JSONL as TRL has it, a reward as TRL has it, a small Qwen2 with a chat template and two end tokens, LoRA; train,
stop, go on, export; and the greedy text is the same in transformers (merged) and in peft (adapter).
"""
import json
import os
import shutil
import subprocess

import pytest
import torch

from test_train_grpo import ROOT, run
from warm import PYTHON

pytest.importorskip('transformers', reason='the oracle: pip install -r requirements-dev.txt')
peft = pytest.importorskip('peft', reason='the oracle of adapter/: pip install -r requirements-dev.txt')
import transformers  # noqa: E402

CONFIG = """
def reward_digits(completions, answer, **kwargs):
    scores = []
    for completion, right in zip(completions, answer):
        text = completion[0]['content']
        scores.append(sum(c.isdigit() for c in text) / (1 + len(text)) + float(right in text))
    return scores

rewards = [reward_digits]
task = 'completion'
train_prompts = 'train.jsonl'
eval_prompts_n = 4
lora_r = 4
lora_alpha = 8
lora_targets = ['q_proj', 'v_proj', 'down']
max_new_tokens = 12
batch_size = 4
group_size = 4
eval_samples = 2
learning_rate = 3e-2
warmup_iters = 0
log_interval = 1
save_interval = 1
device = 'cpu'
precision = 'fp32'
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory, tiny_qwen):
    """The Qwen2 of conftest.py, whose generation_config.json lists two end tokens, and 20 questions."""
    folder = tmp_path_factory.mktemp('researcher')
    shutil.copytree(tiny_qwen, folder / 'qwen')
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / 'qwen')
    ends = tokenizer.convert_tokens_to_ids(['<|im_end|>', '<|im_start|>'])
    transformers.GenerationConfig(eos_token_id=ends).save_pretrained(folder / 'qwen')
    with open(folder / 'train.jsonl', 'w') as f:
        for a in range(4):
            for b in range(5):
                question = {'role': 'user', 'content': f'Ann has {a} apples and buys {b} more. How many has she?'}
                f.write(json.dumps({'prompt': [question], 'answer': str(a + b)}) + '\n')
    (folder / 'mine.py').write_text(CONFIG)
    return folder


def greedy(model, tokenizer, question):
    """The text of a chat's answer, as transformers writes it."""
    messages = [{'role': 'user', 'content': question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    unused = list(range(len(tokenizer), model.config.vocab_size))  # ids that the model embeds and the tokenizer lacks: never sampled here
    out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, suppress_tokens=unused)
    return tokenizer.decode(out[0, len(ids):], skip_special_tokens=True)


def test_from_the_data_to_a_model_for_others(folder):
    start = ['mine.py', '--generator_checkpoint=qwen', '--out_dir=out']
    done = run(folder, *start, '--max_iters=3')
    assert done.returncode == 0, done.stderr
    done = run(folder, *start, '--max_iters=6', '--init_from=resume')
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in open(folder / 'out' / 'metrics.jsonl')]
    assert [row['iter'] for row in metrics] == list(range(7)) and metrics[0]['mean_reward'] > 0
    refused = run(folder, *start, '--max_iters=9', '--init_from=resume', '--lora_alpha=32')
    assert refused.returncode and 'lora_alpha 8.0 and it is 32.0 now' in refused.stderr
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    done = subprocess.run([PYTHON, '-m', 'tools.export', 'out', 'mine'], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {'config.json', 'model.safetensors', 'tokenizer.json', 'chat_template.jinja', 'adapter'} <= set(os.listdir(folder / 'mine'))
    generation = [json.loads(open(folder / name / 'generation_config.json').read()) for name in ('mine', 'qwen')]
    assert generation[0]['eos_token_id'] == generation[1]['eos_token_id'] and len(generation[0]['eos_token_id']) == 2

    # AutoTokenizer would cut digits as the real Qwen2 does, whatever tokenizer.json says
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder / 'mine')
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / 'mine').eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / 'qwen').eval()
    adapted = peft.PeftModel.from_pretrained(base, folder / 'mine' / 'adapter').eval()
    question = 'Ann has 3 apples and buys 4 more. How many has she?'
    asked = [f'--prompt={question}', '--chat_template=True', '--temperature=0', '--max_new_tokens=12', '--device=cpu',
             '--precision=fp32']
    said = [run(folder, f'--checkpoint={name}', *asked, script='sample.py') for name in ('mine', 'out/ckpt.pt', 'mine/adapter')]
    assert all(one.returncode == 0 for one in said), said
    wanted = greedy(merged, tokenizer, question)
    assert greedy(adapted, tokenizer, question) == wanted
    assert [one.stdout for one in said] == [wanted + '\n'] * 3
    with adapted.disable_adapter():  # training has changed what it says
        assert greedy(adapted, tokenizer, question) != wanted


def test_an_adapter_is_a_start_to_go_on_from(folder):
    """
    With r and alpha of peft's own folder. It starts as what peft computes; ratio 1 and KL 0 at iteration 0, for the reference is the
    start with its adapter, and away from 0 afterwards; resumed and exported it is on the same base.
    """
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / 'qwen')
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=['q_proj', 'o_proj'], task_type='CAUSAL_LM')
    theirs = peft.get_peft_model(base, config)
    theirs.base_model.model.name_or_path = 'qwen'
    torch.manual_seed(0)
    for name, p in theirs.named_parameters():
        if 'lora_B' in name:
            torch.nn.init.normal_(p, std=0.3)
    theirs.peft_config['default'].base_model_name_or_path = 'qwen'
    theirs.save_pretrained(folder / 'sft')
    start = ['mine.py', '--generator_checkpoint=sft', '--out_dir=on', '--kl_beta=0.1']
    asked = run(folder, *start, '--max_iters=2')
    assert asked.returncode != 0 and 'lora_r is 4 and the adapters of sft have 2' in asked.stderr
    with open(folder / 'mine.py') as f:
        plain = ''.join(line for line in f if not line.startswith('lora_'))
    (folder / 'plain.py').write_text(plain)
    start[0] = 'plain.py'
    done = run(folder, *start, '--max_iters=2')
    assert done.returncode == 0 and 'going on with the adapters of sft: r 2, alpha 6, on q, o' in done.stdout, done.stderr
    rows = [json.loads(line) for line in open(folder / 'on' / 'metrics.jsonl')]
    assert abs(rows[0]['mean_kl']) < 1e-9 and abs(rows[0]['ratio_mean'] - 1 if 'ratio_mean' in rows[0] else 0) < 1e-9
    assert rows[1]['mean_kl'] > 1e-6 and rows[0]['sampler_gap_max'] < 1e-4
    done = run(folder, *start, '--max_iters=3', '--init_from=resume')
    assert done.returncode == 0, done.stderr
    written = json.loads(open(folder / 'on' / 'adapter' / 'adapter_config.json').read())
    assert (written['base_model_name_or_path'], written['r'], written['lora_alpha']) == ('qwen', 2, 6.0)
    tokens = torch.randint(300, (2, 9))
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder / 'on' / 'export').eval()
    again = transformers.AutoModelForCausalLM.from_pretrained(folder / 'qwen').eval()
    adapted = peft.PeftModel.from_pretrained(again, folder / 'on' / 'adapter').eval()
    torch.testing.assert_close(merged(tokens).logits, adapted(tokens).logits, atol=1e-5, rtol=0)
    assert (merged(tokens).logits - theirs.eval()(tokens).logits).abs().max() > 1e-4
    again = run(folder, *start, '--out_dir=on', '--generator_checkpoint=on/adapter', '--max_iters=1')
    assert again.returncode and 'on/adapter lies in on, which a new run moves aside' in again.stderr
