"""Evaluation protocols, one file each. They import nothing of the method zoo."""
