"""Released weights: what there is, where it lies, and how it becomes an encoder of ours.

- Known: ``entry`` (a released file as data), ``entries`` (the catalogue), ``release`` (what records keep).
- Fetched: ``obtain`` (mirrors), ``hub``, ``taking`` (files fetched by hand), ``cached`` (converted once).
- Read, with nothing of it run: ``foreign``, with ``pickles``, ``allowed`` and ``shards``.
- Converted: ``origin`` (how the tensors of one family of files become ours) and ``convert``; ``timm_files``,
  ``timm_facts``, ``transformers_config`` and ``elsewhere`` for what the catalogue does not have.
- Used: ``given`` (what a user names as weights) and ``adopt`` (the job of such a row).
- Doubted: ``audit`` and ``examined`` (``mimbench doctor weights``), ``checking``.
- Told: ``tell``, ``told``.
"""
