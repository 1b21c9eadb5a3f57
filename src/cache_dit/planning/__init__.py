"""Everything that runs a model to find something out: plans, and what policies must know of a model.

`runs` runs a model under observation; `calibrate` fits what policies need. For plans: `inputs` what is asked for,
`features` what an uncached run shows, `gram` what that says about every predictor, `sensitivity` what an error counts
for, `search` the best schedules by an objective and the PSNR they may have, `trials` runs under a schedule, `results`
what they gave, `checkpoint` what is remembered of them, `candidates` schedules raced in them, `planner` all of it,
`report` tables and plots.
"""

from cache_dit.planning.planner import plan

__all__ = ["plan"]
