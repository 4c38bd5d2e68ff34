"""Many runs of one config, a value or two apart."""
