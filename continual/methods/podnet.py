"""PODNet's distillation (Douillard et al., ECCV 2020, arXiv 2004.13513): maps of the encoder held near the teacher's.

Its cosine classifier with several proxies is not part of it. The loss is `continual.losses.pod`.
"""

from typing import Any, ClassVar

from continual.methods.rehearsal import Rehearsal


class PODNet(Rehearsal):
    """Rehearsal with pooled maps distilled, then finetuning of the classifier on the balanced memory."""

    settings: ClassVar[dict[str, Any]] = {
        **Rehearsal.settings,
        "freeze_ft": ("sab",),
        "finetuning": "balanced",
        "bce_loss": False,
        "smoothing": 0,
        "pod": 3,
        "pod_scales": (1,),
    }
