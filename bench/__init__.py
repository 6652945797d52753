"""The benchmark: what a like costs through Birdwire, and through what else one might put in its place."""
