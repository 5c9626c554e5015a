"""What the pictures of this folder share."""

from typing import Any

from matplotlib.axes import Axes


def tidy(ax: Axes, title: str, **labels: Any) -> None:
    """Give an axis its title and labels, a faint grid behind, and no frame above and to the right."""
    ax.set_title(title, fontsize=11)
    ax.set(**labels)
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
