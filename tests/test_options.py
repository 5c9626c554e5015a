import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from pathlib import Path

import pytest

from continual import options as module
from continual.errors import OptionsError
from continual.options import FIELDS, MAY_DIFFER, PER_CALL, SECTIONS, Options, difference, dump, flat, parse, replace
from continual.options.values import checked

ROOT = Path(__file__).parent.parent
DATA, MODEL = ROOT / "options" / "data", ROOT / "options" / "model"
FILES = sorted(ROOT.glob("options/**/*.yaml"))
DYTOX = ["--dytox", "--class-attention"]


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "some.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def message(argv: list[str]) -> str:
    with pytest.raises(OptionsError) as caught:
        parse(argv)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    return text


# ------------------------------------------------------------------------------------------------ sections and defaults

PUBLISHED = """
batch_size 128, incremental_batch_size null, epochs 500, base_epochs 500, no_amp false, input_size 32, patch_size 16,
embed_dim 768, depth 12, num_heads 12, drop 0, drop_path 0.1, norm "layer", local_up_to_layer 10, locality_strength 1,
class_attention false, opt "adamw", opt_eps 1e-8, opt_betas null, clip_grad null, momentum 0.9, weight_decay 0.05,
sched "cosine", lr 5e-4, incremental_lr null, lr_noise null, lr_noise_pct 0.67, lr_noise_std 1, warmup_lr 1e-6,
incremental_warmup_lr null, min_lr 1e-5, decay_epochs 30, warmup_epochs 5, cooldown_epochs 10, patience_epochs 10,
decay_rate 0.1, color_jitter 0.4, aa "rand-m9-mstd0.5-inc1", smoothing 0.1, train_interpolation "bicubic",
repeated_aug true, reprob 0.25, remode "pixel", recount 1, resplit false, mixup 0.8, cutmix 1.0, cutmix_minmax null,
mixup_prob 1, mixup_switch_prob 0.5, mixup_mode "batch", auto_kd false, kd 0, distillation_tau 1, resnet false,
pod null, pod_scaling false, output_basedir "./checkpoints", seed 0, eval false, dist_eval false,
pin_mem true, validation 0, initial_increment 50, increment 10, class_order null, eval_every 50, debug false,
retrain_scratch false, max_task null, dytox false, ind_clf "", joint_tokens false, head_div 0, sam_rho 0,
sam_adaptive false, sam_first "main", sam_second "main", sam_skip_first false, sam_final null, sam_div "",
look_sam_k 0, look_sam_alpha 0.7, memory_size 2000, distributed_memory false, oversample_memory 1,
oversample_memory_ft 1, rehearsal_modes 1, fixed_memory false, rehearsal "random", sep_memory false, replay_memory 0,
finetuning "", finetuning_epochs 30, finetuning_lr 5e-5, finetuning_teacher false, finetuning_resetclf false,
only_ft false, ft_no_sampling false, freeze_eval false, log_path "logs", log_category "misc", bce_loss false,
resume "", start_task 0, save_every_epoch null
"""


def test_published_names_and_defaults():
    values = flat(parse([]))
    for entry in PUBLISHED.replace("\n", " ").split(", "):
        key, default = entry.split()
        assert values[key] == json.loads(default), key
    assert values["pod_scales"] == (1,) and values["options"] == values["freeze_task"] == values["freeze_ft"] == ()
    assert values["num_workers"] is None  # published: 10, whatever the machine
    assert values["head_div_mode"] == values["sam_mode"] == ("tr", "ft")


def test_a_key_belongs_to_one_section_and_has_a_help_text():
    assert len(FIELDS) == sum(len(fields(section)) for section in SECTIONS.values())
    for f in FIELDS.values():
        assert f.metadata["help"] or f.metadata["refused"], f.name
        assert "\n" not in f.metadata["help"]
        if f.default is not None:  # a default would pass its own checks
            assert checked(f, f.default, "") == f.default
    assert set(FIELDS) >= MAY_DIFFER >= PER_CALL


def test_options_are_frozen():
    with pytest.raises(FrozenInstanceError):
        parse([]).model.embed_dim = 3
    assert parse([]) == Options()
    hash(parse([]))


# --------------------------------------------------------------------------------------------------------------- layers


