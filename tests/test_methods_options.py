"""Methods by name: the settings that they imply, options of their own, and names that a script registers."""

import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
from test_options import message

from continual import options as module
from continual.errors import OptionsError
from continual.options import (
    FIELDS,
    NOT_NEGATIVE,
    POSITIVE,
    SECTIONS,
    Options,
    Section,
    difference,
    dump,
    flat,
    method_of,
    methods_with_options,
    option,
    outside,
    parse,
    parse_or_exit,
    replace,
    require,
    to_yaml,
)
from continual.registry import DATA_SETS, ENCODERS, LOSSES, METHODS, METRICS, RULES
from continual.runs.checkpoint import as_identity, differences

ROOT = Path(__file__).parent.parent
DYTOX = ["--dytox", "--class-attention"]


@dataclass(frozen=True)
class LwfOptions(Section):
    """learning without
    forgetting"""

    lwf_epochs: int = option(3, "epochs of the warm-up", POSITIVE)
    lwf_share: float | None = option(None, "share of the old; none: all", NOT_NEGATIVE)
    lwf_way: str = option("soft", "how", choices=("soft", "hard"))
    lwf_layers: tuple[int, ...] = option((1, 2), "layers")
    lwf_keep: bool = option(False, "keep 100% of it")

    def check(self) -> None:
        require(self.lwf_way == "soft" or not self.lwf_keep, "lwf_way, lwf_keep", "hard keeps nothing")


class Lwf:
    settings = {"auto_kd": True, "distillation_tau": 2, "memory_size": 0, "pod_scales": [1, 2]}  # noqa: RUF012
    Options = LwfOptions

    @classmethod
    def check(cls, options: Options) -> None:
        require(options.optim.epochs > options.own.lwf_epochs, "epochs, lwf_epochs", "warms up for longer than it trains")


class Plain:
    """A method without anything."""


@dataclass(frozen=True)
class TwoWords(Section):
    """two words"""

    lwf_plus_size: int = option(1, "size")


@pytest.fixture
def register(monkeypatch):
    """Puts a thing into a register; afterwards all are as before."""
    for register in (METHODS, ENCODERS, LOSSES, DATA_SETS, RULES, METRICS):
        monkeypatch.setattr(register, "_outside", {})
    return lambda register, name, thing=None: register.add(name, thing)


@pytest.fixture(autouse=True)
def methods(register, monkeypatch):
    """lwf and plain from outside; those of this package stand for themselves with made-up settings."""
    made_up = ModuleType("made_up")
    implied = {"dytox": {"dytox": True, "class_attention": True}, "joint": {"retrain_scratch": True, "memory_size": 0}}
    for name in METHODS.names():
        setattr(made_up, name, type(name, (), {"settings": implied.get(name, {"dytox": False})}))
    made_up.wa.settings = {"dytox": False, "weight_align": True, "distillation_tau": 2}
    made_up.icarl.settings = {"dytox": False, "nme": True}
    made_up.bic.Options = dataclass(frozen=True)(
        type("BicOptions", (Section,), {"__annotations__": {"bic_epochs": int}, "bic_epochs": option(2, "epochs", POSITIVE)})
    )
    monkeypatch.setitem(sys.modules, "made_up", made_up)
    monkeypatch.setattr(METHODS, "_builtin", {name: f"made_up:{name}" for name in METHODS.names()})
    register(METHODS, "lwf", Lwf)
    register(METHODS, "plain", Plain)
    return made_up


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "some.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


# ------------------------------------------------------------------------------------------------------ which method it is


