"""One file per environment, and what may stand in it."""
