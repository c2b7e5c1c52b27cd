"""The Hydra configs, installed as the package `needle_conf` so that they travel with the wheel."""
