"""Everything a run can be told: the options there are, those that a method adds, and how they are read."""

# ruff: noqa: F401  (what other modules import from here)

from continual.options.own import methods_with_options
from continual.options.parser import difference, dump, parse, parse_or_exit, replace, to_yaml
from continual.options.schema import (
    AUTO,
    BELOW_ONE,
    COUNT,
    FIELDS,
    MAY_DIFFER,
    MEAN,
    NOT_NEGATIVE,
    PATCH_ENCODERS,
    PATHS,
    PER_CALL,
    POSITIVE,
    PROBABILITY,
    SECTIONS,
    STD,
    STORED,
    AugmentOptions,
    Conflict,
    DataOptions,
    FinetuneOptions,
    LossOptions,
    ModelOptions,
    OptimOptions,
    Options,
    Range,
    RehearsalOptions,
    RunOptions,
    SamOptions,
    Section,
    check_installed,
    flat,
    method_of,
    option,
    outside,
    per_channel,
    require,
    resumed,
)