def test_later_layers_win(write, tmp_path):
    first = write("epochs: 1\nlr: 1\nseed: 1\nwarmup_epochs: 1", "first.yaml")
    second = write("epochs: 2\nlr: 2\nseed: 2", "second.yaml")
    write("epochs: 3\nlr: 3\nmomentum: 0.3", "options.yaml")
    options = parse(["--lr", "4", "--options", first, second, "--epochs", "4", "--resume", str(tmp_path)])
    assert (options.optim.epochs, options.optim.lr, options.run.seed) == (4, 4.0, 2)
    assert (options.optim.warmup_epochs, options.optim.momentum, options.optim.base_epochs) == (1, 0.3, 500)
    assert options.run.options == (first, second)


def test_resume_needs_its_folder_not_its_options(tmp_path):
    assert parse(["--resume", str(tmp_path), "--start-task", "2", "--eval"]).run.start_task == 2
    assert message(["--resume", str(tmp_path / "gone")]).startswith("command line: resume: no such folder: ")


def test_the_command_line_overrides_a_switch(write):
    path = write("auto_kd: true\nno_amp: true\nrepeated_aug: false\nfreeze_task: [heads]")
    argv = ["--options", path, "--no-auto-kd", "--amp", "--repeated-aug", "--freeze-task"]
    options = parse(argv)
    assert not options.loss.auto_kd and not options.optim.no_amp and options.augment.repeated_aug
    assert options.finetune.freeze_task == ()


def test_a_memory_is_global_or_distributed(write):
    path = write("distributed_memory: true")
    assert parse(["--options", path]).rehearsal.global_memory is False
    assert parse(["--options", path, "--global-memory"]).rehearsal.distributed_memory is False
    assert parse(["--no-global-memory"]).rehearsal.distributed_memory is True
    assert "only one" in message(["--global-memory", "--distributed-memory"])


# ---------------------------------------------------------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lr: 5e-4", "lr", 5e-4),
        ("lr: 1", "lr", 1.0),
        ("embed-dim: 384\nnum-heads: 12", "embed_dim", 384),
        ("pod: null", "pod", None),
        ("pod:", "pod", None),
        ("aa: none", "aa", None),
        ("name: 10_10", "name", "10_10"),
        ("name: 2024-01-01", "name", "2024-01-01"),
        ("log_category: '5'", "log_category", "5"),
        ("pin_mem: off", "pin_mem", False),
        ("head_div_mode: tr", "head_div_mode", ("tr",)),
        ("sam_mode: [ft]", "sam_mode", ("ft",)),
        ("sam_mode: []", "sam_mode", ()),
        ("increment: 5", "increment", 5),
        ("increment: [5]", "increment", (5,)),
        ("data_set: folder\nclass_order: [2, 0, 1]", "class_order", (2, 0, 1)),
        ("data_set: folder\nclass_order: [[2, 0], [0, 2]]", "class_order", ((2, 0), (0, 2))),
        ("data_set: folder\nclass_order: [cat, no, '1']", "class_order", ("cat", "no", "1")),
        ("data_set: folder\nclass_order: [['2', '0'], ['0', '2']]", "class_order", (("2", "0"), ("0", "2"))),
        ("mean: 0.5", "mean", (0.5,)),
        ("std: auto", "std", ("auto",)),
        ("lr_noise: 0.5", "lr_noise", (0.5,)),
    ],
)
def test_values_in_yaml(write, text, key, value):
    result = flat(parse(["--options", write(text)]))[key]
    assert result == value and type(result) is type(value)


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--lr", "5e-4"], "lr", 5e-4),
        (["--data_path=a_b"], "data_path", "a_b"),
        (["--pod", "none"], "pod", None),
        (["--increment", "5"], "increment", 5),
        (["--increment", "5", "3", "2"], "increment", (5, 3, 2)),
        (["--data-set", "folder", "--class-order", "1", "0"], "class_order", (1, 0)),
        (["--data-set", "folder", "--class-order", "dog", "7"], "class_order", ("dog", "7")),
        (["--std", ".5", "1", ".25"], "std", (0.5, 1.0, 0.25)),
        (["--mean", "auto"], "mean", ("auto",)),
        (["--seeds", "1", "2"], "seeds", (1, 2)),
        (["--freeze-ft", "sab"], "freeze_ft", ("sab",)),
        (["--ind-clf", ""], "ind_clf", ""),
        (["--no-pin-mem"], "pin_mem", False),
        (["--no_amp"], "no_amp", True),
        (["--cutmix-minmax", ".2", ".8"], "cutmix_minmax", (0.2, 0.8)),
    ],
)
def test_values_on_the_command_line(argv, key, value):
    result = flat(parse(argv))[key]
    assert result == value and type(result) is type(value)


