"""Vouch for a run: `python -m continual.verify RUN [--steps N] [--certificate] [--check FILE] [--data-path DIR] [--device D]`.

RUN is the log or the checkpoint folder of a run or a series. Every file of it is checked against every other, its images and
exemplars against the images of now; its first N steps (16) and its last evaluation are computed again and compared with
what it kept. --certificate prints all of it as JSON. --check compares RUN with such a certificate. Nothing is written.
Ends with 0 if all is as it was, 4 if something was altered, and then says what; 2 and 3 for words and data that do not do.

Under `torchrun --nproc-per-node N -m continual.verify` the steps are computed by as many processes.
"""

import json
import os
import sys
from collections.abc import Sequence

from continual.command import register
from continual.errors import CheckpointError, OptionsError, Refused, plain, some
from continual.jobs import distributed
from continual.registry import lacking
from continual.report import certificate
from continual.report.reading import read


def main(argv: Sequence[str]) -> int:
    """Verify the runs of a folder. Returns the exit code."""
    if {"-h", "--help"} & set(argv):
        print(__doc__)
        return 0
    try:
        register()
        asked = certificate.asked(argv)
        runs = read(asked.run)
        for past in runs:
            if unknown := lacking(past.identity.get("registered", [])):
                told = f"{past.label} was made with what a script registers ({some(unknown)})"
                raise OptionsError(f"{told}; name the script: MAIN=SCRIPT python -m continual.verify RUN")
        device = distributed.start(asked.device or runs[0].options.get("device", "auto"))
        verdicts = [certificate.verify(past, asked, device) for past in runs]
        document = certificate.document(asked, runs, verdicts)
        if distributed.is_main():
            print(json.dumps(document, indent=1) if asked.certificate else certificate.in_words(document))
        distributed.stop()
        if document["altered"]:
            raise CheckpointError(document["altered"][0])
    except Refused as refused:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {plain(str(refused))}", file=sys.stderr)
        return refused.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
