"""The command line: one thin module a verb, what they share in `command`, their list in `verbs`."""