def off_when_empty():
    """Every option that is off when it is empty: texts of which that is the default, and lists."""
    for key, f in FIELDS.items():
        if f.default == "":
            yield key, ""
        elif "tuple" in str(f.type) and "|" not in str(f.type):
            yield key, ()


@pytest.mark.parametrize(("key", "empty"), list(off_when_empty()))
def test_none_switches_off(write, monkeypatch, key, empty):
    given = {"ind_clf": "1-1", "finetuning": "balanced", "freeze_task": ["heads"], "freeze_ft": ["tab"], "seeds": [3]}
    below = write("\n".join([f"{name}: {value}" for name, value in given.items()] + ["dytox: on", "class_attention: on"]))
    monkeypatch.setattr(Options, "check", lambda self: None)  # an empty list is refused for some, but as an empty list
    flag = f"--{key.replace('_', '-')}"
    calls = [[flag, word] for word in ("none", "None", "null")]
    if key != "options":
        files = [write(f"{key}: {word}".rstrip(), f"{number}.yaml") for number, word in enumerate(["none", "null", "~", ""])]
        calls = [["--options", below, *call] for call in calls] + [["--options", below, file] for file in files]
    assert all(flat(parse(call))[key] == empty for call in calls)


def test_a_quoted_none_is_text(write, tmp_path):
    options = parse(["--options", write("name: 'none'")])
    dump(options, tmp_path / "kept.yaml")
    assert options.run.name == parse(["--options", str(tmp_path / "kept.yaml")]).run.name == "none"
    assert parse(["--name", "none"]).run.name == ""


