"""Kills runs at random places, resumes them until they are done, and compares what comes out with an undisturbed run.

    PYTHONPATH=. python tests/campaign.py --kills 25 --processes 1 [--method bic]

Every kill is of one of the processes, at a random one of the times that it reaches a random place; so a resumed run may be
killed again. Fails unless every run ends bit by bit like the undisturbed one.
"""

import argparse
import json
import random
import signal
import tempfile
from pathlib import Path

from faults import COUNTS
from jobs import THREE_TASKS, assert_same_results, checkpoints, finish, folders, run


def campaign(kills: int, *, processes: int, seed: int = 0, method: str = "") -> int:
    """Returns how many runs the kills were of. Raises AssertionError if one comes out otherwise than the undisturbed one."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as base:
        reference = Path(base, "undisturbed")
        argv = [*THREE_TASKS, *(["--method", method] if method else [])]
        counts = {COUNTS: f"{base}/counts"}
        finish([*argv, *folders(reference)], reference, processes=processes, environment=counts)
        reached = [json.loads(Path(f"{base}/counts-{rank}").read_text()) for rank in range(processes)]
        done = nb_runs = 0
        while done < kills:
            nb_runs += 1
            folder = Path(base, f"run-{nb_runs}")
            command, places = [*argv, *folders(folder)], []
            while True:
                rank = draw.randrange(processes)
                place, times = draw.choice(sorted(reached[rank].items()))
                fault = f"kill:{place}:{draw.randint(1, times)}:rank{rank}" if done < kills else ""
                job = run(command, folder, processes=processes, fault=fault)
                if -signal.SIGKILL not in job.codes:
                    break
                done += 1
                places.append(fault.removeprefix("kill:"))
                command = ["--resume", str(checkpoints(folder))]
            assert set(job.codes) == {0}, job.said()
            assert_same_results(folder, reference)
            print(f"run {nb_runs}: killed at {', '.join(places) or 'no place'}: the same to the bit", flush=True)
    return nb_runs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--method", default="", help="of the run; DyTox by default")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    nb_runs = campaign(asked.kills, processes=asked.processes, seed=asked.seed, method=asked.method)
    what = f"{asked.method or 'dytox'}, {asked.kills} kills, {nb_runs} runs on {asked.processes} process(es)"
    print(f"{what}: all the same to the bit")
