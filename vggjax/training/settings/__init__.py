"""The settings of a run, one dataclass for each of their groups; `Config` inherits them all."""
