"""``python -m fullft_cluster`` is the command ``fullft-cluster``."""

from fullft_cluster.cli.main import main

main()
