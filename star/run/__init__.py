"""The desk around a run: flags, plan, cost, progress, folder, history, pictures. Nothing in star/*.py imports it."""