@pytest.mark.parametrize("key", sorted(module.PATHS - {"options", "branch"}))
def test_a_path_may_begin_at_home(write, monkeypatch, tmp_path, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    write(f"{key}: ~/x")
    beside = ["--eval", "--resume", str(tmp_path / "x")] if key == "predictions" else []
    for argv in ([f"--{key}", "~/x"], [f"--{key}=~/x"], ["--options", "~/some.yaml"]):
        assert flat(parse([*argv, *beside]))[key] == str(tmp_path / "x")
    assert flat(parse([f"--{key}", "~", *beside]))[key] == str(tmp_path)
    assert message([f"--{key}", "~nobody-here/x"]) == f"command line: {key}: no home folder is known for '~nobody-here'"


@pytest.mark.parametrize("words", [["--local-rank", "1"], ["--local_rank=1"], ["--local-rank=0", "--seed", "0"]])
def test_what_old_launchers_pass_is_no_option(words):
    assert parse(words) == parse([])
    assert message(["--local-rank", "x"]).startswith("command line: local_rank: ")


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("embed_dims: 3", "line 1: 'embed_dims': no such option; the nearest is embed_dim"),
        ("3: 3", "line 1: '3': no such option"),
        ("? [a, b]\n: 3", "line 1: a key is one word"),
        ("lr: 1\nepochs: many", "line 2: epochs: expects a whole number, not 'many'"),
        ("epochs: 1.0", "line 1: epochs: expects a whole number, not '1.0'"),
        ("epochs: true", "line 1: epochs: expects a whole number, not 'true'"),
        ("epochs: '3'", "line 1: epochs: expects a whole number, not '3'"),
        ("epochs: 3 4", "line 1: epochs: expects a whole number, not '3 4'"),
        ("epochs: [3]", "line 1: epochs: expects a whole number, not ['3']"),
        ("epochs:", "line 1: epochs: expects a whole number, not None"),
        ("pod: [3]", "line 1: pod: expects a number or none, not ['3']"),
        ("lr: true", "line 1: lr: expects a number, not 'true'"),
        ("lr: .inf", "line 1: lr: expects a number, not '.inf'"),
        ("lr: inf", "line 1: lr: expects a number, not 'inf'"),
        ("lr: 1e999", "line 1: lr: expects a number, not '1e999'"),
        ("auto_kd: 1", "line 1: auto_kd: expects true or false, not '1'"),
        ("log_category: null", "line 1: log_category: expects text, not None"),
        ("name: [a]", "line 1: name: expects text, not ['a']"),
        ("model: {a: 1}", "line 1: model: expects text, not {'a': '1'}"),
        ("pod_scales: [1, x]", "line 1: pod_scales: expects a list of whole numbers, not ['1', 'x']"),
        ("increment: x", "line 1: increment: expects a whole number or a list of whole numbers, not 'x'"),
        ("class_order: [[0], 1]", "line 1: class_order: expects a list of whole numbers or a list of lists of whole"),
        ("finetuning: balance", "line 1: finetuning: 'balance' is not one of '', balanced; the nearest is balanced"),
        ("freeze_task: [head]", "line 1: freeze_task: 'head' is not one of all, sab,"),
        ("rehearsal: icarl", "line 1: rehearsal: 'icarl' is not one of random, closest_token,"),
        ("sched: cosinus", "the nearest is cosine"),
        ("lr: 1\nseed: 1\nlr: 2", "line 3: lr: set twice; first at "),
        ("embed-dim: 1\nembed_dim: 1", "line 2: embed_dim: set twice; first at "),
        ("", "the file is empty"),
        ("# nothing\n", "the file is empty"),
        ("- lr", "holds no `key: value` lines"),
        ("lr", "holds no `key: value` lines"),
        ("lr: [1", "line 1: expected ',' or ']', but got '<stream end>'"),
        ("lr: 1\n\tseed: 1", "line 2: "),
        ("lr: 1\n---\nlr: 2", "line 2: but found another document"),
        ("lr: *here", "line 1: found undefined alias 'here'"),
        ("pod_scales: &a [*a]", "line 1: found unconstructable recursive node"),
        ("name: \x00", "no readable YAML: unacceptable character"),
        ("lr: " + "[" * 5000, "no readable YAML: "),
        ("name: !!python/object/apply:os.system ['touch {}']", "line 1: could not determine a constructor for the tag"),
        ("lr: !!python/name:os.system x", "line 1: could not determine a constructor for the tag"),
        ("epochs: !!int 5", "line 1: could not determine a constructor for the tag"),
        ("name: !!str [a]", "line 1: expected a scalar node, but found sequence"),
        ("options: [other.yaml]", "line 1: options: a file does not name other files"),
    ],
)
def test_errors_in_yaml_name_file_line_and_key(write, tmp_path, text, expected):
    path = write(text.replace("{}", str(tmp_path / "touched")))
    told = message(["--options", path])
    assert told.startswith(path) and expected in told
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--embed-dims", "3"], "'embed-dims': no such option; the nearest is embed_dim"),
        (["--embed", "3"], "'embed': no such option; the nearest is embed_dim"),  # no abbreviations
        (["--epoch=3"], "'epoch': no such option; the nearest is epochs"),
        (["--no-lr"], "'no-lr': no such option"),
        (["-l", "3"], "'l': no such option"),
        (["lr"], "'lr' belongs to no option; an option begins with --"),
        (["--auto-kd", "true"], "'true' belongs to no option; an option begins with --"),
        (["--lr"], "lr: expected one argument"),
        (["--embed-dim"], "embed_dim: expected one argument"),
        (["--lr", "fast"], "lr: expects a number, not 'fast'"),
        (["--epochs", "1.0"], "epochs: expects a whole number, not '1.0'"),
        (["--pod-scales", "1", "x"], "pod_scales: expects a list of whole numbers, not ['1', 'x']"),
        (["--finetuning", "balance"], "finetuning: 'balance' is not one of '', balanced; the nearest is balanced"),
        (["--name", "x" * 9999], "name: 'x"),
    ],
)
def test_errors_on_the_command_line_name_the_key(argv, expected):
    assert message(argv).startswith(f"command line: {expected}")


def test_a_missing_file_names_its_neighbour(write, tmp_path):
    write("lr: 1", "cifar100_10-10.yaml")
    near = tmp_path / "cifar100_10-10.yaml"
    far = tmp_path / "cifar100_10-1.yaml"
    assert message(["--options", str(far)]) == f"{far}: no such file; the nearest is {near}"
    assert message(["--options", str(tmp_path / "none" / "x.yaml")]).endswith("x.yaml: no such file")
    assert message(["--options", str(tmp_path)]).startswith(f"{tmp_path}: cannot be read: ")