@pytest.mark.parametrize(
    ("argv", "method"),
    [
        ([], "rehearsal"),
        (["--memory-size", "0"], "finetuning"),
        (DYTOX, "dytox"),
        ([*DYTOX, "--retrain-scratch", "--memory-size", "0"], "joint"),
        (["--retrain-scratch", "--memory-size", "0"], "joint"),
        (["--weight-align"], "wa"),
        (["--nme"], "icarl"),
        (["--pod", "3"], "podnet"),
        (["--pod", "0"], "rehearsal"),
        (["--pod", "3", "--weight-align"], "wa"),
        (["--method", "wa"], "wa"),
        (["--method", "bic", "--pod", "3"], "bic"),
        (["--method", "none", "--nme"], "icarl"),
        (["--method", "plain"], "plain"),
        ([*DYTOX, "--method", "plain"], "plain"),
    ],
)
def test_the_method_is_named_or_follows(argv, method):
    options = parse(argv)
    assert options.method == method == method_of(flat(options))
    stored = as_identity(options)
    changed = {key: value for key, value in stored.items() if key in FIELDS and value != FIELDS[key].default}
    assert method_of(stored) == method_of(changed) == method


def test_a_method_that_follows_is_not_looked_up(monkeypatch):
    monkeypatch.setattr(METHODS, "find", None)
    assert parse(["--weight-align"]).own is None and parse(DYTOX).method == "dytox"


def test_no_such_method(write):
    assert message(["--method", "wq"]).startswith("command line: method: there is no method 'wq'; the nearest is wa (")
    path = write("seed: 1\nmethod: lfw")
    told = f"{path}, line 2: method: there is no method 'lfw'; the nearest is lwf ("
    assert message(["--options", path]).startswith(told)
    assert message(["--options", path, "--method", "wa"]).startswith(told)


# --------------------------------------------------------------------------------------------------------- implied settings


def test_settings_stand_directly_below_the_layer_that_names_the_method(write):
    below = write("distillation_tau: 5\nauto_kd: false\nlr: 1\ndytox: true\nclass_attention: true", "below.yaml")
    naming = write("pod_scales: [1]\nmethod: lwf", "naming.yaml")
    options = parse(["--options", below, naming, "--memory-size", "7", "--no-dytox"])
    assert (options.loss.distillation_tau, options.loss.auto_kd, options.optim.lr) == (2.0, True, 1.0)
    assert options.loss.pod_scales == (1,) and options.rehearsal.memory_size == 7
    assert type(options.loss.distillation_tau) is float


def test_settings_lose_to_the_command_line_that_names_the_method(write):
    below = write("distillation_tau: 5\nauto_kd: false", "below.yaml")
    options = parse(["--options", below, "--distillation-tau", "3", "--method", "lwf"])
    assert (options.loss.distillation_tau, options.loss.auto_kd) == (3.0, True)


def test_only_the_method_that_wins_has_its_settings(write):
    wa, lwf = write("method: wa", "wa.yaml"), write("method: lwf", "lwf.yaml")
    assert set(difference(parse(["--options", wa, lwf]), parse(["--method", "lwf"]))) == {"options"}
    assert set(difference(parse(["--options", lwf, wa]), parse(["--method", "wa"]))) == {"options"}
    assert set(difference(parse(["--options", wa, lwf, "--method", ""]), parse([]))) == {"options"}


def test_a_method_named_twice_counts_where_it_is_named_last(write):
    path = write("method: lwf\ndistillation_tau: 5")
    assert parse(["--options", path]).loss.distillation_tau == 5
    assert parse(["--options", path, "--method", "lwf"]).loss.distillation_tau == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"lr": "fast"}, "lr: expects a number, not 'fast'"),
        ({"distillation_tau": 0}, "distillation_tau: must be above 0, not 0.0"),
        ({"rehearsals": "x"}, "'rehearsals': no such option; the nearest is rehearsal"),
        ({"nme": True}, "nme, method: nme is of the method icarl, not plain"),
    ],
)
def test_settings_are_checked_and_have_a_place(monkeypatch, settings, told):
    monkeypatch.setattr(Plain, "settings", settings, raising=False)
    place = "command line (method plain) and command line" if "method" in told else "command line (method plain)"
    assert message(["--method", "plain"]) == f"{place}: {told}"


