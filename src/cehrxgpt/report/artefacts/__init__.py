"""Artefacts told apart by what they hold, and described: what it is, how large, made from what, and what comes next."""
