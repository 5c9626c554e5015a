"""Which fault a model's errors come from most, from a handful of numbers.

features destroyed          an encoder that no longer gives what it gave when the old tasks were learned
bias to new (old) classes   logits of the newest classes are too high (low): one constant undoes half of the error
features kept, heads lost   new linear heads on the same features undo half of the error
within-task                 most errors are between classes of one task, and new heads do not undo them
tasks not told apart        most errors are between tasks, and neither constant nor new heads undo them
healthy                     few errors
"""

from dataclasses import dataclass
from typing import NamedTuple

HEALTHY, DESTROYED, HEADS = "healthy", "features destroyed", "features kept, heads lost"
BIAS, OLD_BIAS = "bias to new classes", "bias to old classes"
WITHIN, BETWEEN = "within-task", "tasks not told apart"
FEW = 5.0  # percent of errors
WORTH = 5.0  # points by which a probe of trained features must beat one of untrained ones to say anything
HALF = 0.5
APART = 0.3  # CKA below which features have little in common
NONE = float("nan")


@dataclass(frozen=True)
class Evidence:
    """After one task, in percent of test images; NaN for what is not known.

    within, newer, older: the parts of the error. shifted: accuracy if the best constant is subtracted from the newest task's
    logits, constant: this one.
    own, probe: accuracy of the model and of new linear heads on the same images. then, now, untrained: accuracy of a linear
    probe on the images of old tasks, by the features that each had when it was learned, by those of now, and by those of a
    model that was never trained, always among the same classes. cka: mean over the old tasks, in [0, 1].
    """

    within: float
    newer: float
    older: float
    shifted: float = NONE
    constant: float = 0.0
    own: float = NONE
    probe: float = NONE
    then: float = NONE
    now: float = NONE
    untrained: float = NONE
    cka: float = NONE

    @property
    def error(self) -> float:
        return self.within + self.newer + self.older

    @property
    def by_constant(self) -> float:
        """Points of error that the constant undoes, from 0; NaN if not known."""
        return _positive(self.shifted - (100 - self.error))

    @property
    def by_heads(self) -> float:
        """Points of error that new heads undo, from 0; NaN if not known."""
        return _positive(self.probe - self.own)

    @property
    def kept(self) -> float:
        """The share of what training had given the features that is still there; NaN if training gave too little to say."""
        given = self.then - self.untrained
        return (self.now - self.untrained) / given if given >= WORTH else NONE


class Verdict(NamedTuple):
    name: str
    sentence: str


def diagnosis(evidence: Evidence) -> Verdict:
    """The fault that dominates, and why, with numbers. What is not known does not count."""
    e = evidence
    if e.error <= FEW:
        return Verdict(HEALTHY, f"{e.error:.1f} % of the answers are wrong: no fault dominates.")
    half = HALF * e.error
    if _lost(e):
        return Verdict(DESTROYED, _of_features(e))
    if e.by_constant >= half:
        name, way = (BIAS, "high") if e.constant > 0 else (OLD_BIAS, "low")
        return Verdict(
            name,
            f"Of {e.error:.1f} points of error, one constant on the logits of the newest task undoes {e.by_constant:.1f}: the "
            f"images are still told apart, but the newest classes score too {way} beside the old ones.",
        )
    if e.by_heads >= half:
        return Verdict(
            HEADS,
            f"New linear heads on the same features answer {e.probe:.1f} % rightly where the model's own answer {e.own:.1f} %: "
            "what tells the classes apart is still in the features, and the classifiers no longer fit them.",
        )
    known = "" if e.probe == e.probe else " Whether features or heads are at fault takes checkpoints and data to say."
    little = "" if known else f" New linear heads on the same features undo {e.by_heads:.1f}."
    if e.within >= half:
        told = f"{e.within:.1f} of {e.error:.1f} points of error are between classes of the same task."
        return Verdict(WITHIN, told + little + known)
    told = f"{e.newer + e.older:.1f} of {e.error:.1f} points of error are between tasks ({e.newer:.1f} towards newer ones)"
    constant = "." if e.by_constant != e.by_constant else f", and one constant undoes {e.by_constant:.1f} of them."
    return Verdict(BETWEEN, told + constant + little + known)


def _lost(e: Evidence) -> bool:
    """Whether the features no longer give what they gave."""
    return e.kept < HALF if e.kept == e.kept else e.cka < APART


def _of_features(e: Evidence) -> str:
    moved = f"; CKA with the features of then is {e.cka:.2f}" if e.cka == e.cka else ""
    return (
        f"A linear probe answers {e.now:.1f} % of the old tasks' images rightly, where the features of when they were learned "
        f"gave {e.then:.1f} % and untrained ones give {e.untrained:.1f} %{moved}: new heads alone would not bring them back."
    )


def _positive(points: float) -> float:
    return max(0.0, points) if points == points else NONE
