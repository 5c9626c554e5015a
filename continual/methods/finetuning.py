"""The lower bound: each task trains on its own images alone, with one growing classifier and nothing against forgetting."""

from typing import Any, ClassVar

from torch import nn

from continual.methods import Method
from continual.methods.classifier import GrowingClassifier, pooled


class Finetuning(Method):
    """One encoder and one growing classifier; the losses of the options, which are classification alone by default."""

    settings: ClassVar[dict[str, Any]] = {
        "dytox": False,
        "ind_clf": "",
        "head_div": 0,
        "freeze_task": (),
        "freeze_ft": (),
        "memory_size": 0,
        "finetuning": "",
        "auto_kd": False,
    }

    def build(self) -> nn.Module:
        """Make a GrowingClassifier on the encoder of the options."""
        return GrowingClassifier(**pooled(self.options.model, *self.encoder()))