def test_a_memory_that_a_method_implies_is_global_or_distributed(monkeypatch):
    monkeypatch.setattr(Plain, "settings", {"distributed_memory": True}, raising=False)
    assert parse(["--method", "plain"]).rehearsal.global_memory is False


def test_replace_implies_settings_below_the_other_changes():
    options = parse(["--distillation-tau", "5", "--memory-size", "9"])
    changed = replace(options, memory_size=11, method="lwf")
    assert difference(options, changed)[:4] == ["method", "auto_kd", "distillation_tau", "pod_scales"]
    assert changed.rehearsal.memory_size == 11 and changed.own == LwfOptions()
    assert replace(changed, seed=1, distillation_tau=7).loss.distillation_tau == 7  # named before: not implied again
    with pytest.raises(OptionsError, match=r"changed options: method: there is no method 'wq'"):
        replace(options, method="wq")


def test_replace_takes_own_options_of_the_method_only():
    lwf = parse(["--method", "lwf", "--lwf-epochs", "5"])
    assert replace(lwf, seed=3).own == replace(lwf, method="lwf").own == LwfOptions(lwf_epochs=5)
    assert replace(lwf, lwf_layers=[4]).own == LwfOptions(lwf_epochs=5, lwf_layers=(4,))
    assert replace(lwf, method="bic", bic_epochs=4).own.bic_epochs == 4
    assert replace(lwf, method="").own is None and replace(lwf, method="plain").own is None
    with pytest.raises(OptionsError, match=r"^changed options: lwf_epochs: is of the method lwf; the method is bic$"):
        replace(lwf, method="bic", lwf_epochs=4)


# ------------------------------------------------------------------------------------------------------------- own options

OWN = ["--lwf-epochs", "5", "--lwf-share", "0.5", "--lwf-layers", "7", "--lwf_keep"]


def test_own_options_on_the_command_line_and_in_yaml(write):
    expected = LwfOptions(lwf_epochs=5, lwf_share=0.5, lwf_layers=(7,), lwf_keep=True)
    assert parse(["--method", "lwf", *OWN]).own == expected
    text = "lwf_epochs: 5\nlwf-share: 0.5\nlwf_layers: 7\nlwf_keep: on\nmethod: lwf"
    options = parse(["--options", write(text)])
    assert options.own == expected and type(options.own.lwf_share) is float
    changed = parse(["--options", write(text), "--no-lwf-keep", "--lwf-share", "none", "--lwf-layers=none"])
    assert changed.own == LwfOptions(lwf_epochs=5, lwf_layers=())
    assert parse(["--method", "lwf"]).own == LwfOptions()
    assert parse(["--method", "plain"]).own is None and parse([]).own is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lwf-epochs", "x"], "lwf_epochs: expects a whole number, not 'x'"),
        (["--lwf-epochs", "0"], "lwf_epochs: must be above 0, not 0"),
        (["--lwf-epochs"], "lwf_epochs: expected one argument"),
        (["--lwf-way", "soup"], "lwf_way: 'soup' is not one of soft, hard; the nearest is soft"),
        (["--lwf-way", "hard", "--lwf-keep"], "lwf_way, lwf_keep: hard keeps nothing"),
        (["--epochs", "2"], "epochs, lwf_epochs: warms up for longer than it trains"),
        (["--epochs", "2", "--lwf-epochs", "2"], "epochs, lwf_epochs: warms up for longer than it trains"),
        (["--lwf-epoch", "3"], "'lwf-epoch': no such option; the nearest is lwf_epochs"),
        (["--lfw-epochs", "3"], "'lfw-epochs': no such option; the nearest is lwf_epochs"),
        (["--bic-epoch", "3"], "'bic-epoch': no such option; the nearest is bic_epochs"),
        (["--bic-epochs", "3"], "bic_epochs: is of the method bic; the method is lwf"),
        (["--plain-epochs", "3"], "'plain-epochs': no such option; the nearest is "),
    ],
)
def test_own_options_are_checked_as_any_other(words, told):
    assert message(["--method", "lwf", *words]).startswith(f"command line: {told}")


