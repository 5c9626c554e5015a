"""DyTox (Douillard et al., CVPR 2022, arXiv 2111.11326): a token and a classifier for every task on one shared encoder.

Figure 2 is `continual/dytox.py`; the losses of section 3.3 are `losses.paper_terms`. A task is learned on new images and the
memory, with distillation and the divergence loss; then the memory takes in exemplars; then all but the encoder is finetuned on
the balanced memory (section 4.1).
"""

from typing import Any, ClassVar

from torch import nn

from continual import dytox
from continual.methods import Method


class DyTox(Method):
    """The paper's method; its options are those of the losses, rehearsal, finetuning and SAM sections."""

    settings: ClassVar[dict[str, Any]] = {"dytox": True, "class_attention": True}

    def build(self) -> nn.Module:
        """Make the model of figure 2 on the encoder of the options."""
        model = self.options.model
        encoder, rates = self.encoder()
        return dytox.DyTox(
            encoder,
            num_heads=model.num_heads,
            drop_path_rates=rates,
            norm=model.norm,
            ind_clf=model.ind_clf,
            head_div=self.options.loss.head_div > 0,
        )
