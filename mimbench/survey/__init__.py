"""The survey's works and taxonomy as data, drawn as tables, and its automatic clustering repeated."""