def test_own_options_in_yaml_are_checked_with_their_place(write):
    path = write("method: lwf\nlwf_epochs: 0")
    assert message(["--options", path]) == f"{path}, line 2: lwf_epochs: must be above 0, not 0"
    path = write("seed: 0\nbic_epochs: 3\nmethod: bic")
    assert message(["--options", path, "--method", "wa"]) == (
        f"{path}, line 2: bic_epochs: is of the method bic; the method is wa"
    )


def test_own_options_need_their_method_by_name(methods):
    assert message(["--bic-epochs", "3"]) == "command line: bic_epochs: is of the method bic; the method is rehearsal"
    methods.wa.Options = type("O", (Section,), {"__annotations__": {"wa_norm": int}, "wa_norm": option(2, "norm")})
    methods.wa.Options = dataclass(frozen=True)(methods.wa.Options)
    assert message(["--weight-align", "--wa-norm", "1"]) == "command line: wa_norm: is of the method wa; set method: wa"


def test_a_core_key_that_begins_with_a_methods_name_stays_one(monkeypatch):
    monkeypatch.setattr(METHODS, "find", None)
    words = ["--finetuning", "balanced", "--finetuning-epochs", "3", "--no-finetuning-teacher", "--rehearsal-modes=1"]
    assert parse(words).finetune.finetuning_epochs == 3


def test_the_longest_name_has_the_key(register):
    register(METHODS, "lwf_plus", type("LwfPlus", (), {"Options": TwoWords}))
    assert parse(["--method", "lwf_plus", "--lwf-plus-size", "4"]).own == TwoWords(4)
    told = "command line: lwf_plus_size: is of the method lwf_plus; the method is lwf"
    assert message(["--method", "lwf", "--lwf-plus-size", "4"]) == told
    assert message(["--lwf-plus-epochs", "4"]).startswith("command line: 'lwf-plus-epochs': no such option; ")


def test_own_options_are_flat_stored_and_of_the_identity(tmp_path):
    options = parse(["--method", "lwf", *OWN, "--name", "x"])
    assert list(flat(options))[-5:] == [f.name for f in fields(LwfOptions)] and flat(options)["lwf_epochs"] == 5
    assert to_yaml(options).endswith("""
# learning without forgetting
lwf_epochs: 5
lwf_share: 0.5
lwf_way: soft
lwf_layers: [7]
lwf_keep: true
""")
    dump(options, tmp_path / "options.yaml")
    again = parse(["--options", str(tmp_path / "options.yaml")])
    assert difference(options, again) == ["options"] and again.own == options.own
    assert difference(options, parse(["--resume", str(tmp_path)])) == ["resume"]
    assert as_identity(options)["lwf_layers"] == [7]
    assert differences(as_identity(options), as_identity(replace(options, lwf_epochs=6))) == ["lwf_epochs"]
    told = message(["--resume", str(tmp_path), "--method", "bic"])
    assert told.startswith(str(tmp_path)) and told.endswith(": lwf_epochs: is of the method lwf; the method is bic")


@pytest.mark.parametrize("argv", [["--method", "lwf"], ["--method", "wa", "--distillation-tau", "3"], ["--method", "dytox"]])
def test_what_is_stored_is_read_back_as_it_is(write, monkeypatch, argv):
    """Whatever the method's settings have become since."""
    options = parse(argv)
    path = write(to_yaml(options))
    monkeypatch.setattr(METHODS.find(options.method), "settings", {"seed": 3, "lr": 7, "distillation_tau": 9})
    again = replace(parse(["--options", path]), options=())
    assert again == options and hash(again) == hash(options)


def test_difference_names_what_only_one_has():
    bic, lwf = parse(["--method", "bic"]), parse(["--method", "lwf", *["--memory-size", "2000"]])
    own = [f.name for f in fields(LwfOptions)]
    assert difference(lwf, parse(["--method", "lwf", "--memory-size", "2000"])) == []
    assert [key for key in difference(bic, lwf) if key not in FIELDS] == ["bic_epochs", *own]
    assert [key for key in difference(lwf, bic) if key not in FIELDS] == [*own, "bic_epochs"]


