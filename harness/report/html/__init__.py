"""The results site: what the tables, claims and explanations of a results folder say, as HTML pages that open offline.

It computes no number: cells, tables and verdicts are those of the other verbs, laid out for a reader who clicks.
"""
