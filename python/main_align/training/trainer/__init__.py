"""The trainer, its mixin, and checks of their settings."""