def made(frozen=True, base=Section, **own):
    """A section of the given options: name=(type, default field)."""
    kinds = {name: kind for name, (kind, _) in own.items()}
    body = {"__annotations__": kinds, **{name: default for name, (_, default) in own.items()}}
    return dataclass(frozen=frozen)(type("Own", (base,), body))


class Bare(Section):
    """Not a dataclass."""


@pytest.mark.parametrize(
    ("section", "told"),
    [
        (made(epochs=(int, option(1, "e"))), "epochs: the key must begin with bad_, and with the name of no other method"),
        (made(bad_one_x=(int, option(1, "e"))), "bad_one_x: the key must begin with bad_, and with the name of no other"),
        (made(bad_x=(int, 1)), "bad_x: must be written as option(default, help)"),
        (made(bad_x=(dict, option(None, "e"))), "bad_x: may be of bool, int, float, str, None and tuples of them"),
        (made(bad_x=(tuple, option((), "e"))), "bad_x: may be of bool, int, float, str, None and tuples of them"),
        (made(bad_x=(int, option("one", "e"))), "bad_x: expects a whole number, not 'one'"),
        (made(bad_x=(int, option(0, "e", POSITIVE))), "bad_x: must be above 0, not 0"),
        (made(frozen=False), "its Options are no frozen dataclass derived from Section"),
        (made(base=object), "its Options are no frozen dataclass derived from Section"),
        (Bare, "its Options are no frozen dataclass derived from Section"),
        (Options(), "its Options are no frozen dataclass derived from Section"),
    ],
)
def test_own_options_that_cannot_be(register, section, told):
    register(METHODS, "bad", type("Bad", (), {"Options": section}))
    register(METHODS, "bad_one")
    for argv in (["--method", "bad"], ["--bad-x", "3"]):
        assert message(argv).startswith(f"method bad: {told}")


@pytest.mark.parametrize(("method", "key"), [("embed", "embed_dim"), ("local", "local_rank")])
def test_own_options_do_not_take_a_core_key(register, method, key):
    register(METHODS, method, type("M", (), {"Options": made(**{key: (int, option(1, "e"))})}))
    assert message(["--method", method]) == f"method {method}: {key}: that key is taken; choose another"


def test_types_written_as_text(register):
    section = made(text_rate=("float | None", option(None, "rate", POSITIVE)))
    register(METHODS, "text", type("M", (), {"Options": section}))
    assert parse(["--method", "text", "--text-rate", "2"]).own.text_rate == 2.0
    assert "text_rate: expects a number or none, not 'x'" in message(["--method", "text", "--text-rate", "x"])


def test_help_has_a_group_for_each_method_with_own_options(capsys):
    assert methods_with_options() == {"bic": METHODS.find("bic").Options, "lwf": LwfOptions}
    with pytest.raises(SystemExit) as caught:
        parse(["--method", "nonsense", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "learning without forgetting: --lwf-epochs N epochs of the warm-up [3]" in out
    assert "--lwf-keep, --no-lwf-keep keep 100% of it [off]" in out and "--bic-epochs N epochs [2]" in out


def test_own_options_of_this_package_that_are_not_there_yet(monkeypatch):
    monkeypatch.setitem(METHODS._builtin, "wa", "continual.methods.nowhere:WA")
    assert "wa" not in methods_with_options()
    assert message(["--wa-x", "3"]).startswith("command line: 'wa-x': no such option; ")


# ------------------------------------------------------------------------------------------------------------------ checks


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--method bic --nme", "nme, method: nme is of the method icarl, not bic"),
        ("--method bic --weight-align", "weight_align, method: weight_align is of the method wa, not bic"),
        ("--method plain --weight-align", "weight_align, method: weight_align is of the method wa, not plain"),
        ("--method wa --retrain-scratch", "retrain_scratch, method: retrain_scratch is of the method joint, not wa"),
        ("--method dytox --no-dytox", "method, dytox: the method dytox needs dytox: true"),
        *[
            (f"--method {name} --dytox --class-attention", f"method, dytox: the method {name} needs dytox: false")
            for name in ("wa", "icarl", "podnet", "bic", "der", "finetuning", "rehearsal")
        ],
        ("--method joint --memory-size 5", "retrain_scratch, memory_size: a model made anew at each task sees all"),
        ("--method icarl --memory-size 0", "nme, memory_size: nme needs a memory; memory_size is 0"),
        ("--method lwf --head-div 1", "head_div, dytox: the divergence head reads a task token; it needs dytox"),
    ],
)
def test_what_does_not_go_with_a_method(argv, told):
    places, _, rest = message(argv.split()).partition(": ")
    assert rest.startswith(told) and "command line" in places.split(" and ")


