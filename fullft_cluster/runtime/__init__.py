"""What runs inside the allocation beside the workers: the supervisor, the node's starter, and the policy of ends."""
