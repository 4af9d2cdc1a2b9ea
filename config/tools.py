# Products of two numbers with a calculator, which a completion may ask: <<57*43>> is answered 2451.
#
# 2 CPU cores (AMD EPYC, fp32), seeds 1 and 2, 500 held-out products: greedy 0.158 -> 0.942 and 0.954, calls
# in 0.20 and 0.19 -> all of the completions, in 1 min 46 s with the start, then in 59 s. The same start
# without the tool, --environment=None --remake=never: 0.148 -> 0.154 and 0.166, in 12 s.
import random


def product(record):
    """Of a sum, with what the start is taught: mostly the product, else a call and a copy, with errors."""
    rng, text = random.Random(record['prompt']), record['prompt'].replace('+', '*')
    a, b = map(int, text[:-1].split('*'))
    taught = right = a * b
    if rng.random() < 0.2:
        factor = b if rng.random() < 0.7 else rng.choice(['', rng.randint(0, 99)])
        told = 'error' if factor == '' else a * factor
        taught = f'<<{a}*{factor}>>{told} {told if rng.random() < 0.7 else rng.randint(0, 9801)}'
    return {'prompt': text, 'answer': str(taught), 'product': str(right)}


def right(text, product, **record):
    """Whether the last word, which the policy has to write itself, is the product."""
    return float(text.split(' ')[-1] == product)


task = 'completion'
dataset = 'arithmetic'
column_mapping = product
environment = 'calculator'
rewards = [right]
generator_checkpoint = 'out-products/generator.pt'
block_size = 32
max_new_tokens = 24
n_layer = 3
n_head = 4
n_embd = 96
pretrain_iters = 1500
temperature = 1.0

batch_size = 64
group_size = 8
loss_type = 'dapo'
kl_beta = 0.0
learning_rate = 5e-4
min_lr = 0.0
max_iters = 100

eval_interval = 100
eval_prompts_n = 500
save_interval = 100
out_dir = 'out-tools'
