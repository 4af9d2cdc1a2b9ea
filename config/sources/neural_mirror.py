# Source 004, Neural Mirror GRPO with aligntune: its advanced configuration, code rewards on problems without
# tests included. Its model is Qwen/Qwen3-1.7B (generator_checkpoint) and its data openai/gsm8k (train_prompts);
# here the sums of config/neural_mirror.py. Not run at full size.
from config.neural_mirror import *

system_prompt = ''              # 'You are a helpful math tutor.', with chat_template=True
train_prompts_n = 1000          # max_samples
block_size = 1024
max_prompt_length = 768
max_new_tokens = 256            # max_completion_length
generator_checkpoint = 'out-source-neural-mirror/generator.pt'
rewards = [('code_quality', 0.3), ('code_correctness', 0.4),
           {'type': 'length', 'weight': 0.15, 'params': {'min_length': 20, 'max_length': 256}},
           ('diversity', 0.15)]

batch_size = 4                  # 16 completions x 8 gradient_accumulation_steps / 32 num_generations
group_size = 32                 # num_generations
temperature = 0.8
top_p = 0.9
mirror_coefficient = 1e-4
mirror_init_scale = 0.01
mirror_seed = 42
max_iters = 1600                # max_steps
learning_rate = 1e-5
lr_schedule = 'cosine'
warmup_iters = 10
weight_decay = 0.0
grad_clip = 1.0                 # max_grad_norm
lora_r = 64
lora_alpha = 64
lora_dropout = 0.05
lora_targets = ('q', 'k', 'v', 'o')
log_interval = 10
eval_interval = 100
save_interval = 100
wandb_project = 'nmgrpo-experiments'       # its loggers: --tensorboard --wandb_log
wandb_run_name = 'qwen3-neural-mirror-gsm8k'
out_dir = 'out-source-neural-mirror/grpo'
