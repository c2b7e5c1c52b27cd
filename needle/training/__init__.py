"""One training loop for every arm; optimisers, run state, trackers, budgets."""
