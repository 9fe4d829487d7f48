"""Where data, checkpoints, cluster and results lie, said once: two files, environment variables, the command line above all."""
