"""Planning: which steps to compute and how to predict the others, for a quality or a speed-up.

`gram.py` what a run's features say about every predictor; `probes.py` what an error counts for; `search.py` the best
schedules by an objective, `split.py` with masks of their own for the branches; `runs.py` real runs, `watch.py` what is
seen in an uncached one, `results.py` what they gave, `store.py` what is known of them; `trials.py` candidates raced in
them; `forecast.py` from the objective to PSNR; `asked.py` what is asked for; `planner.py` all of it; `report.py` tables
and plots.
"""

from cache_dit.planning.planner import plan

__all__ = ["plan"]
