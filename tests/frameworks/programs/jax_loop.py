"""JAX, with no torch at all: a linear model, saved as safetensors."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

RATE = 1e-1

values = np.frombuffer(pathlib.Path("data.txt").read_bytes(), np.uint8)[:1700].reshape(-1, 17) % 64
inputs, target = jnp.asarray(values[:, :16] / 64), jnp.asarray(values[:, 16] % 8)
weights = {"weight": jax.random.normal(jax.random.key(1), (16, 8)), "bias": jnp.zeros(8)}


def loss(weights):
    logits = jax.nn.log_softmax(inputs @ weights["weight"] + weights["bias"])
    return -jnp.take_along_axis(logits, target[:, None], 1).mean()


step = jax.jit(jax.grad(loss))
for _ in range(6):
    weights = jax.tree.map(lambda value, gradient: value - RATE * gradient, weights, step(weights))
pathlib.Path("out").mkdir(exist_ok=True)
save_file({name: np.asarray(value) for name, value in weights.items()}, "out/model.safetensors")
