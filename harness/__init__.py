"""How methods are compared: plan, train, evaluate, record, report."""