REFUSED = {
    "embed_dim, num_heads": ["--embed-dim 100"],
    "input_size, patch_size": ["--input-size 30"],
    "local_up_to_layer, depth": ["--depth 5", [*DYTOX, "--depth", "10"], [*DYTOX, "--local-up-to-layer", "0"]],
    "dytox, class_attention": ["--dytox"],
    "ind_clf, dytox": ["--ind-clf 1-1"],
    "model": ["--model resnet18", "--model timm:", "--model timm:../x"],
    "pretrained, model": ["--pretrained"],
    "norm, model": ["--model vit --norm scale"],
    "data_set": ["--data-set ../x"],
    "initial_increment": ["--initial-increment -1"],
    "increment": ["--increment 0", "--increment 3 0"],
    "class_order": ["--class-order 1 1 0", "--class-order 0 -1", "--class-order", "--class-order cat dog cat"],
    "class_order, data_set": [
        "--class-order 0 1",
        "--data-set CIFAR10 --class-order 0 1 2 3 4 5 6 7 8 10",
        "--data-set cifar --class-order cat dog",
    ],
    "initial_increment, increment, data_set": [
        "--initial-increment 3",
        "--data-set cifar100 --increment 7",
        "--data-set imagenet1000 --initial-increment 0 --increment 500 499",
        "--data-set ImageNet100 --initial-increment 60 --increment 9",
        "--data-set cifar10 --initial-increment 2 --increment 3",
    ],
    "mean": ["--mean", "--mean 0.5 0.5", "--mean auto 0.5 0.5", "--mean car", "--mean -0.1", "--mean 123", "--mean nan"],
    "std": ["--std 0", "--std 0.2 0.2 0", "--std 58", "--std inf", "--std 0.1 0.1 0.1 0.1", "--std auto auto"],
    "validation": ["--validation 1", "--validation -0.1"],
    "num_workers": ["--num-workers -1"],
    "batch_size": ["--batch-size 0"],
    "epochs": ["--epochs 0", "--epochs -3"],
    "lr": ["--lr 0", "--lr nan"],
    "drop": ["--drop 1"],
    "opt_betas": ["--opt-betas 0.9", "--opt-betas 0.9 1"],
    "opt_betas, opt": ["--opt sgd --opt-betas 0.9 0.9"],
    "lr_noise": ["--lr-noise 0.5 0.4", "--lr-noise 0.1 0.2 0.3", "--lr-noise"],
    "lr_noise_pct, lr_noise_std": ["--lr-noise 0 1 --lr-noise-pct 1e-300"],
    "process_timeout": ["--process-timeout 1e300", "--process-timeout 1e-9"],
    "cooldown_epochs": ["--cooldown-epochs 3"],
    "aa": ["--aa augmix-m5"],
    "hflip": ["--hflip 1.5"],
    "mixup": ["--mixup -1"],
    "cutmix_minmax": ["--cutmix-minmax 0.5", "--cutmix-minmax 0.8 0.2"],
    "cutmix_minmax, input_size": ["--cutmix-minmax 0.5 0.5", "--cutmix-minmax 0.2 0.21"],
    "resplit": ["--resplit"],
    "resnet": ["--resnet"],
    "joint_tokens": ["--joint-tokens"],
    "sam_div": ["--sam-div tr"],
    "smoothing": ["--smoothing 1"],
    "kd, auto_kd": ["--kd 1 --auto-kd"],
    "distillation_tau": ["--distillation-tau 0"],
    "pod_scales": ["--pod-scales 1 0", "--pod-scales"],
    "retrain_scratch, memory_size": ["--retrain-scratch"],
    "auto_kd, retrain_scratch": ["--retrain-scratch --memory-size 0 --auto-kd"],
    "weight_align, retrain_scratch": ["--retrain-scratch --memory-size 0 --weight-align"],
    "pod, retrain_scratch": ["--retrain-scratch --memory-size 0 --pod 1"],
    "local_up_to_layer, model": ["--local-up-to-layer 0"],
    "pod, local_up_to_layer": ["--local-up-to-layer 1 --pod 1"],
    "pod_scales, input_size, patch_size": ["--pod 1 --pod-scales 1 3"],
    "freeze_task": [[*DYTOX, "--freeze-task", "sab", "tab", "task_tokens", "heads"], "--freeze-task all"],
    "freeze_ft": ["--freeze-ft all"],
    "weight_align, dytox": [[*DYTOX, "--weight-align"]],
    "nme, dytox": [[*DYTOX, "--nme"]],
    "weight_align, nme": ["--weight-align --nme"],
    "head_div, dytox": ["--head-div 0.1"],
    "freeze_task, dytox": ["--freeze-task old_task_tokens"],
    "memory_size": ["--memory-size -1"],
    "nme, memory_size": ["--nme --memory-size 0"],
    "finetuning, memory_size": ["--finetuning balanced --memory-size 0"],
    "sam_first, memory_size": ["--sam-rho 1 --sam-first memory --memory-size 0"],
    "sam_second, sam_rho": ["--sam-second memory"],
    "rehearsal_modes, distributed_memory": ["--rehearsal-modes 2 --distributed-memory"],
    "rehearsal_modes, rehearsal_test_trsf": ["--rehearsal-modes 2", "--rehearsal-modes 2 --rehearsal-test-trsf"],
    "only_ft, sep_memory": ["--only-ft --sep-memory"],
    "replay_memory, sep_memory": ["--replay-memory 1"],
    "finetuning_teacher, finetuning": ["--finetuning-teacher"],
    "finetuning_resetclf, finetuning": ["--finetuning-resetclf"],
    "freeze_eval, freeze_task, freeze_ft": ["--freeze-eval"],
    "look_sam_k, sam_rho": ["--look-sam-k 5"],
    "sam_final, sam_rho": ["--sam-final 5"],
    "name": [["--name", name] for name in ("../../x", "a;b", "a\nb", "a\n", ".a", "a/b", "a b", "é", "x" * 200)],
    "log_category": [["--log-category", "../x"], ["--log-category", ""]],
    "device": ["--device cude", "--device cuda:x", "--device mps"],
    "seed": ["--seed -1"],
    "seeds": ["--seeds 1 2 1"],
    "start_task, resume": ["--start-task 1"],
    "eval, resume": ["--eval"],
    "resume_anyway, resume": ["--resume-anyway"],
}