@pytest.mark.parametrize("method", ["joint", "plain"])
def test_a_method_with_or_without_dytox(method):
    assert parse(["--method", method, *DYTOX]).model.dytox and not parse(["--method", method]).model.dytox


def test_every_method_parses_with_what_it_implies():
    for name in METHODS.names():
        options, implied = parse(["--method", name]), getattr(METHODS.find(name), "settings", {})
        assert options.method == name
        assert difference(options, replace(options, **implied)) == []


# ----------------------------------------------------------------------------------------------------- names from outside


def test_an_encoder_from_outside(register):
    assert message(["--model", "spread"]) == "command line: model: 'spread' is not convit, vit or timm:NAME"
    register(ENCODERS, "spread")
    assert parse(["--model", "spread", "--input-size", "30", "--depth", "2", "--num-heads", "7", "--pod", "1"])
    assert message(["--model", "sprad"]) == "command line: model: 'sprad' is not convit, vit, spread or timm:NAME"
    assert message(["--model", "spread", *DYTOX, "--num-heads", "7"]).startswith("command line: embed_dim, num_heads: ")
    assert message(["--model", "spread", "--pretrained"]).startswith("command line: pretrained, model: ")


def test_a_rule_from_outside(register):
    assert "'newest_all' is not one of random, closest_token," in message(["--rehearsal", "newest_all"])
    register(RULES, "newest")
    for kind in ("all", "token"):
        assert parse(["--rehearsal", f"newest_{kind}"]).rehearsal.rehearsal == f"newest_{kind}"
    assert "icarl_all, newest_token, newest_all; the nearest is newest_all" in message(["--rehearsal", "newest"])


def test_losses_from_outside(register, write):
    told = "none is registered (what a script registers, only that script knows: MAIN=SCRIPT)"
    assert message(["--extra-losses", "spread"]) == f"command line: extra_losses: there is no 'spread'; {told}"
    register(LOSSES, "spread")
    register(LOSSES, "narrow")
    assert parse(["--options", write("extra_losses: spread")]).loss.extra_losses == ("spread",)
    both = ["--extra-losses", "spread", "narrow"]
    assert parse(both).loss.extra_loss_weights == ()
    assert parse([*both, "--extra-loss-weights", "1", "0"]).loss.extra_loss_weights == (1.0, 0.0)
    assert parse([*both, "--extra-losses", "none"]).loss.extra_losses == ()
    told = "extra_loss_weights, extra_losses: one weight for each loss, or none at all; there are "
    assert message([*both, "--extra-loss-weights", "1"]) == f"command line: {told}1 for 2"
    assert message(["--extra-loss-weights", "1"]) == f"command line: {told}1 for 0"
    assert message([*both, "--extra-loss-weights", "1", "-1"]).startswith("command line: extra_loss_weights: must be 0 or")
    assert message(["--extra-losses", *["narrow"] * 2]) == "command line: extra_losses: a loss stands twice in narrow, narrow"
    told = "command line: extra_losses: 'spred' is not one of spread, narrow; the nearest is spread"
    assert message(["--extra-losses", "spred"]) == told


