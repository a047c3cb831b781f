"""
Best degrees for a budget
=========================

Fifteen matrix products reach a worst error of 0.058 on [0.001, 1] with the degrees 5, 9, 9, 9. Five
steps of degree 5 take the same number of products and reach 0.113.
"""

import matplotlib.pyplot as plt

import polarlib
from polarlib import design, plot

# %%
# ``frontier`` returns the best degrees from 3, 5 and 9 for each number of products. A step of
# degree 9 takes four products, a step of degree 5 three.
best = [each for each in design.frontier(1e-3, 18) if each.cost >= 9]
fives = [(3 * k, design.least_error(1e-3, [5] * k)) for k in range(3, 7)]

# %%
# Published sets as points. They were designed for other intervals, formats or aims as well.
NAMES = ("jordan", "you", "polar_express", "polar_express_102", "cans", "turbo_muon")
COLOURS = (plot.ORANGE, plot.GREEN, plot.VERMILLION, plot.PURPLE, plot.SKY, plot.INK)
with plot.style("column"):
    fig, ax = plt.subplots(figsize=(3.3, 3.2))
    ax.semilogy(
        [each.cost for each in best],
        [each.error for each in best],
        "-o",
        color=plot.BLUE,
        label="degrees 3, 5, 9",
    )
    ax.semilogy(*zip(*fives, strict=True), "--.", color=plot.INK, label="degree 5")
    for name, mark, color in zip(NAMES, "sD^vPX", COLOURS, strict=True):
        s = polarlib.schedule(name)
        ax.semilogy(s.matmuls, s.error(1e-3), mark, color=color, fillstyle="none", label=name)
    ax.set(xlabel="matrix products", ylabel="worst error on [0.001, 1]")
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    plt.show()

# %%
# The claims:
fifteen = next(each for each in best if each.cost == 15)
assert fifteen.degrees == (5, 9, 9, 9)
assert round(fifteen.error, 3) == 0.058
assert round(dict(fives)[15], 3) == 0.113