@pytest.mark.parametrize(("keys", "argv"), [(keys, argv) for keys, calls in REFUSED.items() for argv in calls])
def test_what_cannot_be_is_refused(keys, argv):
    assert message(argv.split() if isinstance(argv, str) else argv).startswith(f"command line: {keys}: ")


def test_a_conflict_names_every_place(write):
    path = write("seed: 1\nauto_kd: true")
    assert message(["--options", path, "--kd", "1"]).startswith(f"command line and {path}, line 2: kd, auto_kd: ")


def test_long_values_are_shortened(write):
    lists = "a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0]\n"
    names = "abcdefgh"
    for before, name in pairwise(names):
        lists += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    told = message(["--options", write("name:\n  " + lists.replace("\n", "\n  "))])
    assert "name: expects text, not " in told


# -------------------------------------------------------------------------------------------------------- option files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_option_file_loads_and_opens_with_its_command(path):
    data_set = ["--data-set", path.stem.split("_")[0]] if "order" in path.stem else []
    replace(parse(["--options", str(path), *data_set]), seed=1)
    text = path.read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert all(len(line) <= 120 for line in text.splitlines())
    command = head.replace("#", " ").replace("\\\n", " ").split("--options", 1)[1].split("--name")[0].split()
    assert str(path.relative_to(ROOT)) in command
    parse(["--options", *(str(ROOT / name) for name in command)])


def test_model_files_differ_as_published():
    base, plus, plusplus = (parse(["--options", str(MODEL / f"cifar_dytox{s}.yaml")]) for s in ("", "_plus", "_plusplus"))
    assert set(difference(base, plus)) == {"options", "mixup"}
    assert set(difference(plus, plusplus)) == {"options", "sam_rho", "sam_adaptive", "sam_skip_first", "sam_mode"}
    imagenet = parse(["--options", str(MODEL / "imagenet_dytox.yaml")])
    assert set(difference(base, imagenet)) == {"options", "input_size", "patch_size", "no_amp", "amp", "eval_every"}


@pytest.mark.parametrize(
    ("nb", "path"), [(int(p.stem.split("_")[0][-3:].replace("000", "1000")), p) for p in FILES if "order" in p.stem]
)
def test_class_orders_name_every_class_once(nb, path):
    options = parse(["--options", str(path), "--data-set", path.stem.split("_")[0]])
    assert sorted(options.data.class_order) == list(range(nb))
    assert difference(options, parse([])) == ["data_set", "class_order", "options"]


def test_imagenet100_classes():
    names = (DATA / "imagenet100_wnids.txt").read_text().split()
    assert len(set(names)) == 100 and names == sorted(names)


