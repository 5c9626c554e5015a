"""Looking back at runs: a page of pictures and tables, where errors come from, and whether a difference is real.

    python -m continual.report RUN [RUN ...]        # the page; --deep adds where errors come from, --watch follows a run
    python -m continual.compare A B

RUN is the log or the checkpoint folder of a run or of a series. Nothing of a run is touched.
"""
