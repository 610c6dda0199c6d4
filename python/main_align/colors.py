"""The colours of all plots."""

BLUE, ORANGE, GREY = "#3b6fb6", "#e08a3c", "#444444"
