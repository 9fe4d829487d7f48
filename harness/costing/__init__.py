"""The cost of a method, measured fairly: methods interleaved round by round in one process on one device
(`sam-peft cost`)."""
