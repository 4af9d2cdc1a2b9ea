"""
Neural judges. Here: the sequence scorer, which tells how much of a text a machine has filled in.

A judge is frozen while a policy learns from it; reward = 1 - score. Keep a second judge, trained from another seed and
never used for reward: where the two part, the policy is learning the judge's mistakes, not the text.
"""
import torch
import torch.nn as nn

from model import GPT, GPTConfig, load_checkpoint


class Judge(nn.Module):
    """
    A bidirectional trunk that reads [CLS] + text. A slot head says of each character how likely it was replaced; the
    score is sigmoid(w . h_CLS + a * logit(mean over the text of those) + b). Evidence gathered slot by slot is learned from T
    labels a text instead of one, so the score is good after a minute where h_CLS alone needs several.
    """

    def __init__(self, config, cls_id):
        super().__init__()
        self.trunk = GPT(config)
        self.cls_id = cls_id
        self.slot_head = nn.Linear(config.n_embd, 1)
        self.score_head = nn.Linear(config.n_embd + 1, 1)
        with torch.no_grad():  # starts as: score = the share of slots that look replaced, and few do
            self.slot_head.bias.fill_(-2.0)
            self.score_head.weight.zero_()[0, -1] = 1.0
            self.score_head.bias.zero_()

    def forward(self, tokens, lengths=None):
        """tokens (N, T) right-padded, lengths (N,) or None. Returns logits of the score (N,) and of each position's being replaced (N, T)."""
        N, T = tokens.shape
        if T + 1 > self.trunk.config.block_size:
            raise ValueError(f"the judge reads texts of at most {self.trunk.config.block_size - 1} tokens and was given {T}: train a judge with a larger block_size, or lower block_size")
        cls = torch.full((N, 1), self.cls_id, device=tokens.device)
        hidden = self.trunk(torch.cat((cls, tokens), dim=1), None if lengths is None else lengths + 1)  # (N, 1 + T, D)
        slots = self.slot_head(hidden[:, 1:]).squeeze(-1)
        replaced = slots.float().sigmoid()
        if lengths is None:
            share = replaced.mean(dim=1, keepdim=True)
        else:
            share = replaced.masked_fill(torch.arange(T, device=tokens.device) >= lengths[:, None], 0.0).sum(dim=1, keepdim=True) / lengths[:, None]
        return self.score_head(torch.cat((hidden[:, 0], share.logit(eps=1e-4)), dim=1)).squeeze(-1), slots

    @torch.inference_mode()
    def score(self, tokens, lengths=None):
        """How machine-filled each text looks: (N,) in (0, 1)."""
        return self(tokens, lengths)[0].sigmoid()

    @classmethod
    def from_pretrained(cls, path, tokenizer):
        """
        The judge in a checkpoint file, on the CPU, frozen, with `quality`, how well it told held-out texts apart (auc, r2).
        Raises as load_checkpoint does, and ValueError when it was trained on another vocabulary than the tokenizer's.
        """
        checkpoint = load_checkpoint(path, 'judge')
        tokenizer.check_same(checkpoint['chars'], path)
        judge = cls(GPTConfig(**checkpoint['model_config']), tokenizer.cls_id)
        judge.load_state_dict(checkpoint['model'])
        judge.quality = checkpoint['quality']
        return judge.eval().requires_grad_(False)
