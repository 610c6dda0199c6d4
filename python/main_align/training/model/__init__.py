"""The trained model: setup, forward hooks, projection heads and checkpoints."""