# -------------------------------------------------------------------------------------------- dump, replace, difference


@pytest.mark.parametrize(
    "argv",
    [
        [],
        [
            "--options",
            str(DATA / "cifar100_10-10.yaml"),
            str(DATA / "cifar100_order1.yaml"),
            str(MODEL / "cifar_dytox_plusplus.yaml"),
            "--seeds",
            "3",
            "4",
        ],
        ["--name", "5", "--data-path", "a: b # é\n'", "--increment", "3", "4", "--aa", "none", "--pod", "1e-9"],
        ["--data-set", "folder", "--class-order", "7", "null", "no", "é", "--mean", "auto", "--std", "0.1", "0.2", "1e-3"],
        [
            "--name",
            "1e5",
            "--log-category",
            "null",
            "--distributed-memory",
            "--rehearsal-test-trsf",
            "--opt-eps",
            "none",
        ],
    ],
)
def test_dumped_options_repeat_the_run(tmp_path, argv):
    options = parse(argv)
    dump(options, tmp_path / "options.yaml")
    again = parse(["--options", str(tmp_path / "options.yaml")])
    assert set(difference(options, again)) <= {"options"}
    assert set(difference(options, parse(["--resume", str(tmp_path)]))) <= {"options", "resume"}
    assert [p.name for p in tmp_path.iterdir()] == ["options.yaml"]


def test_dump_leaves_out_what_belongs_to_one_call(tmp_path):
    dump(parse(["--resume", str(tmp_path), "--start-task", "1", "--eval"]), tmp_path / "options.yaml")
    assert difference(parse(["--options", str(tmp_path / "options.yaml")]), parse([])) == ["options"]


def test_replace_checks_its_changes():
    options = parse([])
    changed = replace(options, data_set="folder", seed=3, class_order=[1, 0], distributed_memory=True)
    assert difference(options, changed) == ["data_set", "class_order", "distributed_memory", "global_memory", "seed"]
    assert changed.data.class_orders() == ((1, 0),) and options.data.class_orders() == (None,)
    for changes in ({"sead": 3}, {"seed": "x"}, {"seed": True}, {"seed": 1.0}, {"embed_dim": 5}, {"lr": 10**400}):
        with pytest.raises(OptionsError, match=f"changed options: {next(iter(changes))[:2]}|'sead'"):
            replace(options, **changes)


# ------------------------------------------------------------------------------------------------------ as a program


def test_a_wrong_option_is_answered_without_torch():
    code = (
        "import sys; from continual.options import parse_or_exit\n"
        "try: parse_or_exit(['--embed-dims', '3'])\n"
        "finally: print(sorted({'torch', 'timm', 'continuum', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stdout == "[]\n"
    assert result.stderr == "command line: 'embed-dims': no such option; the nearest is embed_dim\n"


def test_only_the_first_process_complains(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        module.parse_or_exit(["--lr", "x"])
    assert caught.value.code == 2 and capsys.readouterr().err == ""


def test_help_lists_every_option(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").split()
    for key in FIELDS:
        assert f"--{key.replace('_', '-')}" in words
    for section in SECTIONS.values():
        assert section.__doc__.split()[-1] + ":" in words


@pytest.mark.parametrize("path", sorted((ROOT / "options/model").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_published_files_drop_finetunings_last_batch(path):
    data = {"cifar": "cifar100", "imagenet": "imagenet100"}.get(path.stem.partition("_")[0], "digits")
    made = parse(["--options", str(path), "--data-set", data])
    assert made.finetune.ft_drop_last is (data != "digits")


def test_dropping_the_last_batch_needs_the_memorys_order():
    assert "a shuffled order drops it already" in message(["--ft-drop-last"])


@pytest.mark.parametrize("key", ["data-path", "log-path", "output-basedir"])
def test_a_folder_cannot_be_switched_off(key):
    assert "cannot be none; a folder of that name is ./none" in message([f"--{key}", "none"])
    assert parse([f"--{key}", "./none"]) is not None


def test_none_is_no_size_and_no_phase():
    assert "increment: expects" in message(["--increment", "none"])
    assert "sam_mode, sam_rho" in message(["--sam-rho", "1", "--sam-mode", "none"])
    dytox = ["--dytox", "--class-attention", "--head-div", "0.1"]
    assert "head_div_mode, head_div" in message([*dytox, "--head-div-mode", "none"])
