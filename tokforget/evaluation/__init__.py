"""Scorers at equal budgets: comparison, downstream use, speed, report."""
