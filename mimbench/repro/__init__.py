"""For whoever doubts a number: what it came from, whether it comes out again, and why two differ.

``report`` tells what was run and how to run it again, ``verify`` runs a record again, ``compare`` says in
what two records or results folders differ and whether that explains their gap. Only ``verify`` and the
defaults in a report import torch.
"""
