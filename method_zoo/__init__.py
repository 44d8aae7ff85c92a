"""The zoo: one file a method. What methods share lives in ``parts``, their networks in ``backbones``."""
