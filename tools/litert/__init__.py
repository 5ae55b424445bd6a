"""What the TFLite tools share: the graph, its quantisation, the run that proves a written file."""
