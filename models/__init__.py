"""Released students, installed as the package `needle_models` so that they travel with the wheel."""
