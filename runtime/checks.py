"""What can be refused before any time is spent: settings that train_grpo.py does not know, that contradict each other, or that would fail later."""
import json
import os

from grpo import ADVANTAGES, KL_ESTIMATORS, LOSS_TYPES, REFERENCE_MODES
from judge import LAMBDA_RULES
from mirror import DIVERGENCES, MIRROR_WEIGHTINGS
from nla import MODES, POOLINGS


def check_settings(s):
    """s: the settings of train_grpo.py by their names. Raises ValueError and FileNotFoundError, one line each."""
    for key, allowed in (('task', ('fill_in', 'completion', 'nla', 'alignment')), ('lambda_rule', LAMBDA_RULES), ('reward_combination', ('rewards', 'advantages')), ('nla_reward', ('mse', 'log_mse', 'cosine')), ('injection_mode', MODES),
                         ('critic_pooling', POOLINGS), ('critic_head', ('linear', 'mlp')), ('critic_target_norm', ('standard', 'unit')), ('loss_type', LOSS_TYPES), ('divergence', DIVERGENCES), ('optimizer', ('adamw', 'es')), ('mirror_weighting', MIRROR_WEIGHTINGS), ('advantage', ADVANTAGES), ('kl_estimator', KL_ESTIMATORS),
                         ('reference_mode', REFERENCE_MODES), ('init_from', ('generator', 'resume')), ('lr_schedule', ('cosine', 'linear', 'constant')),
                         ('precision', ('auto', 'fp32', 'bf16', 'fp16')), ('too_long', ('error', 'drop')), ('reward_errors', ('raise', 'drop'))):
        if getattr(s, key) not in allowed:
            raise ValueError(f"{key} is {getattr(s, key)!r}; it must be one of {', '.join(allowed)}")
    if s.group_size < 2:
        raise ValueError(f"group_size is {s.group_size}: a group's advantage compares its answers, so it needs at least 2 (8 is a good start)")
    for key in ('block_size', 'batch_size', 'es_pairs', 'num_epochs_per_rollout', 'unmask_steps', 'max_new_tokens', 'reference_update_freq',
                'critic_train_epochs', 'score_iters', 'activations_n', 'activation_context', 'eval_prompts_n', 'eval_batch_size', 'eval_samples', 'eval_interval', 'log_interval', 'hist_interval', 'save_interval', 'max_bad_steps'):
        if getattr(s, key) < 1:
            raise ValueError(f"{key} is {getattr(s, key)}: it must be at least 1")
    if s.temperature <= 0 or not 0 < s.top_p <= 1 or s.top_k < 0:
        raise ValueError(f"temperature is {s.temperature}, top_p {s.top_p} and top_k {s.top_k}: temperature must be above 0, top_p above 0 and at most 1, top_k at least 0")
    for key in ('micro_batch_size', 'rollout_batch_size', 'train_prompts_n'):
        if getattr(s, key) is not None and getattr(s, key) < 1:
            raise ValueError(f"{key} is {getattr(s, key)}: it must be at least 1, or None for all")
    for key in ('ema_alpha', 'pretrain_until'):
        if not 0 <= getattr(s, key) <= 1:
            raise ValueError(f"{key} is {getattr(s, key)}: it must be between 0 and 1")
    if s.init_from == 'resume' and not os.path.exists(os.path.join(s.out_dir, 'ckpt.pt')):
        raise FileNotFoundError(f"there is no {os.path.join(s.out_dir, 'ckpt.pt')} to resume from: name the run's out_dir, or leave --init_from=resume away to start one")
    if s.init_from == 'resume' and os.path.exists(os.path.join(s.out_dir, 'config.json')):
        with open(os.path.join(s.out_dir, 'config.json'), encoding='utf-8') as f:
            began_with = json.load(f)
        if began_with['task'] != s.task:
            raise ValueError(f"the run in {s.out_dir} has task {began_with['task']!r} and task is {s.task!r} now: give the config it began with, or name another out_dir")
        if bool(began_with['lora_r']) != bool(s.lora_r):
            raise ValueError(f"the run in {s.out_dir} has lora_r {began_with['lora_r']} and lora_r is {s.lora_r} now: adapters cannot come or go on the way")
    if s.dual_clip is not None and s.dual_clip <= 1:
        raise ValueError(f"dual_clip is {s.dual_clip}: it must be above 1, or None")
    if s.load_in_8bit and not s.lora_r:
        raise ValueError("load_in_8bit freezes the weights, so something else has to learn: set lora_r, for instance --lora_r=16")
    if s.task == 'fill_in' and (s.lora_r or s.top_k):
        raise ValueError(f"task fill_in takes neither lora_r ({s.lora_r}) nor top_k ({s.top_k}): its models are small, and top_p is there")
    if s.reference_offload and s.reference_mode in ('ema', 'periodic'):
        raise ValueError(f"reference_offload keeps the reference away from the policy, and reference_mode {s.reference_mode!r} moves it at each step: choose one")
    if s.divergence != 'kl' and (s.reference_mode == 'none' or s.mirror_coefficient < 0):
        raise ValueError(f"divergence {s.divergence!r} compares with a reference: reference_mode ({s.reference_mode!r}) must not be 'none', and mirror_coefficient ({s.mirror_coefficient}) at least 0")
    if s.divergence != 'kl' and (s.kl_estimator == 'exact') != (s.mirror_weighting == 'full'):
        raise ValueError(f"kl_estimator is {s.kl_estimator!r} and mirror_weighting {s.mirror_weighting!r}: 'full' goes with 'exact', which keeps what whole distributions are made of, and 'token' and 'is' with k1, k2 or k3")
    if s.mirror_weighting == 'full' and s.divergence not in ('kl', 'prob_l2', 'prob_l2kl', 'neural_mirror'):
        raise ValueError(f"mirror_weighting 'full' sums over probabilities, and divergence {s.divergence!r} is one of log-probs: take token")
    if s.mirror_checkpoint and s.divergence != 'neural_mirror':
        raise ValueError(f"mirror_checkpoint is for divergence 'neural_mirror', and divergence is {s.divergence!r}")
    if s.optimizer == 'es' and (s.kl_beta or s.divergence != 'kl' or s.entropy_coef or s.advantage == 'gae' or s.es_sigma <= 0):
        raise ValueError(f"optimizer es sees rewards alone: kl_beta ({s.kl_beta}) and entropy_coef ({s.entropy_coef}) must be 0, divergence ({s.divergence!r}) kl, advantage ({s.advantage!r}) not gae, and es_sigma ({s.es_sigma}) above 0")
    if s.kl_in_reward and (s.kl_beta <= 0 or s.reference_mode == 'none' or s.kl_estimator == 'exact'):
        raise ValueError(f"kl_in_reward takes kl_beta (now {s.kl_beta}) times the sampled tokens' log-ratio off the reward: kl_beta must be above 0, reference_mode ({s.reference_mode!r}) not 'none', kl_estimator ({s.kl_estimator!r}) one of k1, k2, k3")
    if s.reward_combination == 'advantages' and (s.kl_in_reward or s.advantage == 'gae' or s.optimizer == 'es'):
        raise ValueError(f"reward_combination 'advantages' compares each reward by itself: kl_in_reward ({s.kl_in_reward}) must be False, advantage ({s.advantage!r}) not gae, optimizer ({s.optimizer!r}) not es")
    if s.advantage == 'gae' and s.task == 'fill_in':
        raise ValueError("advantage gae needs a value for each token of an answer, and the slots of task fill_in share theirs: take grpo, dr_grpo, batch or rloo")
    if s.kl_beta > 0 and s.kl_estimator == 'k1' and not s.kl_in_reward and int(os.environ.get('RANK', 0)) == 0:
        print("warning: k1 in the loss has zero gradient on average, it only adds noise; k2 or exact do what is meant")
    if s.shard and (s.optimizer != 'adamw' or s.load_in_8bit or s.reference_offload or s.precision == 'fp16' or s.compile):
        raise ValueError(f"shard spreads one model's weights: optimizer ({s.optimizer}) must be adamw, load_in_8bit ({s.load_in_8bit}), reference_offload ({s.reference_offload}) and compile ({s.compile}) off, and precision ({s.precision}) not fp16")
    if s.rollout_batch_size and s.shard and (s.task == 'nla' or not s.gather_to_sample):
        raise ValueError("rollout_batch_size works out rewards beside the sampling, and with gather_to_sample False, or a sharded critic (task nla), all ranks must keep step: leave one of them")
    if s.dynamic_sampling < 0 or s.dynamic_sampling and (s.shard or s.optimizer == 'es' or s.advantage == 'gae' or s.task == 'alignment'):
        raise ValueError(f"dynamic_sampling is {s.dynamic_sampling}: it must be at least 0, and 0 with shard ({s.shard}), whose ranks keep step, with optimizer es ({s.optimizer}), with advantage gae ({s.advantage}), which learns from every group, and with task alignment ({s.task}), whose lambda follows the cost of all answers")
    if not 0 <= s.overlong_penalty <= s.max_new_tokens or s.overlong_penalty and (s.task not in ('completion', 'alignment') or s.reward_combination == 'advantages' or s.optimizer == 'es'):
        raise ValueError(f"overlong_penalty is {s.overlong_penalty}: it must be between 0 and max_new_tokens ({s.max_new_tokens}), and 0 unless task ({s.task}) is completion or alignment, reward_combination ({s.reward_combination}) rewards and optimizer ({s.optimizer}) adamw")
    if s.shard and 'RANK' not in os.environ:
        raise ValueError("shard spreads the model over processes, and this is one alone: start it with torchrun --standalone --nproc_per_node=N")
