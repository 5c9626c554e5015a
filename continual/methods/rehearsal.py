"""Plain rehearsal: new images and the memory, one growing classifier, no distillation."""

from typing import Any, ClassVar

from continual.methods.finetuning import Finetuning


class Rehearsal(Finetuning):
    """Finetuning with a memory of exemplars among the new images, as large as `memory_size` says."""

    settings: ClassVar[dict[str, Any]] = {key: value for key, value in Finetuning.settings.items() if key != "memory_size"}
