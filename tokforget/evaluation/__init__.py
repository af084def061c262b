"""Compare scorers at equal budgets: bits lost, downstream tasks, speed, report."""
