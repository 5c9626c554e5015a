"""What a forward pass and a training step cost by the number of tasks, of classes, of pixels and of processes."""

import gc
from typing import Any

import torch

from parts.models import Steps, options_of, tasks_of
from parts.scaling import of_step, operations
from parts.setting import Row, Setting, alternating, guarded, say
from parts.together import processes


def compared(setting: Setting, cases: dict[str, dict[str, Any]], batch: int, *, teacher: bool = True) -> list[Row]:
    """A row for each case, all of them alternating: forward alone, a step without a teacher, and one with."""
    variants, models = {}, {}
    for name, case in cases.items():
        tasks, options = tasks_of(case["tasks"], case["classes"]), options_of("cifar", setting, **case.get("changes", {}))
        plain = Steps(options, tasks, setting.device, batch=batch, distils=False, nb_images=256)
        side = options.model.input_size
        images = torch.randn(batch, 3, side, side, device=setting.device)
        variants[f"forward {name}"] = forward_of(plain.model, images)
        variants[f"step {name}"] = plain
        if teacher:
            variants[f"with teacher {name}"] = Steps(options, tasks, setting.device, batch=batch, nb_images=256)
        models[name] = options.model
    seconds = alternating(setting, variants)
    rows = []
    for name, case in cases.items():
        classes = [case["classes"]] * case["tasks"]
        row = {"case": name, "tasks": case["tasks"], "classes": sum(classes)}
        row["forward (ms)"] = 1e3 * seconds[f"forward {name}"]
        row["step (ms)"] = 1e3 * seconds[f"step {name}"]
        if teacher:
            row["step with teacher (ms)"] = 1e3 * seconds[f"with teacher {name}"]
        row["images/s"] = batch / seconds[f"step {name}"]
        row["step (GFLOP/image)"] = of_step(models[name], classes, distils=False) / 1e9
        row["forward (GFLOP/image)"] = operations(models[name], classes) / 1e9
        rows.append(row)
    first = rows[0]
    for row in rows:
        row["forward / first"] = row["forward (ms)"] / first["forward (ms)"]
        row["step / first"] = row["step (ms)"] / first["step (ms)"]
    return rows


def forward_of(model: torch.nn.Module, images: torch.Tensor) -> Any:
    @torch.inference_mode()
    def forward() -> None:
        model.eval()
        model(images)
        model.train()

    return forward


def tasks(setting: Setting) -> Row:
    """Against one task: up to 1,000 tasks, 21,000 classes, 224 pixels; and on several processes."""
    batch = 2 if setting.tiny else 128 if setting.on_cuda else 16
    many = (1, 3) if setting.tiny else (1, 10, 50, 200, 1000)
    report: Row = {"rows": [], "notes": [f"batches of {batch}; two classes a task"]}
    cases = {f"{nb} tasks": {"tasks": nb, "classes": 2} for nb in many}
    say("tasks: by the number of tasks")
    report["rows"] += guarded_rows(lambda: compared(setting, cases, batch), report)
    gc.collect()
    wide = (10, 20) if setting.tiny else (10, 100, 2100)
    cases = {f"{10 * nb:,} classes": {"tasks": 10, "classes": nb} for nb in wide}
    say("tasks: by the number of classes")
    report["by classes"] = guarded_rows(lambda: compared(setting, cases, batch, teacher=False), report)
    sides = {"32 pixels, patches of 4": (32, 4), "64 pixels, patches of 4": (64, 4), "224 pixels, patches of 16": (224, 16)}
    cases = {
        name: {"tasks": 10, "classes": 10, "changes": {"input_size": s, "patch_size": p}} for name, (s, p) in sides.items()
    }
    say("tasks: by the size of images")
    if not setting.tiny:
        report["by pixels"] = guarded_rows(lambda: compared(setting, cases, max(1, batch // 4), teacher=False), report)
        say("tasks: by the number of processes")
        report["by processes"] = guarded_rows(lambda: processes(setting), report)
    return report


def guarded_rows(measure: Any, report: Row) -> list[Row]:
    found = guarded(lambda: {"rows": measure()})
    if "rows" not in found:
        report["notes"].append(str(found))
    return found.get("rows", [])
