"""Archives of data sets: checked, unpacked, and how both tell how far they are."""

from collections.abc import Callable

TellProgress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and of how much where that is known."""
