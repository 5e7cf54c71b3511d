"""What to try next: an exact solver, a Bayesian optimiser, Optuna's samplers."""
