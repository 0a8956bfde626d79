"""Nothing goes deaf, nothing is lost silently: a workload runs while something is broken on purpose."""
