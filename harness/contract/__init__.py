"""The contract that every method fulfils, run on two tiny backbones, and the table of what each method can do."""
