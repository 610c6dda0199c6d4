"""Load checkpoints, encode pairs with their chat templates, and run packed forward passes."""
