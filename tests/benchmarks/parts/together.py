"""Training steps on several processes: this file starts them, and is what each of them runs."""

import json
import socket
import subprocess
import sys
import time

import torch

from continual.jobs import distributed
from parts.models import Steps, options_of, tasks_of
from parts.setting import ROOT, Row, Setting, of_python

TIMEOUT = 300.0  # seconds


def processes(setting: Setting) -> list[Row]:
    """Steps of one process, and of as many as there are GPUs, or two on a CPU; each with a batch of its own."""
    most = torch.cuda.device_count() if setting.on_cuda else 2
    rows = []
    for nb in sorted({1, most}):
        for grouped in (False, True) if nb == 1 else (True,):
            setting.need(30)
            found = of_job(setting, nb, grouped)
            rows.append({"processes": nb, "in a group": "yes" if grouped else "no", **found})
    for row in rows:
        row["images/s of all / alone"] = row["images/s of all"] / rows[0]["images/s of all"]
    return rows


def of_job(setting: Setting, nb: int, grouped: bool) -> Row:
    """What the first of so many processes measured. Raises RuntimeError with the words of one that failed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start, environment = of_python("together")
    alone = {**environment, "OMP_NUM_THREADS": "1"}
    common = {**alone, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(nb)}
    job = []
    for rank in range(nb):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} if grouped else alone
        command = [*start, setting.device.type, "tiny" if setting.tiny else "whole", str(setting.rounds)]
        job.append(subprocess.Popen(command, env=own, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        said = [each.communicate(timeout=max(10.0, min(TIMEOUT, setting.seconds_left()))) for each in job]
    finally:
        for each in job:
            each.kill()
    for each, (_, errors) in zip(job, said, strict=True):
        if each.returncode:
            raise RuntimeError(f"a process ended with {each.returncode}: {errors.strip()[-400:]}")
    return json.loads(said[0][0].strip().splitlines()[-1])


def main(device: str, size: str, rounds: int) -> None:
    """One process: whole steps with one replica each, timed by the clock and by the processor."""
    torch.set_num_threads(1)
    where = distributed.start(device, deterministic=False)
    setting, world = Setting(device=where, tiny=size == "tiny"), distributed.nb_processes()
    batch = 2 if setting.tiny else 128 if setting.on_cuda else 16
    nb = 20 * rounds if setting.on_cuda else rounds
    amp = "bf16" if setting.on_cuda else "off"
    steps = Steps(options_of("cifar", setting), tasks_of(10, 10), where, batch=batch, replicas=world, amp=amp, together=8)
    steps(3)
    distributed.barrier()
    setting.now()
    begun, worked = time.perf_counter(), time.process_time()
    steps(nb)
    setting.now()
    seconds, of_processor = (time.perf_counter() - begun) / nb, (time.process_time() - worked) / nb
    if distributed.is_main():
        found = {
            "batch of each": batch,
            "precision": amp,
            "step (ms)": 1e3 * seconds,
            "step (ms of processor)": 1e3 * of_processor,
        }
        print(json.dumps({**found, "images/s of all": world * batch / seconds}))
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
