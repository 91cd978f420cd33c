"""Conifer's program: what a person types and sees."""
