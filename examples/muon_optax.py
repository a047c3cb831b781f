"""Muon for optax; the script compares the loss of a small network with optax.contrib.muon."""

import collections
import functools

import digits
import jax
import jax.numpy as jnp
import optax

import polarlib
from polarlib import norms

MuonState = collections.namedtuple("MuonState", "count mu coefficients")


def scale_by_muon(schedule="jordan", steps=None, beta=0.95, nesterov=True, rule="jordan", **how):
    """Return orthogonalised momentum times norms.update_scale; `how` is for orthogonalize_all.

    The last axis is the fan-out and all others the fan-in, as in Flax: matrices (in, out) and
    kernels of convolutions (h, w, in, out). Other parameters need another transformation.
    """
    s = polarlib.schedule(schedule, steps=steps)
    if s.normalisation != "frobenius":
        raise ValueError(f"an array of coefficients is for frobenius, not {s.normalisation!r}")
    first = [c / s.input_safety ** (2 * i + 1) for i, c in enumerate(s.steps[0])]

    def init(params):
        if wrong := [p.shape for p in jax.tree.leaves(params) if p.ndim < 2]:
            raise ValueError(f"Muon needs matrices or kernels, got shape {wrong[0]}; mask it")
        coefficients = jnp.array([first, *s.steps[1:]])
        return MuonState(jnp.zeros([], jnp.int32), optax.tree.zeros_like(params), coefficients)

    def update(grads, state, params=None):
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, beta, 1)
        if nesterov:
            ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
            now = optax.tree.bias_correction(grads, beta, count)
            found = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        else:
            found = optax.tree.bias_correction(mu, beta, count)
        leaves, tree = jax.tree.flatten(found)
        matrices = [x.reshape(-1, x.shape[-1]) for x in leaves]
        made = polarlib.orthogonalize_all(matrices, schedule=state.coefficients, **how)
        scales = [norms.update_scale(*q.shape[::-1], rule) for q in made]
        made = [(c * q).reshape(x.shape) for c, q, x in zip(scales, made, leaves, strict=True)]
        return jax.tree.unflatten(tree, made), MuonState(count, mu, state.coefficients)

    return optax.GradientTransformation(init, update)


def muon(learning_rate, weight_decay=0.0, **how):
    """Muon for parameters of two dimensions and more, Adam for the others, as optax.contrib."""
    decay = optax.add_decayed_weights(weight_decay)
    matrices = optax.chain(scale_by_muon(**how), decay, optax.scale_by_learning_rate(learning_rate))
    others = optax.adam(learning_rate, nesterov=how.get("nesterov", True))
    kinds = functools.partial(jax.tree.map, lambda p: p.ndim > 1)
    return optax.partition({True: matrices, False: others}, kinds)


def train(optimizer, steps=41):
    x, y = digits.task()
    layers = [jnp.asarray(w.T) for w in digits.weights()]

    def step(carry, _):
        layers, state = carry
        value, grads = jax.value_and_grad(lambda ws: digits.loss([w.T for w in ws], x, y))(layers)
        updates, state = optimizer.update(grads, state, layers)
        return (optax.apply_updates(layers, updates), state), value

    run = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=steps), donate_argnums=(0, 1))
    return run(layers, optimizer.init(layers))[1].tolist()


if __name__ == "__main__":
    theirs = optax.contrib.muon(0.02, weight_decay=0.1)
    digits.show({"muon_optax.py": train(muon(0.02, 0.1)), "optax.contrib.muon": train(theirs)})
