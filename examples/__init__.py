"""Example projects: the demo and the study on an invented bilingual world."""
