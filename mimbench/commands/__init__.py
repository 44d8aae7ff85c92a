"""Commands of the command line, a module a group; ``mimbench.cli`` registers them."""
