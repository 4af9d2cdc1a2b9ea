# Products of two- and three-digit numbers, with a calculator that a completion may ask: <<57*430>> is answered.
def right(text, product, **record):
    """Whether the last word, which the policy has to write itself, is the product."""
    return float(text.split(' ')[-1] == product)


task = 'completion'
dataset = 'products'
environment = 'calculator'
rewards = [right]
block_size = 40
max_new_tokens = 30
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
max_iters = 150

eval_interval = 150
eval_prompts_n = 500
save_interval = 150
out_dir = 'out-tools'
