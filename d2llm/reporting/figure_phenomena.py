"""NLI by phenomenon: how well each method tells what makes a pair hard, as area under the ROC curve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from d2llm.reporting.figures import empty, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from d2llm.reporting.figures import Data


def draw(data: Data) -> Figure:
    """A heat map a task: phenomena by methods, mean over seeds."""
    from matplotlib import pyplot

    scores = data.scores
    used = scores[
        (scores["task_type"] == "pair_classification") & (scores["metric"] == "auc") & (scores["phenomenon"] != "all")
    ]
    if used.empty:
        return empty("No pair classification task with phenomena was evaluated.")
    tasks = sorted(set(used["task"]))
    names = [*data.context.methods, *(name for name in data.context.references if name in set(used["method"]))]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(6.9, 4.3), squeeze=False, sharey=True)
    image, order = None, None
    for axis, task in zip(axes[0], tasks, strict=True):
        own = used[used["task"] == task]
        table = own.pivot_table(index="phenomenon", columns="method", values="value")[names]
        # The first task orders the rows of all.
        if order is None:
            order = table[data.context.methods].mean(axis=1).sort_values(ascending=False).index
        table = table.reindex(order)
        image = axis.imshow(table.to_numpy(), aspect="auto", cmap="cividis", vmin=0.0, vmax=1.0)
        for row, column in ((r, c) for r in range(table.shape[0]) for c in range(table.shape[1])):
            value = table.iat[row, column]
            if value == value:
                axis.text(
                    column,
                    row,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if value < 0.6 else "black",
                )
        axis.set_xticks(
            range(len(names)),
            [data.context.titles.get(n, n).split(" (")[0] for n in names],
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )
        axis.set_yticks(range(len(table)), list(table.index))
        axis.tick_params(length=0)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_title(own["task_title"].iloc[0])
    figure.colorbar(image, ax=axes, shrink=0.5, pad=0.01, label="AUC (0.5: chance)")
    note(
        figure,
        data,
        "A phenomenon of pairs that are not entailed is set against all that are, and the other way round.",
    )
    return figure
