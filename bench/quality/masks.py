"""The speed-ups that are asked for, and masks that compute so many steps, evenly spread after a warm-up."""

#: Speed-ups by work.
BUDGETS = (1.5, 2.0, 2.33, 2.8, 3.0, 4.0, 5.7)
#: The most settings of a method that are tried, the same for all.
CANDIDATES = 28


def even_mask(steps: int, full: int, *, warmup: int = 1, bend: float = 1.0, last: bool = True) -> list[int]:
    """A mask of `steps` entries with `full` ones.

    Args:
        steps: the length, at least 1.
        full: steps that are computed, 1 … steps.
        warmup: the first of them, which stand side by side; at most `full`.
        bend: 1 spreads the others evenly; above 1, gaps grow from step to step.
        last: whether the last step is one of them (if `full` is more than `warmup`); if not, what follows the last
            one is a gap like the others.
    """
    rest = full - warmup
    gaps = rest if last else rest + 1
    span = steps - warmup if last else steps - warmup + 1
    positions = list(range(warmup))
    for number in range(1, rest + 1):
        wanted = warmup - 1 + round(span * (number / gaps) ** bend)
        left = rest - number  # as many must find a place behind it
        positions.append(min(max(wanted, positions[-1] + 1), steps - 1 - left))
    return [int(step in positions) for step in range(steps)]
