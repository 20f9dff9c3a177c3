"""Measures of images, scores and rankings, each with an interval."""
