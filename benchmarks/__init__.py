"""Side-by-side measurements of this project against a plain implementation; scripts to run by hand, not tests.

`docs/performance.md` holds what they gave and where.
"""
