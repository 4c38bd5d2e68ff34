"""Example programs: a demo and a study on a synthetic world, and a download of public text."""
