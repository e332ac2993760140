"""Downstream tasks: what a pretrained encoder is adapted to, and how far the result can be trusted."""
