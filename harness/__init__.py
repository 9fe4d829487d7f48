"""How methods are compared: plan, train, evaluate, record, report."""

__version__ = "0.2.0"
