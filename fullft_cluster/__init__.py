"""fullft-cluster: from a model size to a finished full fine-tune on a cluster."""

__version__ = "0.1.0"
