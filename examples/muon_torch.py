"""Muon for torch; the script compares the loss of a small network with torch.optim.Muon."""

import digits
import torch

from polarlib import norms, orthogonalize_all

RULES = {None: "jordan", "original": "jordan", "match_rms_adamw": "moonlight"}  # torch's names
OWN = {"schedule": "jordan", "steps": None, "precision": "bfloat16", "adjust_lr_fn": None}
OWN |= {"heads": 1, "convolution": True}


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon for any schedule, number format and shape, with compatible states.

    Additional options, for all or by group, are `schedule`, `steps`, `precision` of orthogonalize,
    `heads` (blocks of rows that are matrices), and `convolution` (False: 3-D are stacks).
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, **own):
        known = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov}
        if unknown := own.keys() - OWN:
            raise TypeError(f"Muon takes {', '.join(known | OWN)}, not {', '.join(unknown)}")
        super().__init__(params, known | OWN | own)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        heads, kernels = (self.param_groups[-1][name] for name in ("heads", "convolution"))
        for shape in [tuple(p.shape) for p in self.param_groups[-1]["params"]]:
            if len(shape) < 2 or shape[0 if kernels else -2] % heads:
                self.param_groups.pop()
                raise ValueError(f"Muon takes matrices in equal heads, got {shape}, heads={heads}")

    def __setstate__(self, state):
        super().__setstate__(state)  # the state may be one of torch.optim.Muon
        self.param_groups[:] = [self.defaults | group for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self._update(params, group)
        return loss

    def _update(self, params, group):
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)
        grads = [p.grad for p in params]
        updates = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(updates, grads, 1 - group["momentum"])
        if group["nesterov"]:
            updates = torch._foreach_lerp(grads, updates, group["momentum"])
        rule = RULES.get(group["adjust_lr_fn"], group["adjust_lr_fn"])
        how = {name: group[name] for name in OWN if name != "adjust_lr_fn"}
        rates = []
        for u in updates:
            *_, m, n = (u.flatten(1) if group["convolution"] else u).shape
            rates.append(group["lr"] * norms.update_scale(m // group["heads"], n, rule))
        for p, q, rate in zip(params, orthogonalize_all(updates, **how), rates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(q * rate)


def train(optimizer, steps=41, **how):
    x, y = map(torch.from_numpy, digits.task())
    layers = [torch.nn.Parameter(torch.from_numpy(w)) for w in digits.weights()]
    opt, losses = optimizer(layers, **{"lr": 0.02, **how}), []
    for _ in range(steps):
        opt.zero_grad()
        losses.append(digits.loss(layers, x, y))
        losses[-1].backward()
        opt.step()
    return [loss.item() for loss in losses]


if __name__ == "__main__":
    digits.show({"muon_torch.py": train(Muon), "torch.optim.Muon": train(torch.optim.Muon)})
