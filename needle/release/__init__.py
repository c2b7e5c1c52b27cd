"""A release: recipe, mean of weights, judging, model card."""
