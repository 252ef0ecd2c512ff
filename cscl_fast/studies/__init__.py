"""Studies: several runs as one command, and the table or the figures that they are made for.

`--ablation` is the row set of the paper's tables over several seeds, `--sweep KEY=VALUE,VALUE` one
key over several values (Fig. 3 c, d). All runs of a seed share their source-only network.

    plan.py      which runs there are, in which folders, with which configuration
    folders.py   what is in a run's folder: nothing, a part of this run, all of it, another run
    launch.py    the runs as processes, some at a time; the table on the terminal; stopping
    scores.py    their scores, mean and deviation over the seeds
    tables.py    results.txt, .md, .csv, .json
    figures.py   the figure of each swept key
    study.py     one after the other
"""

from cscl_fast.studies.study import run_study

__all__ = ["run_study"]
