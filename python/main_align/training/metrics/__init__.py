"""Metrics of training and evaluation."""