def test_what_is_in_use_from_outside(register):
    assert outside(parse([])) == outside(parse(["--method", "wa"])) == []
    names = {ENCODERS: "conv", RULES: "very_new", LOSSES: "spread", DATA_SETS: "stripes"}
    for where, name in names.items():
        register(where, name)
    register(LOSSES, "unused")
    assert outside(parse([])) == []
    words = ["--method", "lwf", "--model", "conv", "--rehearsal", "very_new_all", "--extra-losses", "spread"]
    in_use = ["data set stripes", "encoder conv", "loss spread", "method lwf", "selection rule very_new"]
    assert outside(parse([*words, "--data-set", "Stripes"])) == in_use
    register(METRICS, "width")
    assert outside(parse([])) == ["metric width"] and outside(parse(["--method", "plain"])) == ["method plain", "metric width"]


# --------------------------------------------------------------------------------------------------------------- multistep


def test_multistep_has_milestones():
    assert parse(["--sched", "multistep", "--decay-milestones", "3", "7"]).optim.decay_milestones == (3, 7)
    assert parse(["--sched", "multistep", "--decay-milestones", "3"]).optim.decay_milestones == (3,)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("--sched multistep", "sched, decay_milestones: multistep needs decay_milestones, one or more"),
        ("--decay-milestones 3", "decay_milestones, sched: they are of sched: multistep, not cosine"),
        ("--sched multistep --decay-milestones 7 3", "decay_milestones: each must be above the one before, unlike 7, 3"),
        ("--sched multistep --decay-milestones 3 3", "decay_milestones: each must be above the one before, unlike 3, 3"),
        ("--sched multistep --decay-milestones 0", "decay_milestones: must be 1 or more, not 0"),
        ("--sched multistep --decay-milestones 1.5", "decay_milestones: expects a list of whole numbers, not '1.5'"),
    ],
)
def test_milestones_that_cannot_be(argv, told):
    assert message(argv.split()) == f"command line: {told}"


# -------------------------------------------------------------------------------------------------------------- as a program


def test_the_check_ends_where_options_are_right(monkeypatch, capsys):
    for value, code in (("1", 0), ("", None)):
        monkeypatch.setenv("DYTOX_CHECK", value)
        if code is None:
            assert parse_or_exit([]) == Options()
        else:
            with pytest.raises(SystemExit) as caught:
                parse_or_exit([])
            assert caught.value.code == code
    monkeypatch.setenv("DYTOX_CHECK", "1")
    with pytest.raises(SystemExit) as caught:
        parse_or_exit(["--lr", "x"])
    assert caught.value.code == 2 and capsys.readouterr() == ("", "command line: lr: expects a number, not 'x'\n")


@pytest.mark.parametrize(
    "argv", [["--lfw-epochs", "3"], ["--method", "wq"], ["--extra-losses", "x"], ["--weight-align"], DYTOX]
)
def test_nothing_heavy_is_imported_where_no_method_is_named(argv):
    code = """
import sys
heavy = {"torch", "timm", "continuum", "numpy"}
from continual.options import parse_or_exit
assert not heavy & set(sys.modules)
try: print(parse_or_exit().method)
finally: assert not heavy & set(sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == (0 if found.stdout else 2) and found.stderr.count("\n") == (not found.stdout)


def test_no_two_sections_share_a_name():
    names = [section.__name__ for section in SECTIONS.values()]
    assert all(name.endswith("Options") and getattr(module, name) for name in names) and len({*names}) == len(names)


def test_the_options_of_methods_are_known_without_timm():
    code = "import sys\nfrom continual.options import parse_or_exit\n"
    code += "try: parse_or_exit()\nfinally: print(sorted({'torch', 'timm', 'torchvision'} & set(sys.modules)), file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0 and found.stderr == "['torch']\n"
