"""How methods are compared: plan, train, evaluate, record, report."""

__version__ = "0.4.0"
