"""What a step compiled for a pod tells before anybody books one: memory, operations, traffic."""
