"""
Eight simulated devices
=======================

``orthogonalize`` keeps the layout of a matrix whose rows are sharded over eight devices, and agrees
with the result for a NumPy array to 1e-5. The devices exchange sums of
64 × 64 matrices, and no rows.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt

from polarlib import plot

if importlib.util.find_spec("jax") is None:
    raise SystemExit("this example needs JAX: python -m pip install 'polarlib[jax]'")

# %%
# JAX chooses its devices when it starts. The program therefore runs in a process of its own, with
# eight devices simulated on the processor. On GPUs the program is the same, without the flag.
PROGRAM = """
import json, re, jax, numpy as np, polarlib
from jax.sharding import NamedSharding, PartitionSpec as P

g = jax.random.normal(jax.random.key(0), (4096, 64))
layout = NamedSharding(jax.make_mesh((8,), ("rows",)), P("rows", None))
x = jax.device_put(g, layout)
q = polarlib.orthogonalize(x)
local = polarlib.orthogonalize(np.asarray(g))

compiled = jax.jit(polarlib.orthogonalize).lower(x).compile().as_text()
print(json.dumps({
    "layout kept": q.sharding.is_equivalent_to(layout, 2),
    "rows per device": [part.data.shape[0] for part in q.addressable_shards],
    "difference": float(abs(np.asarray(q) - local).max()),
    "sums": re.findall(r"= (\\S+) all-reduce(?:-start)?\\(", compiled),
    "gathers": len(re.findall(r"all-gather|all-to-all|collective-permute", compiled)),
}))
"""
flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
command = [sys.executable, "-c", PROGRAM]
run = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True, check=True)
found = json.loads(run.stdout)
for name, value in found.items():
    print(f"{name}: {value}")

# %%
# ``sums`` lists the shapes of what is summed over the devices. They do not depend on the number of
# rows.
shapes = [re.search(r"\[(.*?)\]", s)[1] for s in found["sums"]]
summed = [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]
bars = {"matrix": 4096 * 64, "part of a device": 512 * 64, "summed over devices": sum(summed)}

with plot.style("column"):
    fig, ax = plt.subplots(figsize=(3.3, 1.6))
    drawn = ax.barh(list(bars), list(bars.values()), color=plot.SKY)
    ax.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
    ax.set(xlabel="float32 numbers", xscale="log", xlim=(1e3, 3e6))
    ax.invert_yaxis()
    plt.show()

# %%
# The claims:
assert found["layout kept"]
assert found["rows per device"] == [512] * 8
assert found["difference"] < 1e-5
assert max(summed) == 64 * 64
assert found["gathers"] == 0
