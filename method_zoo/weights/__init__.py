"""Released weights: one module a family of files (``ORIGIN``), one YAML file a method in ``catalogue/``."""
