"""The command line: one thin module per verb; `command` has what they share, and `verbs` lists them."""
